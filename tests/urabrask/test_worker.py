"""The worker on a real bus, with the rights of its role alone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, open_artifact
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import (
    Channel,
    EvaluateWork,
    EventType,
    FieldReport,
    KernelState,
    Role,
    Signed,
    event_bytes,
)
from esper_runtime.kasmina.kernels import current_target
from esper_runtime.oona import BundledServer, BusAddress, BusRole, WorkQueue, connect, disconnect, publish
from esper_runtime.sandbox import Sandbox
from esper_runtime.urabrask import Judged, serve
from esper_runtime.urza import Library
from tests.urabrask.archives import signed_archive, slots_for, spec_of
from tests.urabrask.members import powers

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


@pytest.fixture
def warm(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers use the sandbox of the other tests: it is warm."""
    monkeypatch.setattr("esper_runtime.urabrask.worker.new_sandbox", lambda: nullcontext(sandbox))


@dataclass
class Forge:
    """The planner's and Tezzeret's sides of the queue and the library."""

    library: Library
    makers: Library
    queue: WorkQueue
    urabrask: BusAddress
    keyring: KeyRing

    async def store(self, path: Path, compiled: Signed) -> EvaluateWork:
        digest = await self.makers.put_artifact(path)
        await self.makers.publish(compiled)
        kernel = next(name for name, one in (await self.library.records()).items() if one.digest == digest)
        return EvaluateWork(kernel=kernel, digest=digest)

    async def wants(self, work: EvaluateWork, attempt: int = 1) -> None:
        await self.queue.publish(work, f"{work.kernel}-{attempt}")

    async def run_worker(self) -> Judged:
        """A worker in this process, until the queue is empty."""
        stop = asyncio.Event()
        worker = asyncio.create_task(serve(self.urabrask, self.keyring, TARGET, stop=stop))
        async with asyncio.timeout(50):
            while await self.queue.depth() != 0 and not worker.done():
                await asyncio.sleep(0.02)
        stop.set()
        return await worker


@asynccontextmanager
async def forge(server: BundledServer, keyring: KeyRing) -> AsyncIterator[Forge]:
    client = await connect(server.address, "planner")
    maker = await connect(server.address_of(BusRole.TEZZERET), "tezzeret")
    try:
        library = Library(client, keyring.trust, keeper=True)
        await library.refresh()
        queue = WorkQueue(client, "evaluate", TARGET.name)
        await queue.ensure()
        makers = Library(maker, keyring.trust)
        yield Forge(library, makers, queue, server.address_of(BusRole.URABRASK), keyring)
    finally:
        await disconnect(maker)
        await disconnect(client)


def test_good_kernels_are_validated_and_bad_ones_rejected_with_their_reason(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    good, bad = catalogue()["mlp"], powers("power-32", 5)

    async def run() -> None:
        async with forge(server, keyring) as made:
            archives = [
                signed_archive(tmp_path / one.name, keyring, spec_of(one), one) for one in (good, bad)
            ]
            works = [await made.store(*archive) for archive in archives]
            for work in works:
                await made.wants(work)
            judged = await made.run_worker()
            assert (judged.passed, judged.rejected, judged.again) == (1, 1, 0)
            records = await made.library.records()
            first, second = (records[work.kernel] for work in works)
            assert (first.state, second.state) == (KernelState.VALIDATED, KernelState.REJECTED)
            assert second.report is not None
            assert "finite" in {check.name for check in second.report.failures}
            opened = open_artifact(archives[0][0], archives[0][1], first.verdict, keyring.trust)
            assert opened.verdict is not None

    asyncio.run(run())


@pytest.mark.usefixtures("warm")
def test_what_has_a_verdict_is_not_tested_again(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def run() -> None:
        async with forge(server, keyring) as made:
            blueprint = catalogue()["mlp"]
            work = await made.store(*signed_archive(tmp_path / "k", keyring, spec_of(blueprint), blueprint))
            await made.wants(work)
            assert (await made.run_worker()).passed == 1
            await made.wants(work, attempt=2)
            judged = await made.run_worker()
            assert (judged.known, judged.passed) == (1, 0)

    asyncio.run(run())


@pytest.mark.usefixtures("warm")
def test_what_the_library_does_not_have_comes_again_and_is_there_then(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def run() -> None:
        async with forge(server, keyring) as made:
            blueprint = catalogue()["mlp"]
            path, compiled = signed_archive(tmp_path / "k", keyring, spec_of(blueprint), blueprint)
            early = EvaluateWork(kernel=spec_of(blueprint).kernel_id, digest=_digest(path))
            await made.wants(early)
            worker = asyncio.create_task(made.run_worker())
            await asyncio.sleep(1.0)
            await made.store(path, compiled)
            judged = await worker
            assert judged.again >= 1
            assert judged.passed == 1

    asyncio.run(run())


@pytest.mark.usefixtures("warm")
def test_field_reports_rule_the_risk_once_there_are_enough(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    blueprint = catalogue()["mlp"]

    async def run() -> None:
        async with forge(server, keyring) as made:
            identity = await made.library.enter(blueprint)
            training = await connect(server.address_of(BusRole.TRAINING), "training")
            subject = f"esper.run.default.r-12345678.{Channel.REPORT.value}"
            for number in range(25):
                report = FieldReport(
                    kernel="ck-000000000000",
                    digest="0" * 64,
                    blueprint=identity,
                    run="r",
                    seed=f"s{number}",
                    slot="x",
                    outcome="Culled",
                    failure="not finite" if number < 20 else None,
                    steps=1,
                    parameters=1,
                )
                data = report.model_dump_json(by_alias=True).encode()
                await publish(
                    training, subject, event_bytes(EventType.REPORT, "test", f"n{number}", data), f"n{number}"
                )
            await disconnect(training)
            spec = spec_of(blueprint, slots_for(blueprint, 17, 64))
            work = await made.store(*signed_archive(tmp_path / "k", keyring, spec, blueprint))
            await made.wants(work)
            assert (await made.run_worker()).passed == 1
            record = await made.library.record(work.kernel)
            assert record is not None
            assert record.report is not None
            base = 20.5 / 26
            assert record.report.risk == pytest.approx((20 + 4 * base) / (25 + 4))

    asyncio.run(run())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
