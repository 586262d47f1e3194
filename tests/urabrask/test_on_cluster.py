"""Real workers on a cluster's bus, each with its own account; and again after the bus has lost everything."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_runtime.artifact import KeyRing, open_artifact
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    BusError,
    CompileWork,
    EvaluateWork,
    InterfaceKind,
    KernelRecord,
    KernelState,
    Pipeline,
    Role,
)
from esper_runtime.kasmina.kernels import current_target
from esper_runtime.oona import BusKeeper, BusRole, WorkQueue
from esper_runtime.sandbox import Sandbox
from esper_runtime.tezzeret import serve as make_kernels
from esper_runtime.urabrask import serve as judge_kernels
from esper_runtime.urza import Library
from tests.tezzeret.kernels import slot, wanted

TARGET = current_target()
GRAPH = catalogue()["mlp"]
SPEC = wanted(GRAPH, slot(InterfaceKind.FEATURES, 8), Pipeline.FAST)


async def forged(
    server: ClusterServer, keeper: BusKeeper, library: Library, keyring: KeyRing
) -> KernelRecord:
    """Enter the blueprint and have the kernel made and tested."""
    assert await library.enter(GRAPH, "User") == SPEC.blueprint == canonical_id(GRAPH)
    core = await keeper.core()
    compiling, evaluating = (WorkQueue(core, work, TARGET.name) for work in ("compile", "evaluate"))
    await compiling.ensure()
    await evaluating.ensure()
    stop = asyncio.Event()
    workers = [
        asyncio.create_task(serve(server.address_of(role), keyring, TARGET, stop=stop))
        for role, serve in ((BusRole.TEZZERET, make_kernels), (BusRole.URABRASK, judge_kernels))
    ]
    try:
        await compiling.publish(CompileWork(spec=SPEC, graph=GRAPH), SPEC.kernel_id)
        made = await _record(library, KernelState.PENDING_BENCHMARK)
        assert made.digest is not None
        await evaluating.publish(EvaluateWork(kernel=SPEC.kernel_id, digest=made.digest), SPEC.kernel_id)
        return await _record(library, KernelState.VALIDATED)
    finally:
        stop.set()
        await asyncio.gather(*workers)


async def _record(library: Library, state: KernelState) -> KernelRecord:
    async with asyncio.timeout(50):
        while True:
            record = await library.record(SPEC.kernel_id)
            if record is not None and record.state is state:
                return record
            await asyncio.sleep(0.02)


def test_workers_forge_over_a_clusters_bus_and_again_once_it_was_wiped(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.urabrask.worker.new_sandbox", lambda: nullcontext(sandbox))
    keyring = KeyRing(tmp_path / "home")
    for role in Role:
        keyring.ensure(role)

    async def run(server: ClusterServer) -> None:
        async with server.keeper() as keeper:
            await keeper.prepare_core()
            library = Library(await keeper.core(), keyring.trust, keeper=True)
            await library.refresh()
            first, before = await forged(server, keeper, library, keyring), library.incarnation
            server.wipe()
            server.start()
            async with asyncio.timeout(30):
                while not await _prepared(keeper):
                    await asyncio.sleep(0.05)
            assert not await library.records()
            assert library.incarnation != before
            again = await forged(server, keeper, library, keyring)
            assert again.kernel == first.kernel
            assert again.compiled is not None
            assert again.digest is not None
            path = tmp_path / "artifact"
            await library.fetch_artifact(again.digest, path)
            open_artifact(path, again.compiled, again.verdict, keyring.trust)

    with ClusterServer(tmp_path / "bus") as server:
        asyncio.run(run(server))


async def _prepared(keeper: BusKeeper) -> bool:
    try:
        return bool(await keeper.prepare_core())
    except BusError:  # the connection comes back in a moment
        return False
