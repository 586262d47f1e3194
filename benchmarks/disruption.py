"""Zero disruption: a training beside a forge that is never without work, against another load like it.

``python -m benchmarks.disruption [WIDTH]``. `esper run` trains a host of 20 ms a step and one of 60 ms on one
thread, with its library and a forge of one worker of each role, as everybody gets them. In turns,

- the forge has more to do than it can: blueprints are entered for the run's slots, from which it makes wishes
  of its own, gets kernels and admits them; and compiled kernels are wished for;
- `benchmarks.equal_load` works instead, as nice as the forge's workers and on the same core; twice, so that
  the same load is compared with itself.

The host writes down when each of its steps begins. What counts is the 50th and the 99th percentile of the
steps of all blocks of a kind; ratios of each round are shown beside. Afterwards `strace` follows the training
thread while the forge is saturated once more, and beside the other load.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.calls import TRACED, calls_of, figures
from benchmarks.line import bar
from benchmarks.stamped_host import MOMENT, STAMPS, host
from benchmarks.timing import percentile
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import (
    Blueprint,
    Interface,
    InterfaceKind,
    KernelsArrived,
    KernelState,
    KernelWish,
    Node,
    Origin,
    Pipeline,
    Provenance,
)
from esper_runtime.kasmina import wrap
from esper_runtime.kasmina.kernels import current_target, spec_for
from esper_runtime.local import RunFolder
from esper_runtime.local.cores import forge_cores
from esper_runtime.local.forge.workers import NICE
from esper_runtime.local.home import HomeBus
from esper_runtime.local.processes import TRAINER, read_table
from esper_runtime.nissa import read_journal
from esper_runtime.oona import BusRole, connect, disconnect
from esper_runtime.urza import Library

COMMAND = "python -m benchmarks.disruption"
WIDTHS = {512: 4, 960: 3}
"""Of the hosts, and how many rounds each gets."""
BATCH = 256
BLOCK_SECONDS, SETTLE_SECONDS, TRACED_SECONDS = 12.0, 1.5, 15.0
BEHIND = 30
"""Kernels that are at least waiting while the forge is saturated."""
P50, P99_MORE = 1.05, 0.1
UNDER_WAY = (
    KernelState.PENDING,
    KernelState.COMPILING,
    KernelState.PENDING_BENCHMARK,
    KernelState.BENCHMARKING,
)
NAME = "disruption"


@dataclass
class Block:
    """A stretch of time under one kind of load."""

    kind: str
    begin: float
    end: float = 0.0
    busy: tuple[float, ...] = ()
    """Of each core, the share of the time that it worked."""
    steps: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Of its steps, in ms."""
        return 1000 * percentile(self.steps, share)


def described(width: int) -> dict[str, Any]:
    """A run that does nothing but train, for much longer than it is measured."""
    growth = {
        "controller": {"everySteps": 1_000_000, "earliest": 0.9, "latest": 0.99},
        "blueprints": {"include": ["mlp-4", "load-*"]},
    }
    spec = {
        "host": {"entrypoint": "benchmarks.stamped_host:host", "args": {"width": width}},
        "task": {"builtin": "digits"},
        "training": {
            "steps": 2_000_000,
            "batchSize": BATCH,
            "validation": {"everySteps": 1_000_000},
            "optimizer": {"learningRate": 1e-6},  # else it has learnt all by heart, and its numbers go bad
        },
        "growth": growth,
        "checkpoint": {"everySteps": 1_000_000},
    }
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": NAME},
        "spec": spec,
    }


def blueprints() -> Iterator[Blueprint]:
    """One after the other, none like another."""
    for number in range(10_000):
        hidden = Node(id="hidden", op="linear", inputs=("input",), attributes={"width": 3 + number})
        act = Node(id="activation", op="relu", inputs=("hidden",))
        tail = Node(id="tail", op="linear", inputs=("activation",), attributes={"width": "Cout"})
        yield Blueprint(
            name=f"load-{number}",
            interface=InterfaceKind.FEATURES,
            nodes=(hidden, act, tail),
            output="tail",
            description="one of many",
            provenance=Provenance(origin=Origin.USER),
        )


