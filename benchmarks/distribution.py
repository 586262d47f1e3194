"""Bars: two ranks stay equal while the model grows, survive kills, and train like one rank.

Every group is two processes over gloo on this machine. A last line compares the one exchange a step with
torch's DistributedDataParallel on the same model.
"""

import json
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.line import bar
from esper_runtime.contracts import Finished, Resumed, Workers
from esper_runtime.nissa import read_journal
from esper_runtime.tolaria import WEIGHTS
from esper_runtime.tolaria.agreement import average_gradients
from esper_runtime.tolaria.group import join
from tests.tolaria.ranks import ends, group, seen, start

COMMAND = "python -m benchmarks.distribution"
KILLS = 10
STEPS = 80
GROWING = {
    "steps": STEPS,
    "plants": [(5, "immediate"), (25, "isolated"), (50, "immediate")],
    "cull": ["s1"],
    "checkpoint": 10,
}
TIMED_STEPS, TIMED_ROUNDS, WIDTH = 30, 5, 512


def main() -> None:
    """Print all lines."""
    if sys.argv[1:] == ["timed"]:
        timed()
        return
    with tempfile.TemporaryDirectory(prefix="esper-ranks-") as name:
        place = Path(name)
        equal_while_growing(place)
        kills(place)
        halves(place)
    exchange()


def trained(folder: Path, settings: dict[str, Any]) -> tuple[list[int], float]:
    """Train a group; exit codes and the seconds between the first end and the last."""
    codes, _, seconds = ends(group(folder, settings), 300)
    return codes, seconds


def equal_while_growing(place: Path) -> None:
    """Two ranks: the same changes at the same steps, and equal weights after each."""
    codes, _ = trained(place / "whole", GROWING)
    trained(place / "other", {**GROWING, "plants": [(10, "immediate")]})
    first, second = (seen(place / "whole", rank) for rank in (0, 1))
    changes = len(first["weights"])
    equal = sum(a == b for a, b in zip(first["weights"], second["weights"], strict=False))
    bar(
        "2 ranks grow: weights equal on both after every structural change",
        command=COMMAND,
        figure=f"{equal} of {changes} changes",
        bound="all, and all losses and lives of seeds equal",
        passed=codes == [0, 0] and changes >= 5 and first == second,
        control={"another script: other weights": seen(place / "other", 0)["weights"] != first["weights"]},
        detail={"life": first["life"]},
    )


def kills(place: Path) -> None:
    """A random rank is killed at a random step; a fresh group ends like the unbroken one."""
    draw = random.Random(0)
    whole = _finished(place / "whole")
    recovered, seconds, victims = 0, [], []
    for number in range(KILLS):
        folder, rank, step = place / f"kill{number}", draw.randrange(2), draw.randrange(3, STEPS - 2)
        codes, after = trained(folder, {**GROWING, "die": {str(rank): step}})
        victims.append((rank, step))
        died = codes[rank] == -signal.SIGKILL and codes[1 - rank] == 76
        seconds.append(after)
        codes, _ = trained(folder, GROWING)
        resumed = [e for e in read_journal(folder / "journal.jsonl") if isinstance(e.event, Resumed)]
        same = _finished(folder).weights_digest == whole.weights_digest
        recovered += died and codes == [0, 0] and len(resumed) == 1 and same
    bar(
        "a random rank of 2 is killed with -9: a fresh group ends with the weights of the unbroken run",
        command=COMMAND,
        figure=f"{recovered} of {KILLS}; the other rank ended within {max(seconds):.2f} s with code 76",
        bound=f"{KILLS} of {KILLS}, within 10 s",
        passed=recovered == KILLS and max(seconds) < 10,
        control={
            "another script: other weights": _finished(place / "other").weights_digest != whole.weights_digest
        },
        detail={"(rank, step)": victims},
    )


