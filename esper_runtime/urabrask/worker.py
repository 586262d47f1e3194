"""The worker: takes artifacts to be tested off the queue, runs the gauntlet, signs and publishes verdicts."""

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import (
    ArtifactError,
    BusError,
    CloudEvent,
    EsperError,
    EvaluateWork,
    FieldReport,
    KernelError,
    KernelRecord,
    KernelState,
    Role,
    Target,
    ValidationReport,
    Verdict,
)
from esper_runtime.oona import BusAddress, Tail, WorkItem, WorkQueue, connect, disconnect
from esper_runtime.sandbox import Sandbox
from esper_runtime.urabrask.evaluate import evaluate, new_sandbox
from esper_runtime.urabrask.tags import Experience
from esper_runtime.urza import Library

_AGAIN = 2.0
"""Seconds before an item that failed for want of something comes again."""

_REPORTS = "REPORTS"
_log = logging.getLogger(__name__)


@dataclass
class Judged:
    """What a worker has done.

    Attributes:
        passed: kernels that it validated.
        rejected: kernels that it rejected.
        known: items whose artifact had a verdict already.
        again: items that were handed back, or given up.
    """

    passed: int = 0
    rejected: int = 0
    known: int = 0
    again: int = 0


async def serve(
    address: BusAddress,
    keyring: KeyRing,
    target: Target,
    *,
    stop: asyncio.Event | None = None,
    idle_seconds: float | None = None,
    judged: Judged | None = None,
) -> Judged:
    """Work off the evaluation queue of a target until ``stop`` is set, or there is no more work.

    An item in hand is said to be in progress as long as this process lives; when it dies, the item comes
    again, to this worker or another. An artifact that has a verdict is not tested again. One that cannot be
    fetched, and a sandbox that does not come up, make the item come again and in the end a dead letter.

    Args:
        address: of the bus with the library, as the role ``urabrask``.
        keyring: signs as Urabrask.
        target: what this process tests kernels for (`esper_runtime.kasmina.kernels.current_target`).
        stop: ends the worker after the item in hand.
        idle_seconds: ends the worker that had nothing to do for so long; None: it waits for ever.
        judged: is kept up to date; also returned.

    Raises:
        BusError: the bus cannot be reached at the start.
        ArtifactError: the keys may not be used.
    """
    stop = stop or asyncio.Event()
    keyring.ensure(Role.URABRASK)
    client = await connect(address, "urabrask", patience=30.0)
    judged = judged or Judged()
    try:
        with new_sandbox() as sandbox, tempfile.TemporaryDirectory(prefix="esper-urabrask-") as folder:
            worker = _Worker(
                Library(client, keyring.trust), keyring, sandbox, Path(folder), _Field(client), target, judged
            )
            queue = WorkQueue(client, "evaluate", target.name)
            await queue.work_off(worker.do, stop, idle_seconds)
    finally:
        await disconnect(client)
    return judged


class _Field:
    """The reports of trainings on the bus, read on from where it was."""

    def __init__(self, client: Client) -> None:
        self._tail = Tail(client.jetstream(), _REPORTS)
        self._reports: dict[str, FieldReport] = {}

    async def reports(self) -> list[FieldReport]:
        """All that there are; those known before where the bus does not answer."""
        try:
            kept = await self._tail.read()
        except BusError as error:
            _log.info("no new field reports: %s", error)
            return list(self._reports.values())
        if self._tail.began_anew:
            self._reports.clear()
        for message in kept:
            try:
                event = CloudEvent.decoded(message.data)
                report = FieldReport.model_validate(event.data, by_alias=True, by_name=False)
            except (EsperError, ValidationError) as error:
                _log.info("%s: not a field report: %s", message.subject, error)
                continue
            self._reports.setdefault(event.id, report)
        return list(self._reports.values())


@dataclass
class _Worker:
    library: Library
    keyring: KeyRing
    sandbox: Sandbox
    folder: Path
    field: _Field
    target: Target
    judged: Judged

    async def do(self, item: WorkItem) -> None:
        """Do one item, whatever becomes of it."""
        work = item.spec
        assert isinstance(work, EvaluateWork)
        beating = asyncio.create_task(item.keep())
        try:
            record = await self.library.record(work.kernel)
            if record is None or record.compiled is None or record.digest != work.digest:
                self.judged.again += 1
                await item.retry(_AGAIN, f"the library has no artifact {work.digest[:16]} of {work.kernel}")
                return
            if record.verdict is not None:
                self.judged.known += 1
            else:
                await self._judge(record)
            await item.done()
        except BusError as error:
            # The item is ours until its time is over, and then comes again.
            self.judged.again += 1
            _log.warning("%s: %s; it will come again", work.kernel, error)
        except KernelError as error:
            self.judged.again += 1
            await item.give_up(str(error))
        except (EsperError, OSError, MemoryError, RuntimeError) as error:
            self.judged.again += 1
            _log.warning("%s: %s", work.kernel, error)
            await item.retry(_AGAIN, f"{type(error).__name__}: {error}"[:1000])
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _judge(self, record: KernelRecord) -> None:
        """Test one artifact and publish the verdict."""
        assert record.digest is not None
        assert record.compiled is not None
        path = self.folder / f"{record.digest}.kernel"
        try:
            await self.library.fetch_artifact(record.digest, path)
            report = await asyncio.to_thread(
                evaluate,
                path,
                record.compiled,
                self.keyring.trust,
                sandbox=self.sandbox,
                population=await self._passed(),
                experience=await self._experience(),
            )
        finally:
            path.unlink(missing_ok=True)
        verdict = Verdict(kernel=report.kernel, digest=report.digest, report=report)
        try:
            await self.library.publish(self.keyring.sign(Role.URABRASK, verdict))
        except ArtifactError as error:
            raise ArtifactError(f"our own word is not believed: {error}") from None
        if report.passed:
            self.judged.passed += 1
        else:
            self.judged.rejected += 1
            _log.info("%s is rejected: %s", report.kernel, report.failures[0].reason)

    async def _passed(self) -> list[ValidationReport]:
        """Reports of kernels that passed on this target."""
        return [
            record.report
            for record in (await self.library.records()).values()
            if record.report is not None
            and record.report.passed
            and record.state in (KernelState.VALIDATED, KernelState.SUPERSEDED)
            and record.spec.target == self.target
        ]

    async def _experience(self) -> Experience:
        graphs = {name: entry.graph for name, entry in (await self.library.blueprints()).items()}
        return Experience.of(await self.field.reports(), graphs)
