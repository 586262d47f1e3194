"""The whole path on one machine: the forge makes a run's kernels while everything around it dies."""

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.contracts import (
    Finished,
    KernelRecord,
    KernelsArrived,
    KernelState,
    KernelSummary,
    SeedChanged,
)
from esper_runtime.local.home import HomeBus, forge_table
from esper_runtime.local.processes import ProcessRecord, read_table, record_of
from esper_runtime.nissa import read_journal
from esper_runtime.oona import BusRole
from esper_runtime.urza import Library, Shelf
from tests.cli.manifests import write
from tests.local.supervised import SECONDS, Running

KERNELS = 2
CHANGES = (
    ("spec.training.steps", 300),
    ("spec.growth.budget.parameters", "4x"),
    ("spec.growth.blueprints.include", ["mlp-4", "low-rank"]),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was ever made."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return KeyRing(tmp_path / "home").home


@pytest.fixture
def others(home: Path) -> Iterator[IO[str]]:
    """Held, another run makes kernels on this machine: one that grows impatient makes none itself."""
    with (Shelf(home).folder / ".forging").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@pytest.fixture
def running(home: Path, others: IO[str], tmp_path: Path) -> Iterator[Running]:
    run = Running(write(tmp_path, *CHANGES), "--workers", "2")
    yield run
    if run.process.poll() is None:
        run.process.kill()
        run.process.wait()
    for record in run.left():
        os.kill(record.pid, signal.SIGKILL)


def worker(run: Running, home: Path) -> ProcessRecord | None:
    """A living worker of the forge that lives."""
    table = read_table(forge_table(home))
    if table is None or not table.supervisor.alive:
        return None
    run.seen.update(table.children)
    return next((child for child in table.children if child.alive), None)


def bus(run: Running, home: Path) -> ProcessRecord | None:
    """The server of the machine's library, while it lives."""
    try:
        pid = int(json.loads((home / "bus" / "server.json").read_text())["pid"])
    except (OSError, ValueError):
        return None
    record = record_of("library", pid)
    run.seen.add(record)
    return record if record.alive else None


def records(home: Path) -> dict[str, KernelRecord]:
    """What the machine's library knows, once the run is over."""

    async def read(joined: HomeBus) -> dict[str, KernelRecord]:
        async with await Library.connect(joined.address_of(BusRole.READER), KeyRing(home).trust) as library:
            return dict(await library.records())

    with HomeBus("test", home) as joined:
        return asyncio.run(read(joined))


@pytest.mark.alone  # the forge's workers stand back behind everything else that runs on their core
def test_a_run_gets_its_kernels_though_forge_bus_and_worker_are_killed_meanwhile(
    running: Running, home: Path, others: IO[str]
) -> None:
    running.until("a worker", lambda: worker(running, home))
    running.kill("forge")
    server = bus(running, home)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    running.until("another bus", lambda: bus(running, home) not in (None, server))
    running.until("a worker of the second forge", lambda: worker(running, home))
    one = worker(running, home)
    assert one is not None
    os.kill(one.pid, signal.SIGKILL)
    running.until("tested kernels", lambda: len(Shelf(home).artifacts()) == KERNELS, 150)
    fcntl.flock(others, fcntl.LOCK_UN)
    assert running.process.wait(SECONDS) == 0, running.said.read_text()
    said = running.said.read_text()
    assert "Traceback" not in said
    events = [entry.event for entry in read_journal(running.folder.journal)]
    assert isinstance(events[-1], Finished)
    kernels: dict[str, KernelSummary] = {
        kernel.kernel: kernel for e in events if isinstance(e, KernelsArrived) for kernel in e.kernels
    }
    known = records(home)
    assert len(kernels) == KERNELS
    assert {k.digest for k in kernels.values()} == {known[name].digest for name in kernels}
    assert all(known[name].state is KernelState.VALIDATED for name in kernels)
    used = {event.kernel for event in events if isinstance(event, SeedChanged) and event.kernel}
    assert used
    report = running.folder.report.read_text()
    for name in used:
        tested = known[name].report
        assert tested is not None
        assert name in report
        assert kernels[name].figures["forward_us"] == tested.measurements["forward_us"].median
    assert running.left() == []
