"""Five items of work that can never be done, for `benchmarks.work`: each goes wrong in another way."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from benchmarks.forge import slot
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    EvaluateWork,
    KernelSpec,
    KernelWish,
    Pipeline,
    Target,
    forge_subject,
)
from esper_runtime.kasmina.kernels import spec_for
from esper_runtime.local.home import HomeBus
from esper_runtime.oona import BusRole, WorkQueue, connect, disconnect, publish
from esper_runtime.tezzeret import make
from esper_runtime.urza import Library

HUGE_WIDTH = 20_000
"""The narrowest slot of its class has 16,385 channels: two matrices of 1 GiB each."""
_NO_WORD = "times, and no worker said what became of it"


@dataclass(frozen=True)
class Poison:
    """An item that can never be done.

    Attributes:
        name: what is wrong with it.
        kernel: its kernel; None where it cannot be read.
        reason: part of what its dead letter says, unless its last worker was killed.
        archive: with what it can be mended.
    """

    name: str
    kernel: str | None
    reason: str
    archive: Path | None = None

    def says(self, reason: str) -> bool:
        """Whether a dead letter gives the reason."""
        return self.reason in reason or (_NO_WORD in reason and self.kernel is not None)


async def plant(bus: HomeBus, keys: KeyRing, target: Target, folder: Path) -> list[Poison]:
    """Put all five where they do harm.

    Args:
        bus: of the machine; it runs.
        keys: sign as Tezzeret.
        target: of the workers.
        folder: for the archives that two of them lack.
    """
    blueprints = {name: catalogue()[name] for name in ("mlp", "bottleneck", "norm-scale", "low-rank")}
    fast = {name: _spec(graph, 8, target) for name, graph in blueprints.items()}
    archives = {}
    async with await Library.connect(bus.address_of(BusRole.PLANNER), keys.trust, keeper=True) as planner:
        for graph in blueprints.values():
            await planner.enter(graph)
        async with await Library.connect(bus.address_of(BusRole.TEZZERET), keys.trust) as maker:
            for name in ("bottleneck", "norm-scale"):
                path, signed = await asyncio.to_thread(make, fast[name], blueprints[name], folder, keys)
                archives[name] = path
                await maker.put_artifact(path)
                await maker.publish(signed)
        await _remove(planner, fast["bottleneck"])
        await _damage(planner, bus, fast["norm-scale"], archives["norm-scale"])
    async with await Library.connect(bus.address_of(BusRole.TRAINING), keys.trust) as training:
        huge = _spec(blueprints["mlp"], HUGE_WIDTH, target)
        await training.wish(KernelWish(spec=huge))
    client = await connect(bus.address_of(BusRole.PLANNER), "poison")
    try:
        await publish(client, forge_subject("compile", target.name), b'{"spec": "half a me', "poison-1")
        unknown = fast["low-rank"].kernel_id
        queue = WorkQueue(client, "evaluate", target.name)
        await queue.ensure()
        await queue.publish(EvaluateWork(kernel=unknown, digest="0" * 64), "poison-2")
    finally:
        await disconnect(client)
    return [
        Poison("a message that was cut off", None, "cannot be read"),
        Poison(
            "a test of a kernel that nobody made", unknown, "the library has no artifact 0000000000000000"
        ),
        Poison(
            "an archive that was deleted",
            fast["bottleneck"].kernel_id,
            "the library lacks the artifact",
            archives["bottleneck"],
        ),
        Poison(
            "an archive with a wrong bit",
            fast["norm-scale"].kernel_id,
            "is broken in the library",
            archives["norm-scale"],
        ),
        Poison("a kernel too large for its workers' memory", huge.kernel_id, _NO_WORD),
    ]


async def mend(library: Library, poisons: list[Poison]) -> None:
    """Store the archives that are lacking or damaged anew."""
    for poison in poisons:
        if poison.archive is not None:
            await library.put_artifact(poison.archive)


def _spec(graph: Blueprint, width: int, target: Target) -> KernelSpec:
    return spec_for(canonical_id(graph), slot(graph, width), target, Pipeline.FAST)


async def _remove(library: Library, spec: KernelSpec) -> None:
    record = await library.record(spec.kernel_id)
    assert record is not None
    assert record.digest is not None
    stored = await library.artifacts.find(record.digest)
    assert stored is not None
    await library.artifacts.remove(stored)


async def _damage(library: Library, bus: HomeBus, spec: KernelSpec, archive: Path) -> None:
    """Put an archive with one wrong bit in the place of the one that is there."""
    record = await library.record(spec.kernel_id)
    assert record is not None
    assert record.digest is not None
    stored = await library.artifacts.find(record.digest)
    assert stored is not None
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    client = await connect(bus.address_of(BusRole.PLANNER), "poison")
    try:
        subject = f"$O.artifacts.C.{stored.chunks}"
        await client.jetstream().purge_stream("OBJ_artifacts", subject=subject)
        await publish(client, subject, bytes(data), "poison-3")
    finally:
        await disconnect(client)
