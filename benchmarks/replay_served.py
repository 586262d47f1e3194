"""Runs under the supervisor that a real `esper tamiyo serve` decides over a real bus, killed on the way."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper_runtime.contracts import ControllerChanged, Decided, Finished, JournalEntry, Resumed
from esper_runtime.nissa import effective, scan_journal
from tests.local.supervised import Running

SECONDS = 180.0
PATIENCE = 0.4
"""Seconds: a service that is killed is back after about two, so that the embedded controller takes over."""

MLP: dict[str, Any] = {
    "host": {"builtin": "mlp", "args": {"hidden": [6, 6]}},
    "task": {"builtin": "digits"},
    "steps": 4000,
}
CNN: dict[str, Any] = {"host": {"builtin": "cnn1d"}, "task": {"builtin": "mnist1d"}, "steps": 1500}
TEXT: dict[str, Any] = {
    "host": {"builtin": "transformer", "args": {"width": 16, "heads": 2, "depth": 1}},
    "task": {"builtin": "tokens", "args": {"vocabulary": 12, "length": 8, "examples": 600}},
    "steps": 1200,
}


@dataclass(frozen=True)
class Served:
    """A run and what happens to it.

    Attributes:
        base: host, task and number of steps.
        kills: (share of the steps, role of the process that is killed with -9).
        steer: (share of the steps, command of `esper`).
        growth: settings beside those of all runs.
        seed: of the run's random numbers.
    """

    base: dict[str, Any]
    kills: tuple[tuple[float, str], ...] = ()
    steer: tuple[tuple[float, str], ...] = ()
    growth: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def manifest(self) -> dict[str, Any]:
        """The run's manifest."""
        return {
            "apiVersion": "esper.dev/v1alpha1",
            "kind": "MorphogeneticRun",
            "metadata": {"name": "served"},
            "spec": {
                "host": self.base["host"],
                "task": self.base["task"],
                "training": {
                    "steps": self.base["steps"],
                    "batchSize": 50,
                    "randomSeed": self.seed,
                    "optimizer": {"learningRate": 0.01},
                },
                "growth": {
                    "controller": {"everySteps": 5, "placement": "Service", "patienceSeconds": PATIENCE},
                    "budget": {"parameters": "4x"},
                    **self.growth,
                },
                "checkpoint": {"everySteps": 100},
            },
        }


CASES: dict[str, Served] = {
    "service": Served(MLP),
    "service; trainer killed": Served(MLP, kills=((0.5, "trainer"),), seed=1),
    "service killed": Served(MLP, kills=((0.4, "controller"),), seed=2),
    "service and trainer killed": Served(MLP, kills=((0.3, "controller"), (0.6, "trainer")), seed=3),
    "trainer killed three times": Served(
        MLP, kills=((0.3, "trainer"), (0.5, "trainer"), (0.7, "trainer")), seed=4
    ),
    "bus, service and trainer killed": Served(
        MLP, kills=((0.3, "bus"), (0.5, "controller"), (0.7, "trainer")), seed=5
    ),
    "service; pinned and killed": Served(MLP, kills=((0.6, "trainer"),), steer=((0.4, "pin"),), seed=6),
    "service; growth paused and resumed": Served(
        MLP, steer=((0.2, "pause-growth"), (0.35, "resume-growth")), seed=7
    ),
    "convolutional; service and trainer killed": Served(CNN, kills=((0.4, "controller"), (0.6, "trainer"))),
    "convolutional; trainer killed": Served(CNN, kills=((0.5, "trainer"),), seed=1),
    "transformer; service killed twice": Served(TEXT, kills=((0.3, "controller"), (0.6, "controller"))),
    "transformer; trainer killed": Served(TEXT, kills=((0.5, "trainer"),), seed=1),
}


def recorded(case: Served, folder: Path) -> Path:
    """Run a case to its end under the supervisor; returns the run's folder."""
    folder.mkdir(parents=True)
    manifest = folder / "run.json"
    manifest.write_text(json.dumps(case.manifest()))
    run = Running(manifest, name="served")
    try:
        due = sorted([(at, "kill", what) for at, what in case.kills] + [(a, "do", w) for a, w in case.steer])
        for share, how, what in due:
            run.until(f"step {share} of the run", lambda at=share: _step(run) >= at * case.base["steps"])
            if how == "kill":
                run.until(f"a {what}", lambda role=what: run.role(role))
                run.kill(what)
            else:
                subprocess.run(
                    [sys.executable, "-m", "esper_runtime.cli", what, "served"],
                    cwd=folder, check=True, capture_output=True,
                )  # fmt: skip
        code = run.process.wait(SECONDS)
        if code != 0:
            raise RuntimeError(f"esper run ended with {code}: {run.said.read_text()[-2000:]}")
    finally:
        if run.process.poll() is None:
            run.end()
        for record in run.left():
            os.kill(record.pid, 9)
    return run.folder.path


def _step(run: Running) -> int:
    """The furthest step in a journal that is being written."""
    return max((entry.step for entry in scan_journal(run.folder.journal).entries), default=0)


def what_was_decided(entries: list[JournalEntry]) -> dict[str, int]:
    """Counts from the journal of a run; directives and seeds are those of the history that counts."""
    kept = [entry.event for entry in effective(entries)]
    decided = [e for e in kept if isinstance(e, Decided) and e.controller.endswith("(service)")]
    return {
        "decisionsOfTheService": len(decided),
        "directivesOfTheService": sum(len(event.directives) for event in decided),
        "handovers": sum(isinstance(entry.event, ControllerChanged) for entry in entries),
        "resumptions": sum(isinstance(entry.event, Resumed) for entry in entries),
        "complete": int(any(isinstance(event, Finished) for event in kept)),
    }
