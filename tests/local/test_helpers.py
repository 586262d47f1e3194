"""The bus and the controller service are kept running, and nobody waits for them."""

import json
import socket
import threading
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from esper_runtime.contracts import BusError
from esper_runtime.local.children import Port
from esper_runtime.local.helpers import BusProcess, Helper
from esper_runtime.local.processes import ProcessRecord
from esper_runtime.oona import BundledServer, BusAddress
from esper_runtime.planning import RestartPolicy
from tests.oona.bus import eventually

NO_PATIENCE = RestartPolicy(most_attempts=2, first_seconds=0.01)


def never_ready(folder: Path) -> Path:
    """A nats-server that starts and never listens."""
    binary = folder / "nats-server"
    binary.write_text(
        "#!/bin/sh\ncase $1 in -v|--version) echo nats-server: v2.99.0;; *) exec sleep 600;; esac\n"
    )
    binary.chmod(0o755)
    return binary


def bus(folder: Path, port: Port) -> BusProcess:
    return BusProcess(folder / "bus", BusAddress(url=f"nats://127.0.0.1:{port.number}", token="t"))


def test_looking_after_a_bus_that_does_not_get_ready_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = never_ready(tmp_path)
    monkeypatch.setattr("esper_runtime.oona.binary._candidates", lambda: [binary])
    port, said = Port(), []
    helper = Helper("bus", bus(tmp_path, port), "so be it")
    record = tmp_path / "bus" / "server.json"
    try:
        assert helper.look(said.append) is False
        eventually(record.exists)
        assert helper.look(said.append) is False, "it still starts"
        assert (helper.record, said) == (None, [])
        child = psutil.Process(json.loads(record.read_text())["pid"])
    finally:
        helper.stop()
        port.close()
    assert not child.is_running()
    assert not record.exists()


def test_a_server_that_is_given_up_while_it_starts_says_so(tmp_path: Path) -> None:
    server = BundledServer(tmp_path / "bus", never_ready(tmp_path))
    threading.Thread(
        target=lambda: (eventually((tmp_path / "bus/server.json").exists), server.give_up())
    ).start()
    with pytest.raises(BusError, match="given up before it was ready"):
        server.start()
    assert not server.is_alive()


def test_the_first_rank_listens_at_the_port_that_was_kept_for_it_and_nobody_else_gets_it() -> None:
    port = Port()
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port.number))
        store = TCPStore("127.0.0.1", port.number, 1, is_master=True, wait_for_workers=False)
        store.set("said", "by rank 0")
        assert store.get("said") == b"by rank 0"
    finally:
        port.close()


def test_a_bus_starts_at_the_port_that_was_kept_for_it_and_again_after_its_end(tmp_path: Path) -> None:
    port, said = Port(), []
    helper = Helper("bus", bus(tmp_path, port), "so be it", NO_PATIENCE)

    def there() -> bool:
        helper.look(said.append)
        return helper.record is not None

    try:
        eventually(there)
        first = helper.record
        assert first is not None
        psutil.Process(first.pid).kill()
        eventually(lambda: there() and helper.record != first)
        listening = psutil.Process(helper.record.pid if helper.record else 0).net_connections()
        assert {c.laddr.port for c in listening if c.status == psutil.CONN_LISTEN} == {port.number}
        assert said == []
    finally:
        helper.stop()
        port.close()


class Fails:
    """A process that cannot be started."""

    def start(self) -> ProcessRecord:
        raise BusError("there is no such thing")

    def ended(self) -> str | None:
        return None

    def give_up(self) -> None:
        """It never takes long."""

    def stop(self) -> None:
        """There is nothing."""


def test_what_cannot_be_started_is_given_up_with_the_reason() -> None:
    said: list[str] = []
    helper = Helper("bus", Fails(), "It goes on", NO_PATIENCE)
    eventually(lambda: bool(said) or (helper.look(said.append) and bool(said)))
    assert said == [
        "bus: it ended 2 times in a row soon after its start, last: there is no such thing. It goes on"
    ]
    assert helper.wakes_in() is None
    helper.stop()
