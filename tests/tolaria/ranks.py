"""One rank of a distributed run as a process of its own, and what starts a group of them.

Each rank leaves in FOLDER.rankN what it saw: losses by step, and after every structural change a digest of
all weights.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper_runtime.contracts import JournalEntry, PeerLostError, SeedChanged
from esper_runtime.tolaria import Trainer
from esper_runtime.tolaria.loop import Loop
from tests.tolaria.forks import Fork, Process
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Script, digits, manifest
from tests.tolaria.tournaments import SMALL, Tournament

PLANTS = {"immediate": IMMEDIATE, "isolated": ISOLATED}
TOO_LARGE = 2.0**24
"""A scale of losses at which Float16 overflows."""
ROOT = Path(__file__).resolve().parents[2]


def plain() -> nn.Module:
    """A host whose steps draw no random numbers and keep no statistics."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)
    )


def run_of(settings: dict[str, Any]) -> Any:
    """The manifest of a group's run."""
    training = {"workers": {"count": settings.get("ranks", 2), "timeoutSeconds": 20}}
    host = {"entrypoint": f"tests.tolaria.{settings.get('host', 'runs:noisy')}"}
    return manifest(
        settings.get("steps", 60),
        "ranks",
        host,
        training={
            "validation": {"everySteps": 10},
            **({"optimizer": settings["optimizer"]} if "optimizer" in settings else {}),
            "device": settings.get("device", "cpu"),
            "batchSize": settings.get("batch", 32),
            "precision": settings.get("precision", "Float32"),
            **training,
        },
        growth={
            **SMALL,
            "blueprints": {"exclude": settings.get("exclude", [])},
        },
        checkpoint={"everySteps": settings.get("checkpoint", 20), "keep": 3},
    )


class Witness:
    """Keeps what a rank sees, in a file that outlives its death; dies or is stopped where told."""

    def __init__(self, path: Path, settings: dict[str, Any], rank: int) -> None:
        self.path, self.rank = path, rank
        self.die_at = settings.get("die", {}).get(str(rank))
        self.term_at = settings.get("term", {}).get(str(rank))
        self.overflow_at = settings.get("overflow")
        self.trainer: Trainer | None = None
        self.file = path.open("a")

    def on_step(self, step: int, loss: float) -> None:
        """Note the loss; end where told."""
        learner = self.trainer._loop.parts.learner  # type: ignore[union-attr]
        self.note({"step": step, "loss": loss, "scales": learner.scales()})
        if step == self.overflow_at:
            learner.set_scales([TOO_LARGE, 0, TOO_LARGE])
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.term_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing to keep."""

    def on_event(self, entry: JournalEntry) -> None:
        """Note what happens to seeds."""
        if isinstance(entry.event, SeedChanged):
            self.note({"at": entry.step, "seed": entry.event.seed, "after": str(entry.event.after)})

    def note(self, what: dict[str, Any]) -> None:
        """Add a line."""
        self.file.write(json.dumps(what) + "\n")
        self.file.flush()


def main(folder: Path, settings: dict[str, Any]) -> int:
    """Train as the rank that the environment names."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    witness = Witness(folder.with_name(f"{folder.name}.rank{rank}"), settings, rank)
    noticed = Loop._noticed

    def watched(loop: Loop, changes: Any) -> Any:
        result = noticed(loop, changes)
        if changes.moved:
            digest = hashlib.sha256()
            for name, tensor in sorted(loop.parts.model.state_dict().items()):
                digest.update(name.encode() + tensor.cpu().numpy().tobytes())
            witness.note({"changed": loop.step, "weights": digest.hexdigest()})
        if settings.get("spoil") == loop.step and rank == 1:
            with torch.no_grad():
                next(loop.parts.model.parameters()).add_(1e-3)
        return result

    Loop._noticed = watched  # type: ignore[method-assign, assignment]
    plants = [(step, PLANTS[plan]) for step, plan in settings.get("plants", ())]
    task = None
    if "poison" in settings:

        def poison(losses: Any, batch: Any) -> Any:
            return losses * float("nan") if bool((batch["number"] == settings["poison"]).any()) else losses

        task = Poisoned(digits(), poison)
    script = Tournament() if settings.get("tournament") else Script(*plants, cull=settings.get("cull", ()))
    trainer = Trainer(run_of(settings), folder, witness, task=task, controller=script)
    witness.trainer = trainer
    signal.signal(signal.SIGTERM, lambda *_: trainer.request_stop("SIGTERM"))
    try:
        return 75 if trainer.run().outcome == "Interrupted" else 0
    except PeerLostError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(76)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(command: list[str], ranks: int = 2, **environment: str) -> list[subprocess.Popen[str]]:
    """Start a group of processes with a command for the interpreter."""
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for own in environments(ranks)
    ]


def environments(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank of a new group."""
    port = str(free_port())
    common = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def group(folder: Path, settings: dict[str, Any]) -> list[Process]:
    """Start the ranks of a run."""
    return [Fork(main, (folder, settings), own) for own in environments(settings.get("ranks", 2))]


def ends(processes: Sequence[Process], seconds: float = 180) -> tuple[list[int], list[str], float]:
    """Exit codes and errors of a group, and the seconds from the first end to the last."""
    times: dict[int, float] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(times) < len(processes):
            assert time.monotonic() < deadline, f"only ranks {sorted(times)} have ended"
            for rank, process in enumerate(processes):
                if rank not in times and process.poll() is not None:
                    times[rank] = time.monotonic()
            time.sleep(0.01)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    texts = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], texts, max(times.values()) - min(times.values())


def seen(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank saw: losses (the last time that a step was done counts), changes and weights after them."""
    lines = [json.loads(line) for line in folder.with_name(f"{folder.name}.rank{rank}").open()]
    return {
        "losses": {line["step"]: line["loss"] for line in lines if "step" in line},
        "scales": {line["step"]: line["scales"] for line in lines if "step" in line},
        "life": [(line["at"], line["seed"], line["after"]) for line in lines if "at" in line],
        "weights": [(line["changed"], line["weights"]) for line in lines if "changed" in line],
    }