class Run:
    """`esper run` with its forge, timed from outside. A context manager: leaving it stops the run."""

    def __init__(self, place: Path, width: int) -> None:
        self.place, self.width = place, width
        self.home = place / "home"
        self.folder = RunFolder(place / "runs" / NAME)
        self.stamps = place / "stamps"
        self.slots: list[Interface] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Run":
        self.place.mkdir()
        manifest = self.place / "run.yaml"
        manifest.write_text(yaml.safe_dump(described(self.width)))
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), "--workers", "1"],
            cwd=self.place,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                STAMPS: str(self.stamps),
                "PYTHONPATH": str(root),
                "ESPER_HOME": str(self.home),
            },
        )
        model = wrap(host(self.width), torch.randn(BATCH, 1, 8, 8))
        self.slots = list({slot.place.interface: None for slot in model.slots.values()})
        until = time.monotonic() + 120
        while self.steps() < 100:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the run did not begin; exit code {self._process.returncode}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    @property
    def trainer(self) -> int:
        """Process id, and thread id of the training thread."""
        table = read_table(self.folder.processes)
        assert table is not None
        (found,) = [child.pid for child in table.children if child.role == TRAINER]
        return found

    def must_live(self) -> None:
        """Raise where the run has ended."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the run has ended before it was measured")

    def steps(self) -> int:
        """Steps so far."""
        return self.stamps.stat().st_size // MOMENT.size if self.stamps.exists() else 0

    def fill(self, blocks: list[Block]) -> None:
        """Give each block its steps."""
        moments = [moment for (moment,) in struct.iter_unpack(MOMENT.format, self.stamps.read_bytes())]
        for before, after in itertools.pairwise(moments):
            for block in blocks:
                if block.begin <= before and after <= block.end:
                    block.steps.append(after - before)


class Feeder:
    """Sees to it that the forge is never without work, or waits until it has none."""

    def __init__(self, planner: Library, training: Library, run: Run) -> None:
        self._planner, self._training, self._run = planner, training, run
        self._blueprints = blueprints()
        self._compiled = 0

    async def behind(self) -> int:
        """Kernels that are wished for and have no verdict yet."""
        self._run.must_live()
        records = await self._planner.records()
        wishes = await self._planner.wishes()
        return sum(k not in records or records[k].state in UNDER_WAY for k in wishes)

    async def validated(self) -> int:
        """Kernels that have passed."""
        records = (await self._planner.records()).values()
        return sum(record.report is not None and record.report.passed for record in records)

    async def feed(self) -> None:
        """Enter blueprints where little is waiting; the run wishes for their kernels itself."""
        if await self.behind() < BEHIND:
            for _ in range(6):
                await self._planner.enter(next(self._blueprints), Origin.USER.value)

    async def wish_for_compiled(self) -> None:
        """Wish for one compiled kernel of the host's widest slot."""
        graph = next(self._blueprints)
        await self._planner.enter(graph, Origin.USER.value)
        slot = max(self._run.slots, key=lambda slot: slot.width_in + slot.width_out)
        spec = spec_for(canonical_id(graph), slot, current_target(), Pipeline.STANDARD)
        await self._training.wish(KernelWish(spec=spec, urgent=True))

    async def saturate(self) -> None:
        """Come back when workers are at work and more is waiting."""
        before = await self.validated()
        await self.wish_for_compiled()
        while await self.validated() - before < 3:
            await self.feed()
            await asyncio.sleep(0.2)

    async def keep(self, seconds: float) -> int:
        """Keep it saturated; the least that was waiting."""
        until, least = time.monotonic() + seconds, 10**9
        while time.monotonic() < until:
            await self.feed()
            least = min(least, await self.behind())
            await asyncio.sleep(0.5)
        return least

    async def drain(self) -> None:
        """Come back when nothing is waiting."""
        while await self.behind():
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def fed(home: HomeBus, run: Run) -> AsyncIterator[Feeder]:
    """A feeder on the machine's library."""
    keyring = KeyRing(home.home)
    os.sched_setaffinity(0, forge_cores())  # what measures is no part of what is measured
    clients = [await connect(home.address_of(role), "bench") for role in (BusRole.PLANNER, BusRole.TRAINING)]
    try:
        planner, training = (Library(client, keyring.trust) for client in clients)
        await planner.refresh()
        yield Feeder(planner, training, run)
    finally:
        for client in clients:
            await disconnect(client)


@contextlib.contextmanager
def equal_load() -> Iterator[None]:
    """Inside, the other load works."""

    def modest() -> None:
        os.sched_setaffinity(0, forge_cores())
        os.setpriority(os.PRIO_PROCESS, 0, NICE)

    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.equal_load"],
        stdout=subprocess.PIPE,
        preexec_fn=modest,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait()


