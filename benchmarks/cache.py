"""Bars: what the cache of kernels does when its bound is smaller than what a run uses, and an insertion.

The trace is recorded: trainings of the digits with tournaments, in which the heuristic plants what it likes.
It is then played against a cache that holds half of the kernels' bytes, with real steps of a host between two
germinations, as many as there were.
"""

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.insertion import host, insert
from benchmarks.line import bar
from benchmarks.timing import percentile
from esper_runtime.artifact import KeyRing, esper_home
from esper_runtime.contracts import SeedChanged, UsableKernel, parse_run
from esper_runtime.kasmina import KernelCache, Stock
from esper_runtime.nissa import read_journal
from esper_runtime.tolaria import Trainer
from esper_runtime.tolaria.stocking import stocked
from esper_runtime.urza import Shelf

COMMAND = "python -m benchmarks.cache"
RUNS, STEPS = 6, 600
LOOKUPS = 20_000
SHARE = 0.5
"""Of the bytes of all kernels in the trace, what the cache may hold."""


@dataclass(frozen=True)
class Germination:
    """At which step of its run which kernel was asked for."""

    step: int
    kernel: str


def recorded(folder: Path) -> tuple[list[list[Germination]], list[str]]:
    """Germinations of each run, from their journals; and the kernels of all."""
    runs = []
    for number in range(RUNS):
        run = parse_run(_manifest(number), "the benchmark's manifest")
        Trainer(run, folder / str(number)).run()
        entries = read_journal(folder / str(number) / "journal.jsonl")
        runs.append(
            [
                Germination(entry.step, entry.event.kernel)
                for entry in entries
                if isinstance(entry.event, SeedChanged)
                and entry.event.before is None
                and entry.event.kernel is not None
            ]
        )
    return runs, list(dict.fromkeys(g.kernel for run in runs for g in run))


def _manifest(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": f"trace-{number}"},
        "spec": {
            "host": {"builtin": "mlp", "args": {"hidden": [8, 16, 24]}},
            "task": {"builtin": "digits"},
            "training": {
                "steps": STEPS,
                "batchSize": 32,
                "randomSeed": number,
                "optimizer": {"learningRate": 0.01},
            },
            "growth": {
                "controller": {"latest": 0.9, "earliest": 0.0, "trialShare": 20.0},
                "lifecycle": {
                    "plan": "Tournament",
                    "trainingSteps": 8,
                    "rampSteps": 2,
                    "graftingSteps": 8,
                    "embargoSteps": 4,
                },
                "budget": {"parameters": "8x", "concurrentSeeds": 8},
            },
        },
    }


def play(runs: list[list[Germination]], kernels: dict[str, UsableKernel], most_bytes: int) -> None:
    """Play the trace against a cold cache; write the lines."""
    home = esper_home()
    cache = KernelCache(Shelf(home), KeyRing(home).trust, most_bytes)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x = torch.randn(32, 64)
    missing, waits, longest, slept = [], [], 0, 0
    for run in runs:
        step = 0
        for germination in run:
            for _ in range(germination.step - step):
                net(x).sum().backward()  # type: ignore[no-untyped-call]
            step = germination.step
            name = kernels[germination.kernel].artifact
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            start = time.thread_time()
            found = cache.get(name)
            seconds = time.thread_time() - start
            slept += resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
            missing += [seconds] * (found is None)
            waited = 0
            while found is None:  # the seed is in Loading while the host goes on
                net(x).sum().backward()  # type: ignore[no-untyped-call]
                waited += 1
                found = cache.get(name)
            waits += [waited] * (waited > 0)
            longest = max(longest, waited)
    cache.close()
    counts = cache.counts()
    asked = sum(map(len, runs))
    first = len({g.kernel for run in runs for g in run})
    missed = len(waits)
    bar(
        "cache of half the bytes: share of germinations whose kernel was there",
        command=COMMAND,
        figure=round(1 - missed / asked, 3),
        bound="reported",
        passed=None,
        detail={
            "germinations": asked,
            "misses": missed,
            "first uses among them": first,
            "kernels": len(kernels),
            "bytes of all": sum(size_of(kernels[k]) for k in kernels),
            "bound": most_bytes,
            "evictions": counts.evictions,
            "loads": counts.loads,
            "most steps a seed waited": longest,
        },
    )
    bar(
        "lookups in which the thread slept (voluntary context switches), misses among them",
        command=COMMAND,
        figure=slept,
        bound="0",
        passed=slept == 0 and missed > 0,
        detail={"misses": missed, "longest miss, us of CPU": round(1e6 * max(missing), 1)},
    )


def size_of(kernel: UsableKernel) -> int:
    """Bytes that a loaded kernel counts for."""
    home = esper_home()
    return sum(f.bytes for f in Shelf(home).open(kernel.artifact, KeyRing(home).trust).manifest.files)


def lookups() -> None:
    """Cached lookups, and insertions of validated kernels; write the lines."""
    model = host()
    with stocked(model) as supply:
        supply.apply(0, model, lambda _: None, lambda: 0, ())
        assert model.stock is not None
        slots = [slot.place.interface for slot in model.slots.values()]
        pairs = [(b, i) for b in model.blueprints for i in slots if model.stock.find(b, i) is not None]
        seconds = []
        for turn in range(LOOKUPS):
            blueprint, interface = pairs[turn % len(pairs)]
            start = time.perf_counter()
            model.stock.cached(blueprint, interface)
            seconds.append(time.perf_counter() - start)
        median = 1e6 * percentile(seconds, 0.5)
        bar(
            "cached lookup, median",
            command=COMMAND,
            figure=round(median, 2),
            bound="<= 10 us",
            passed=median <= 10,
            detail={"p99 us": round(1e6 * percentile(seconds, 0.99), 2), "kernels": len(pairs)},
        )
        plain = insert(host())
        insert(model).tell("inserting a validated kernel, p99", COMMAND, plain)


def main() -> None:
    """Record the trace, play it, and measure lookups and insertions."""
    torch.set_num_threads(1)
    lookups()
    with tempfile.TemporaryDirectory() as folder:
        runs, names = recorded(Path(folder))
    home = esper_home()
    found, refused = Shelf(home).usable(names, KeyRing(home).trust)
    assert not refused, refused
    total = sum(size_of(kernel) for kernel in found.values())
    assert Stock(found.values()).admitted.keys() == found.keys()
    play(runs, found, int(SHARE * total))


if __name__ == "__main__":
    main()
