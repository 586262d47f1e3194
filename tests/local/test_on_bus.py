"""What a trainer knows of the forge from its environment."""

import os
from pathlib import Path

import pytest

from esper_runtime.local.home import FORGE_VARIABLE, forge_table
from esper_runtime.local.on_bus import library_link
from esper_runtime.local.processes import ProcessRecord, ProcessTable, record_of, write_table
from esper_runtime.oona import LIBRARY_VARIABLE


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
