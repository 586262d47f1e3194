"""A trainer on the bus: what it knows of the forge from its environment, and how it leaves."""

import os
import threading
from pathlib import Path

import pytest

from esper_runtime.local.home import FORGE_VARIABLE, forge_table
from esper_runtime.local.on_bus import connected, library_link
from esper_runtime.local.processes import ProcessRecord, ProcessTable, record_of, write_table
from esper_runtime.oona import LIBRARY_VARIABLE, BundledServer
from tests.oona.bus import Journal, eventually, kill, messages


def made() -> bool:
    link = library_link("run")
    assert link is not None
    return link.made()


def test_without_a_forge_of_its_own_a_run_looks_whether_another_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "bus.json"))
    monkeypatch.setenv(FORGE_VARIABLE, "")
    assert made(), "its own forge works"
    monkeypatch.setenv(FORGE_VARIABLE, str(forge_table(tmp_path)))
    assert not made()
    write_table(forge_table(tmp_path), ProcessTable(supervisor=record_of("forge", os.getpid())))
    assert made(), "that of another run does"
    dead = ProcessRecord(role="forge", pid=os.getpid(), started=1)
    write_table(forge_table(tmp_path), ProcessTable(supervisor=dead))
    assert not made()


def test_a_bus_that_dies_as_the_run_ends_gets_the_rest_of_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with BundledServer(tmp_path / "bus") as server:
        back = threading.Timer(1.0, server.start)
        with connected(server.address, "run", journal.path, print) as bridge:
            assert bridge is not None
            eventually(lambda: bridge.status().connected)
            kill(server)
            eventually(lambda: not bridge.status().connected)
            journal.grow(3)
            back.start()
        back.join()
        copied = messages(server.address, "EVENTS", "esper.run.local.run.journal")
    assert len(copied) == 3