def busy() -> list[tuple[float, float]]:
    """For each core: jiffies that it worked, and all."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")][
        1:
    ]
    return [(sum(map(int, r[1:])) - int(r[4]) - int(r[5]), sum(map(int, r[1:]))) for r in rows]


async def block(kind: str, work: Callable[[], Any]) -> Block:
    """Measure while ``work`` goes on."""
    await asyncio.sleep(SETTLE_SECONDS)
    before, found = busy(), Block(kind, time.monotonic())
    await work()
    found.end = time.monotonic()
    found.busy = tuple(round((b - a) / (d - c), 2) for (a, c), (b, d) in zip(before, busy(), strict=True))
    return found


async def measured(run: Run, feeder: Feeder, rounds: int) -> tuple[list[Block], list[int]]:
    """Blocks in turns, and the least that was waiting in those of the forge."""
    blocks, least = [], []
    for number in range(rounds):
        for kind in ("load", "forge", "again") if number % 2 else ("again", "forge", "load"):
            if kind == "forge":
                await feeder.saturate()

                async def work() -> None:
                    least.append(await feeder.keep(BLOCK_SECONDS))

                blocks.append(await block(kind, work))
                await feeder.drain()
            else:
                with equal_load():
                    blocks.append(await block(kind, lambda: asyncio.sleep(BLOCK_SECONDS)))
    run.fill(blocks)
    return blocks, least


async def followed(run: Run, work: Callable[[], Any]) -> dict[str, Any]:
    """System calls of the training thread while ``work`` goes on."""
    trace, cores = run.place / "trace", os.sched_getaffinity(run.trainer)
    command = ["strace", "-p", str(run.trainer), "-ttt", "-T", "-e", f"trace={TRACED}", "-o", str(trace)]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    ) as strace:
        await asyncio.sleep(0.5)
        begin, steps = time.time(), run.steps()
        await work()
        end, steps = time.time(), run.steps() - steps
        strace.send_signal(signal.SIGINT)
    return {**figures(calls_of(trace, begin, end)), "steps": steps}


def tell_times(width: int, blocks: list[Block], least: list[int], arrived: int) -> None:
    """The lines on step times."""
    of = {kind: [b for b in blocks if b.kind == kind] for kind in ("forge", "load", "again")}
    alone = [step for b in of["load"] + of["again"] for step in b.steps]
    with_forge = [step for b in of["forge"] for step in b.steps]
    step_ms = 1000 * statistics.median(alone)
    loads = [
        1000 * percentile([*a.steps, *b.steps], 0.99) for a, b in zip(of["load"], of["again"], strict=True)
    ]
    same99 = [b.percentile(0.99) / a.percentile(0.99) for a, b in zip(of["load"], of["again"], strict=True)]
    same50 = [b.percentile(0.5) / a.percentile(0.5) for a, b in zip(of["load"], of["again"], strict=True)]
    p50 = percentile(with_forge, 0.5) / percentile(alone, 0.5)
    p99 = percentile(with_forge, 0.99) / percentile(alone, 0.99)
    spread = max(max(ratio, 1 / ratio) for ratio in same99)
    bar(
        f"steps of {step_ms:.0f} ms beside a saturated forge, over those beside an equal load",
        command=COMMAND,
        figure={"p50": round(p50, 3), "p99": round(p99, 3)},
        bound=f"p50 <= {P50}, p99 <= {spread + P99_MORE:.3f} (spread of the load itself + {P99_MORE})",
        passed=p50 <= P50 and p99 <= spread + P99_MORE and step_ms >= 20 and min(least) > 0 and arrived > 0,
        control={
            "p50 of the load against itself": [round(v, 3) for v in same50],
            "p99 of the load against itself": [round(v, 3) for v in same99],
        },
        detail={
            "p99 of each round": [
                round(b.percentile(0.99) / load, 3) for b, load in zip(of["forge"], loads, strict=True)
            ],
            "ms": {
                kind: {
                    "p50": [round(b.percentile(0.5), 2) for b in of[kind]],
                    "p99": [round(b.percentile(0.99), 2) for b in of[kind]],
                    "most": [round(b.percentile(1.0), 2) for b in of[kind]],
                    "cores busy": [b.busy for b in of[kind]],
                    "steps": sum(len(b.steps) for b in of[kind]),
                }
                for kind in of
            },
            "kernels waiting at least": least,
            "kernels that arrived in the run": arrived,
            "width": width,
        },
    )


async def train_beside(run: Run, home: HomeBus, rounds: int) -> None:
    """Measure one host and write its lines."""
    async with fed(home, run) as feeder:
        blocks, least = await measured(run, feeder, rounds)
        entries = read_journal(run.folder.journal)
        arrived = sum(len(e.event.kernels) for e in entries if isinstance(e.event, KernelsArrived))
        tell_times(run.width, blocks, least, arrived)
        await feeder.saturate()
        with_forge = await followed(run, lambda: feeder.keep(TRACED_SECONDS))
        await feeder.drain()
        with equal_load():
            with_load = await followed(run, lambda: asyncio.sleep(TRACED_SECONDS))
    bar(
        f"system calls of the training thread beside a saturated forge, width {run.width}",
        command=COMMAND,
        figure=with_forge,
        bound="0 network calls, 0 waits on a futex over 5 ms",
        passed=with_forge["network calls"] == with_forge["longer than 5 ms"] == 0 < with_forge["steps"],
        control={"beside the equal load": with_load},
    )


def main() -> None:
    """Measure the hosts, or the one whose width is given."""
    torch.set_num_threads(1)
    widths = [int(text) for text in sys.argv[1:]] or list(WIDTHS)
    for width in widths:
        with (
            tempfile.TemporaryDirectory() as folder,
            Run(Path(folder) / "run", width) as run,
            HomeBus("command", run.home) as home,
        ):
            asyncio.run(train_beside(run, home, WIDTHS.get(width, 3)))


if __name__ == "__main__":
    main()
