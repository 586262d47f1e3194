"""Integrity: a run whose shelf holds what must not run ends with the weights of one that has none of it.

``python -m benchmarks.unaffected``. A machine has the kernels of a run, each validated. On copies of it,
every one of them is spoilt in another way: a bit of the archive or of its words is flipped, words are
unsigned, signed by a stranger or another role, or say something else, archives are another kernel's; of one
blueprint all artifacts are revoked; or the key is that all verdicts were signed with. The run trains on
each; what can be made anew is, what is revoked is left out, as a manifest that excludes the blueprint
leaves it out. Nothing may differ but the journal, which names each refusal, as the report does.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.integrity import Kernel, Machine, attempts_at
from benchmarks.line import bar
from esper_runtime.artifact import KeyRing, decode_signed
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Compiled,
    Finished,
    KernelsArrived,
    Role,
    SeedChanged,
    canonical_json,
    parse_run,
)
from esper_runtime.nissa import read_journal, render_report
from esper_runtime.tolaria import Trainer

COMMAND = "python -m benchmarks.unaffected"
STEPS = 400
REVOKED = "low-rank"
"""The blueprint whose artifacts are revoked."""


def described(exclude: tuple[str, ...] = ()) -> Any:
    """A run that plants and keeps seeds."""
    spec = {
        "host": {"builtin": "mlp", "args": {"hidden": [6, 24, 6]}},
        "task": {"builtin": "digits"},
        "training": {"steps": STEPS, "batchSize": 50, "optimizer": {"learningRate": 0.01}},
        "growth": {
            "controller": {"latest": 0.9, "trialShare": 10.0},
            "budget": {"parameters": "6x"},
            "blueprints": {"exclude": list(exclude)},
        },
    }
    data = {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": "unaffected"},
    }
    return parse_run({**data, "spec": spec}, COMMAND)


class Trained:
    """A run that was trained on a machine, and what its journal and report say."""

    def __init__(self, home: Path, folder: Path, exclude: tuple[str, ...] = ()) -> None:
        os.environ["ESPER_HOME"] = str(home)
        finished = Trainer(described(exclude), folder).run().finished
        assert isinstance(finished, Finished)
        self.weights = finished.weights_digest
        entries = read_journal(folder / "journal.jsonl")
        self.planted = [
            (entry.step, e.slot, e.blueprint)
            for entry in entries
            if isinstance(e := entry.event, SeedChanged) and e.before is None
        ]
        arrived = [entry.event for entry in entries if isinstance(entry.event, KernelsArrived)]
        self.refused = {k: why for event in arrived for k, why in event.refused.items()}
        self.remade = {k: why for event in arrived for k, why in event.remade.items()}
        page = render_report(entries).replace("\u00a0", " ")
        self.reported = f"{len(self.refused | self.remade)} kernels refused:" in page


def kernels(machine: Machine) -> list[Kernel]:
    """All that lie on a machine's shelf."""
    graphs = {canonical_id(graph): graph for graph in catalogue().values()}
    found = []
    for name in machine.shelf.artifacts():
        words = json.loads((machine.shelf.folder / f"{name}.json").read_bytes())
        compiled, verdict = (decode_signed(canonical_json(words[part])) for part in ("compiled", "verdict"))
        statement = machine.trust.verify(compiled, Role.TEZZERET)
        assert isinstance(statement, Compiled)
        data = (machine.shelf.folder / f"{name}.kernel").read_bytes()
        graph = graphs[statement.spec.blueprint]
        found.append(Kernel(machine.shelf.folder, statement, compiled, verdict, data, graph))
    return found


def flip(path: Path, chosen: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    bit = chosen.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def spoil(machine: Machine, stranger: KeyRing) -> tuple[dict[str, str], list[str]]:
    """Spoil every kernel on the shelf; how, and which ones are revoked."""
    chosen = random.Random(4)
    there = kernels(machine)
    revoked = [kernel for kernel in there if kernel.blueprint.name == REVOKED]
    others = [kernel for kernel in there if kernel.blueprint.name != REVOKED]
    how: dict[str, str] = {}
    for number, kernel in enumerate(others):
        ways: dict[str, Callable[[], object]] = {
            "a bit of the archive": partial(flip, kernel.archive, chosen),
            "a bit of the words": partial(flip, kernel.words, chosen),
            "an archive cut short": partial(kernel.archive.write_bytes, kernel.data[:-512]),
        }
        ways |= attempts_at(machine, kernel, others[number - 1], stranger)
        name = list(ways)[number % len(ways)]
        ways[name]()
        how[kernel.statement.kernel] = name
    for kernel in revoked:
        machine.ring.revoke(kernel.statement.digest, "its numbers were forged")
    return how, [kernel.statement.kernel for kernel in revoked]


def main() -> None:
    """Train on all machines and write the lines."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clean = Trained(place / "clean", place / "runs" / "clean")
        without = Trained(place / "clean", place / "runs" / "without", (REVOKED,))

        shutil.copytree(place / "clean", place / "spoilt")
        machine = Machine(place / "spoilt")
        how, revoked = spoil(machine, KeyRing(place / "stranger"))
        spoilt = Trained(place / "spoilt", place / "runs" / "spoilt")
        named = {k for k in how if k in spoilt.remade} | {k for k in revoked if k in spoilt.refused}
        bar(
            "a run whose shelf holds nothing but artifacts that must be refused: weights, and refusals named",
            command=COMMAND,
            figure={"same weights": spoilt.weights == without.weights, "named": len(named)},
            bound=f"the same weights, all {len(how) + len(revoked)} refusals in journal and report",
            passed=spoilt.weights == without.weights
            and spoilt.planted == without.planted
            and len(named) == len(how) + len(revoked) > len(revoked) > 0
            and spoilt.reported
            and len(without.planted) > 0,
            control={"a run with all of its kernels": clean.weights == without.weights},
            detail={
                "kinds": len(set(how.values())),
                "made anew": len(spoilt.remade),
                "revoked": len(revoked),
                "seeds": len(spoilt.planted),
                "without a word": sorted(set(how) - named),
            },
        )

        shutil.copytree(place / "clean", place / "key")
        machine = Machine(place / "key")
        before = kernels(machine)
        machine.ring.rotate(Role.URABRASK, timedelta(days=1))
        machine.ring.revoke(before[0].verdict.signature.key, "it was stolen")
        key = Trained(place / "key", place / "runs" / "key")
        bar(
            "a run after the key of all its kernels' verdicts was revoked: weights, and refusals named",
            command=COMMAND,
            figure={"same weights": key.weights == clean.weights, "named": len(key.remade)},
            bound=f"the same weights, all {len(before)} refusals in journal and report",
            passed=key.weights == clean.weights and len(key.remade) == len(before) > 0 and key.reported,
            detail={"seeds": len(key.planted)},
        )


if __name__ == "__main__":
    main()
