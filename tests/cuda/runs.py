"""Runs on the GPU."""

from pathlib import Path
from typing import Any

import torch

from esper_runtime.contracts import MorphogeneticRun
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.replay import Replayed, replay_run
from tests.tolaria.runs import manifest

DEVICE = torch.device("cuda")
GROWTH: dict[str, Any] = {
    "controller": {"everySteps": 5},
    "budget": {"parameters": "6x"},
    "gates": {"validationExamples": 64},
}


def on_gpu(
    steps: int, host: Any = None, training: dict[str, Any] | None = None, **spec: Any
) -> MorphogeneticRun:
    """A manifest of `tests.tolaria.runs` for the GPU."""
    given = {**(training or {}), "device": DEVICE.type}
    return manifest(steps, host=host, training=given, **{"growth": GROWTH, **spec})


def replayed(folder: Path) -> Replayed:
    """Replay a run beside it."""
    trainer, comparison = replay_run(RunFolder(folder))
    trainer.run()
    return comparison.outcome()
