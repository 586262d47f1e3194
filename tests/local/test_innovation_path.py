"""The whole way of an invention on one machine: a training wants one; Karn, the planner, Tezzeret and
Urabrask each do their part in processes of their own, and the training has a tested kernel of it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import validate
from esper_runtime.contracts import BlueprintEntry, KernelRecord, KernelsArrived, KernelState, load_run
from esper_runtime.local.home import HomeBus
from esper_runtime.nissa import read_journal
from esper_runtime.oona import BusRole
from esper_runtime.urza import Library
from tests.cli.manifests import write
from tests.local.supervised import Running

CHANGES = (
    ("spec.training.steps", 10_000_000),
    ("spec.training.optimizer.learningRate", 1e-6),  # it is to go on for as long as it is looked at
    ("spec.training.validation.everySteps", 100_000),
    ("spec.growth.blueprints.include", ["low-rank", "karn-*"]),
    ("spec.growth.controller.earliest", 1.0),
    ("spec.growth.controller.latest", 1.0),
    ("spec.growth.controller.deadline", 1.0),
    ("spec.innovation.enabled", True),
    ("spec.innovation.blueprints", 2),
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    run = Running(write(tmp_path, *CHANGES), "--workers", "2")
    yield run
    if run.process.poll() is None:
        run.process.kill()
        run.process.wait()
    for record in run.left():
        os.kill(record.pid, signal.SIGKILL)


def arrived(run: Running) -> set[str]:
    """Ids of the invented blueprints of which the run has a kernel, by its journal."""
    if not run.folder.journal.exists():
        return set()
    events = [entry.event for entry in read_journal(run.folder.journal)]
    kernels = [kernel for event in events if isinstance(event, KernelsArrived) for kernel in event.kernels]
    return {kernel.blueprint for kernel in kernels if kernel.name.startswith("karn-")}


def library(home: Path) -> tuple[dict[str, BlueprintEntry], dict[str, KernelRecord]]:
    async def read(joined: HomeBus) -> tuple[dict[str, BlueprintEntry], dict[str, KernelRecord]]:
        async with await Library.connect(joined.address_of(BusRole.READER), KeyRing(home).trust) as found:
            return dict(await found.blueprints()), dict(await found.records())

    with HomeBus("test", home) as joined:
        return asyncio.run(read(joined))


@pytest.mark.alone  # the forge's workers stand back behind everything else that runs on their core
def test_a_run_gets_tested_kernels_of_blueprints_that_were_invented_for_it(
    running: Running, home: Path
) -> None:
    running.until("a kernel of an invented blueprint", lambda: arrived(running), 90)
    found = arrived(running)
    told = subprocess.run(
        [sys.executable, "-m", "esper_runtime.cli", "forge", "status", "--output", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    status = json.loads(told.stdout)
    assert running.end() == 75, running.said.read_text()
    assert "Traceback" not in running.said.read_text()
    entries, records = library(home)
    invented = {id_: entry for id_, entry in entries.items() if entry.invented and entry.wish is not None}
    assert found <= set(invented)
    assert 1 <= len(invented) <= 2, "no more than the manifest says"
    assert sum(status["invented"].values()) == len(invented)
    assert status["refusedProposals"] == {}
    for id_, entry in invented.items():
        validate(entry.graph)
        made = entry.graph.provenance
        assert made.generator == "karn-grammar-1"
        assert made.seed is not None
        assert set(made.parents) <= set(entries)
        assert entry.origin == made.origin.value
        assert entry.graph.name == f"karn-{id_.removeprefix('bp-')}"
    validated = {r.spec.blueprint for r in records.values() if r.state is KernelState.VALIDATED}
    assert found <= validated
    assert running.left() == []


def test_innovation_is_off_unless_the_manifest_says_so(tmp_path: Path) -> None:
    assert not load_run(write(tmp_path)).spec.innovation.enabled
    assert load_run(write(tmp_path, ("spec.innovation.enabled", True))).spec.innovation.blueprints == 16
