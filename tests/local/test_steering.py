"""Commanding a live run from another process: `esper status`, `stop`, `pin`, `veto` and their likes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from esper_runtime.cli.app import invoke
from esper_runtime.contracts import (
    LOCAL_NAMESPACE,
    STEERING_TYPE,
    Channel,
    CloudEvent,
    SlotChanged,
    SlotState,
    Started,
    Steer,
    Steered,
    SteeringCommand,
    run_subject,
)
from esper_runtime.local import RunFolder
from esper_runtime.local.post import Post
from esper_runtime.local.processes import read_table
from esper_runtime.nissa import Held, held, in_words, read_journal
from esper_runtime.oona import Bridge, BundledServer, publish_event
from tests.cli.manifests import write
from tests.oona.bus import Journal, eventually, on_bus

SECONDS = 50.0


def begin(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A long run in a process of its own, until it has a journal."""
    path = write(folder, ("spec.training.steps", 500_000), ("spec.growth.controller.kind", "Off"))
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.cli", "run", str(path), *options],
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    journal, deadline = RunFolder(Path("runs/small")).journal, time.monotonic() + SECONDS
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None, (folder / "said.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def finish(process: subprocess.Popen[bytes]) -> None:
    table = read_table(Path("runs/small/processes.json"))
    process.kill()
    process.wait()
    for child in table.children if table is not None else ():
        if child.alive:
            os.kill(child.pid, signal.SIGKILL)


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.chdir(tmp_path)
    process = begin(tmp_path)
    yield process
    finish(process)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = invoke(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_live_run_is_looked_at_steered_and_stopped(
    live: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Path("runs/small/journal.jsonl")
    started = read_journal(journal)[0].event
    assert isinstance(started, Started)
    slot = started.slots[0].slot
    code, out, err = said(capsys, "veto", slot, "small")
    assert code == 0, err
    assert out.startswith("applied at step ")
    events = [entry.event for entry in read_journal(journal)]
    assert any(isinstance(e, SlotChanged) and e.after is SlotState.LOCKED for e in events)
    assert said(capsys, "pin", "small")[0] == 0

    code, out, err = said(capsys, "veto", slot[:-1], "small")
    assert code == 2
    assert f"run 'small' has no slot {slot[:-1]!r}; nearest: {slot!r}" in err
    code, out, err = said(capsys, "unlock", started.slots[1].slot, "small")
    assert code == 2
    assert "is Dormant, not Locked" in err

    code, out, err = said(capsys, "status", "small", "--output", "json")
    status = json.loads(out)
    assert status["state"] == "Running"
    assert status["pinned"] is True
    assert status["paused"] is False
    assert status["vetoed"] == [slot]
    assert status["bus"]["answers"] is True
    assert {process["role"] for process in status["processes"]} == {"supervisor", "trainer", "bus"}
    assert status["process"] == live.pid

    code, out, err = said(capsys, "stop", "small")
    assert code == 0, err
    assert "has stopped at step" in out
    assert live.wait(SECONDS) == 75
    code, out, err = said(capsys, "status", "small")
    assert "Interrupted: esper stop by" in out
    assert "pinned; vetoed" in out
    code, out, err = said(capsys, "pin", "small")
    assert code == 2
    assert "run 'small' is not being trained: it is Interrupted at step" in err
    assert "Commands" in said(capsys, "explain", "small")[1]


def test_a_run_without_a_bus_can_be_stopped_and_says_so_of_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    process = begin(tmp_path, "--no-bus")
    try:
        code, _, err = said(capsys, "pin", "small")
        assert code == 2
        assert "is trained without a bus, so nothing can be commanded but stop" in err
        code, out, err = said(capsys, "stop", "small")
        assert code == 0, err
        assert "was told by SIGTERM (it has no bus)" in out
        assert process.wait(SECONDS) == 75
    finally:
        finish(process)


def test_a_run_that_is_not_there_is_named_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("status",), ("stop",), ("pin",), ("veto", "somewhere")):
        code, _, err = said(capsys, *command, "smal")
        assert code == 2
        assert "no run 'smal' in runs" in err


def steered(command: Steer, slot: str | None = None, refused: str | None = None) -> Steered:
    return Steered(command=command, slot=slot, by="ada", message="m", refused=refused)


def test_what_holds_follows_from_the_commands_in_their_order() -> None:
    commands = [
        steered(Steer.PIN),
        steered(Steer.VETO, "a"),
        steered(Steer.VETO, "b"),
        steered(Steer.UNLOCK, "a"),
        steered(Steer.RESUME_GROWTH),
        steered(Steer.PAUSE_GROWTH),
        steered(Steer.VETO, "c", refused="there is no slot 'c'"),
    ]
    assert held(commands) == Held(paused=True, pinned=False, vetoed=("b",))
    assert in_words(commands[1]) == "ada vetoed slot a: its seeds go and it is locked"
    assert in_words(commands[-1]) == "ada commanded Veto c, without effect: there is no slot 'c'"


def test_a_command_for_an_earlier_run_of_the_same_name_is_left_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(3)
    subject = run_subject(LOCAL_NAMESPACE, "small", Channel.DIRECTIVE)
    identities = {"old": "0" * 64, "mine": journal.digests[0], "anyone": None}

    async def command(client: Client) -> None:
        for name, identity in identities.items():
            told = SteeringCommand(id=name, run="small", journal=identity, command=Steer.PIN)
            await publish_event(client, subject, CloudEvent.new(STEERING_TYPE, "/people/ada", told, name))

    with (
        BundledServer(tmp_path / "bus") as server,
        Bridge(server.address, LOCAL_NAMESPACE, "small", "/runs/local/small") as bridge,
    ):
        eventually(lambda: bridge.status().connected)
        post = Post(bridge, "small", journal.path)
        on_bus(server.address, command)
        arrived: list[str] = []

        def all_came() -> bool:
            post.refresh()
            arrived.extend(one.id for one in post)
            post.clear()
            return bridge.counts().received >= 3

        eventually(all_came)
    assert arrived == ["mine", "anyone"]
