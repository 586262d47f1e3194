"""The worker: takes compile work off the queue, makes kernels, stores and announces them."""

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import (
    ArtifactError,
    BlueprintError,
    BusError,
    CompileFailed,
    CompileWork,
    EsperError,
    KernelError,
    Role,
    Signed,
    Target,
)
from esper_runtime.oona import BusAddress, WorkItem, WorkQueue, connect, disconnect
from esper_runtime.tezzeret.make import make
from esper_runtime.tezzeret.standard import Builder
from esper_runtime.urza import Library

_AGAIN = 5.0
"""Seconds before an item that failed for want of something comes again."""

_INTERRUPT_SECONDS = 0.1
"""Between two calls that a build shall end."""

_log = logging.getLogger(__name__)


@dataclass
class Made:
    """What a worker has done.

    Attributes:
        stored: kernels that it made and stored.
        known: items whose kernel was there already, or that added nothing.
        failed: kernels that cannot be made, and are announced as such.
        again: items that were handed back.
    """

    stored: int = 0
    known: int = 0
    failed: int = 0
    again: int = 0


async def serve(
    address: BusAddress,
    keyring: KeyRing,
    target: Target,
    *,
    stop: asyncio.Event | None = None,
    idle_seconds: float | None = None,
    done: Made | None = None,
) -> Made:
    """Work off the compile queue of a target until ``stop`` is set, or there is no more work.

    An item in hand is said to be in progress as long as this process lives; when it dies, the item comes
    again, to this worker or another, and yields the same bytes. An item whose kernel the library has already
    is taken off the queue. One that cannot be made is answered with `CompileFailed`; what a limit, a full
    disk or a lost connection has ended comes again, and in the end becomes a dead letter.

    Args:
        address: of the bus with the library, as the role ``tezzeret``.
        keyring: signs as Tezzeret.
        target: what this process makes kernels for (`esper_runtime.kasmina.kernels.current_target`).
        stop: ends the worker; an item in hand is handed back at once.
        idle_seconds: ends the worker that had nothing to do for so long; None: it waits for ever.
        done: is kept up to date; also returned.

    Raises:
        BusError: the bus cannot be reached at the start, or has no library.
        ArtifactError: the keys may not be used.
    """
    stop = stop or asyncio.Event()
    keyring.ensure(Role.TEZZERET)
    client = await connect(address, "tezzeret", patience=30.0)
    done = done or Made()
    try:
        with Builder() as builder, tempfile.TemporaryDirectory(prefix="esper-tezzeret-") as folder:
            worker = _Worker(Library(client, keyring.trust), keyring, builder, Path(folder), stop, done)
            queue = WorkQueue(client, "compile", target.name)
            await queue.work_off(worker.do, stop, idle_seconds)
    finally:
        await disconnect(client)
    return done


@dataclass
class _Worker:
    library: Library
    keyring: KeyRing
    builder: Builder
    folder: Path
    stop: asyncio.Event
    done: Made

    async def do(self, item: WorkItem) -> None:
        """Do one item, whatever becomes of it."""
        work = item.spec
        assert isinstance(work, CompileWork)
        kernel = work.spec.kernel_id
        beating = asyncio.create_task(item.keep())
        try:
            record = await self.library.record(kernel)
            if record is not None and record.compiled is not None:
                self.done.known += 1
            elif not await self._make(work):
                self.done.again += 1
                await item.retry(0.0, "the worker was told to stop")
                return
            await item.done()
        except BusError as error:
            # The item is ours until its time is over, and then comes again.
            self.done.again += 1
            _log.warning("%s: %s; it will come again", kernel, error)
        except (EsperError, OSError, MemoryError, RuntimeError) as error:
            self.done.again += 1
            _log.warning("%s: %s", kernel, error)
            await item.retry(_AGAIN, f"{type(error).__name__}: {error}"[:1000])
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _make(self, work: CompileWork) -> bool:
        """Make, store and announce a kernel; False where the worker was told to stop meanwhile."""
        kernel = work.spec.kernel_id
        making = asyncio.ensure_future(
            asyncio.to_thread(make, work.spec, work.graph, self.folder, self.keyring, self.builder)
        )
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({making, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                while not making.done():  # a build about to begin does not hear the first call
                    self.builder.interrupt()
                    await asyncio.wait({making}, timeout=_INTERRUPT_SECONDS)
                making.exception()
                return False
            path, signed = making.result()
        except (KernelError, BlueprintError) as error:
            failed = CompileFailed(spec=work.spec, kernel=kernel, reason=str(error)[:2000])
            await self._announce(self.keyring.sign(Role.TEZZERET, failed))
            self.done.failed += 1
            _log.info("%s cannot be made: %s", kernel, error)
            return True
        finally:
            stopping.cancel()
        try:
            await self.library.put_artifact(path)
        finally:
            path.unlink(missing_ok=True)
        if await self._announce(signed):
            self.done.stored += 1
        else:
            self.done.known += 1
        return True

    async def _announce(self, signed: Signed) -> bool:
        try:
            return await self.library.publish(signed)
        except ArtifactError as error:
            raise ArtifactError(f"our own word is not believed: {error}") from None
