import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, VerifiedArtifact, open_artifact
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    CompileWork,
    InterfaceKind,
    KernelState,
    Node,
    Pipeline,
    Role,
)
from esper_runtime.kasmina.kernels import current_target, load
from esper_runtime.oona import BundledServer, BusAddress, BusRole, WorkQueue, connect, disconnect
from esper_runtime.tezzeret import Made, serve
from esper_runtime.urza import Library
from tests.tezzeret.kernels import slot, wanted

TARGET = current_target()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    with BundledServer(tmp_path / "bus", roles=True) as server:
        yield server


@pytest.fixture
def keyring(tmp_path: Path) -> KeyRing:
    ring = KeyRing(tmp_path / "home")
    for role in Role:
        ring.ensure(role)
    return ring


class Forge:
    """The planner's side of the queue and the library."""

    def __init__(self, library: Library, queue: WorkQueue, tezzeret: BusAddress, keyring: KeyRing) -> None:
        self.library, self.queue, self.tezzeret, self.keyring = library, queue, tezzeret, keyring

    async def wants(self, work: CompileWork, attempt: int = 0) -> str:
        kernel = work.spec.kernel_id
        await self.queue.publish(work, f"{kernel}-{attempt}")
        return kernel

    async def run_worker(self, *, until_empty: bool = True) -> Made:
        """A worker in this process, until the queue is empty."""
        stop, done = asyncio.Event(), Made()
        worker = asyncio.create_task(serve(self.tezzeret, self.keyring, TARGET, stop=stop, done=done))
        deadline = time.monotonic() + 50
        while until_empty and not worker.done() and time.monotonic() < deadline:
            if done != Made() and await self.queue.depth() == 0:
                break
            await asyncio.sleep(0.02)
        stop.set()
        return await worker


@asynccontextmanager
async def forge(server: BundledServer, keyring: KeyRing) -> AsyncIterator[Forge]:
    client = await connect(server.address, "planner")
    try:
        library = Library(client, keyring.trust, keeper=True)
        await library.refresh()
        queue = WorkQueue(client, "compile", TARGET.name)
        await queue.ensure()
        yield Forge(library, queue, server.address_of(BusRole.TEZZERET), keyring)
    finally:
        await disconnect(client)


def work(name: str = "mlp", pipeline: Pipeline = Pipeline.FAST, width: int = 8) -> CompileWork:
    blueprint = catalogue()[name]
    return CompileWork(spec=wanted(blueprint, slot(blueprint.interface, width), pipeline), graph=blueprint)


def unfitting() -> CompileWork:
    """A valid blueprint for a class of which it fits no slot."""
    graph = Blueprint(
        name="wide-groups",
        interface=InterfaceKind.FEATURES,
        nodes=(
            Node(id="norm", op="group_norm", inputs=("input",), attributes={"groups": 64}),
            Node(id="tail", op="linear", inputs=("norm",), attributes={"width": "Cout"}),
        ),
        output="tail",
    )
    spec = wanted(graph, slot(InterfaceKind.FEATURES))
    assert spec.blueprint == canonical_id(graph)
    return CompileWork(spec=spec, graph=graph)


def test_a_worker_makes_stores_and_announces_a_kernel_once(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def run() -> None:
        async with forge(server, keyring) as planner:
            kernel = await planner.wants(work())
            assert await planner.run_worker() == Made(stored=1)
            record = await planner.library.record(kernel)
            assert record is not None
            assert record.state is KernelState.PENDING_BENCHMARK
            assert record.digest is not None
            assert record.compiled is not None
            await planner.library.fetch_artifact(record.digest, tmp_path / "fetched")
            artifact = open_artifact(
                tmp_path / "fetched", record.compiled, None, keyring.trust, validated=False
            )
            assert load(artifact).id == kernel
            await planner.wants(work(), 1)
            assert await planner.run_worker() == Made(known=1)
            assert len(await planner.library.artifacts.list()) == 1

    asyncio.run(run())


def test_one_that_cannot_be_made_is_announced_and_stops_no_other(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def run() -> None:
        async with forge(server, keyring) as planner:
            bad = await planner.wants(unfitting())
            good = await planner.wants(work())
            assert await planner.run_worker() == Made(stored=1, failed=1)
            records = await planner.library.records()
            assert records[bad].state is KernelState.REJECTED
            assert "fits no slot of the class" in records[bad].reason
            assert records[good].state is KernelState.PENDING_BENCHMARK

    asyncio.run(run())


def test_a_stopped_worker_hands_back_what_it_has_in_hand(server: BundledServer, keyring: KeyRing) -> None:
    async def run() -> None:
        async with forge(server, keyring) as planner:
            await planner.wants(work("attention", Pipeline.STANDARD))
            stop = asyncio.Event()
            worker = asyncio.create_task(serve(planner.tezzeret, keyring, TARGET, stop=stop))
            while await _in_hand(planner.queue) == 0:
                await asyncio.sleep(0.02)
            stop.set()
            assert await asyncio.wait_for(worker, 15) == Made(again=1)
            assert await planner.queue.depth() == 1

    asyncio.run(run())


def test_what_a_killed_worker_had_is_made_by_the_next_with_the_bytes_that_it_always_has(
    server: BundledServer, keyring: KeyRing, evaluated: VerifiedArtifact
) -> None:
    async def run() -> None:
        async with forge(server, keyring) as planner:
            await _comes_again_after(planner.queue, 2.0)
            kernel = await planner.wants(work("mlp-bn-4", Pipeline.STANDARD))
            script = (
                "import asyncio, sys; from pathlib import Path;"
                "from esper_runtime.artifact import KeyRing; from esper_runtime.oona import BusAddress;"
                "from esper_runtime.kasmina.kernels import current_target;"
                "from esper_runtime.tezzeret import serve;"
                "address = BusAddress.load(Path(sys.argv[1]));"
                "asyncio.run(serve(address, KeyRing(Path(sys.argv[2])), current_target()))"
            )
            file = server.file_of(BusRole.TEZZERET)
            process = subprocess.Popen([sys.executable, "-c", script, str(file), str(keyring.home)])
            while await _in_hand(planner.queue) == 0:
                assert process.poll() is None
                await asyncio.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            await planner.queue.publish(work(), "another")
            made = await planner.run_worker()
            assert made.stored == 2
            record = await planner.library.record(kernel)
            assert record is not None
            assert record.state is KernelState.PENDING_BENCHMARK
            assert kernel == evaluated.compiled.kernel
            assert record.digest == evaluated.compiled.digest

    asyncio.run(run())


async def _in_hand(queue: WorkQueue) -> int:
    info = await queue._js.consumer_info("FORGE", queue.durable)
    return int(info.num_ack_pending or 0)


async def _comes_again_after(queue: WorkQueue, seconds: float) -> None:
    config = (await queue._js.consumer_info("FORGE", queue.durable)).config
    config.ack_wait = seconds
    await queue._js.add_consumer("FORGE", config)