def halves(place: Path) -> None:
    """Two ranks with half a batch each against one with the whole, without dropout and batch norm."""
    settings = {**GROWING, "host": "ranks:plain", "exclude": ["*bn*", "*norm*", "*dropout*"]}
    found = {}
    for name, ranks, optimizer in (
        ("sgd", 1, "SGD"),
        ("sgd", 2, "SGD"),
        ("adamw", 1, "AdamW"),
        ("adamw", 2, "AdamW"),
    ):
        folder = place / f"{name}{ranks}"
        rate = 0.05 if optimizer == "SGD" else 0.01
        optimized = {**settings, "ranks": ranks, "optimizer": {"name": optimizer, "learningRate": rate}}
        trained(folder, optimized)
        found[name, ranks] = (
            seen(folder, 0)["losses"],
            safetensors.torch.load_file(folder / "model" / WEIGHTS),
        )
    differences = {}
    for name in ("sgd", "adamw"):
        (losses, weights), (other_losses, other_weights) = found[name, 1], found[name, 2]
        loss = max(abs(other_losses[step] - value) / abs(value) for step, value in losses.items())
        weight = max(
            ((other_weights[key] - value).norm() / value.norm().clamp_min(1e-12)).item()
            for key, value in weights.items()
            if value.is_floating_point()
        )
        differences[name] = {"losses": loss, "weights": weight}
    largest = max(value for pair in differences.values() for value in pair.values())
    a, b = found["sgd", 1][0], found["adamw", 1][0]
    bar(
        "2 ranks x half the batch against 1 x the whole: largest relative difference of losses and weights",
        command=COMMAND,
        figure=largest,
        bound="<= 1e-5 after 80 growing float32 steps (sums in another order)",
        passed=largest <= 1e-5,
        control={"SGD against AdamW, losses": max(abs(b[s] - a[s]) / abs(a[s]) for s in a)},
        detail=differences,
    )


def exchange() -> None:
    """The one exchange of a step against DistributedDataParallel, interleaved, on the same model."""
    processes = start(["-m", "benchmarks.distribution", "timed"])
    out, _ = processes[0].communicate(timeout=300)
    for process in processes:
        process.wait(60)
    times = json.loads(out.splitlines()[-1])
    ratio = times["one exchange"] / times["ddp"]
    bar(
        "step time of the one exchange over DistributedDataParallel's, 2 ranks, gloo",
        command=COMMAND,
        figure=round(ratio, 3),
        bound="<= 1.1 (finding: the reason for not wrapping the host)",
        passed=ratio <= 1.1,
        control={"one exchange against itself": round(times["again"] / times["one exchange"], 3)},
        detail={name: round(value * 1e3, 2) for name, value in times.items()} | {"unit": "ms, median"},
    )


def timed() -> None:
    """As one of two ranks: time both ways."""
    torch.set_num_threads(1)
    ranks = join(Workers(count=2), torch.device("cpu"))
    torch.manual_seed(0)

    def model() -> nn.Sequential:
        layers = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(WIDTH, 10))

    plain, wrapped = model(), DistributedDataParallel(model())
    x, y = torch.randn(32, WIDTH), torch.randint(0, 10, (32,))
    parameters = list(plain.parameters())

    def ours() -> None:
        loss = nn.functional.cross_entropy(plain(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(ranks, parameters, [], [loss, loss.new_tensor(0.0), loss.new_tensor(0.0)])
        plain.zero_grad()

    def theirs() -> None:
        loss = nn.functional.cross_entropy(wrapped(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        told = torch.stack((loss.detach(), loss.new_tensor(0.0), loss.new_tensor(0.0)))
        dist.all_reduce(told)
        told.tolist()
        wrapped.zero_grad()

    found: dict[str, list[float]] = {"one exchange": [], "ddp": [], "again": []}
    for _ in range(TIMED_ROUNDS):
        for name, step in (("one exchange", ours), ("ddp", theirs), ("again", ours)):
            for _ in range(TIMED_STEPS):
                begin = time.perf_counter()
                step()
                found[name].append(time.perf_counter() - begin)
    if ranks.leads:
        print(json.dumps({name: statistics.median(values) for name, values in found.items()}))
    ranks.close()


def _finished(folder: Path) -> Finished:
    (last,) = [e.event for e in read_journal(folder / "journal.jsonl") if isinstance(e.event, Finished)]
    return last


if __name__ == "__main__":
    main()
