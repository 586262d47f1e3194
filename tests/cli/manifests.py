"""Manifests for the tests of the command line: a good one, and ways to write changed ones."""

import copy
from pathlib import Path
from typing import Any

import yaml

from esper_runtime.contracts import load_run
from esper_runtime.local import run_manifest

GOOD: dict[str, Any] = {
    "apiVersion": "esper.dev/v1alpha1",
    "kind": "MorphogeneticRun",
    "metadata": {"name": "small"},
    "spec": {
        "host": {"builtin": "mlp", "args": {"hidden": [6, 6]}},
        "task": {"builtin": "digits"},
        "training": {"steps": 60, "batchSize": 50, "optimizer": {"learningRate": 0.01}},
    },
}

ABSENT = object()
"""Given as a value: the field is left out."""


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """GOOD with fields set by their dotted paths, or left out."""
    data = copy.deepcopy(GOOD)
    for path, value in changes:
        *parents, last = path.split(".")
        place = data
        for name in parents:
            place = place.setdefault(name, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return data


def write(folder: Path, *changes: tuple[str, Any], name: str = "run.yaml") -> Path:
    """Write GOOD with changes as a manifest file."""
    path = folder / name
    path.write_text(yaml.safe_dump(changed(*changes), sort_keys=False))
    return path


def trained(path: Path, runs_dir: Path = Path("runs")) -> int:
    """The trainer's part of `esper run` in this process: for tests of what comes after a run."""
    return run_manifest(load_run(path), path, runs_dir)
