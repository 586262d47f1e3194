"""What a training wants of the library: wishes out, tested kernels onto the shelf, news of both.

The library may be away, go and come back: nothing here raises because of it.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from esper_runtime.artifact import Trust
from esper_runtime.blueprint import misfit
from esper_runtime.contracts import (
    BlueprintEntry,
    Channel,
    EsperError,
    KernelError,
    KernelRecord,
    KernelSpec,
    KernelState,
    KernelWish,
    Ruling,
    UsableKernel,
)
from esper_runtime.oona import BusAddress, Reports, connect, disconnect
from esper_runtime.urza.library import Library
from esper_runtime.urza.shelf import Shelf
from esper_runtime.urza.wanted import FetchNews, FetchOrder, FetchStart, Offer

RETRY_SECONDS = 2.0
MORE_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""Between two looks for blueprints that people have entered."""
FLUSH_SECONDS = 3.0
"""How long the end of a run waits for reports that were not sent yet."""

log = logging.getLogger(__name__)


class Fetcher:
    """Serves one run.

    Args:
        start: whom, and what it wants.
        shelf: where kernels are put.
        trust: whom we believe.
        tell: takes what is new.
    """

    def __init__(
        self, start: FetchStart, shelf: Shelf, trust: Trust, tell: Callable[[FetchNews], None]
    ) -> None:
        self._address, self._wanted = start.address, start.wanted
        self._shelf, self._trust, self._tell = shelf, trust, tell
        self._reports = Reports(start.place.subject(Channel.REPORT), start.place.source)
        self._incarnation: str | None = None
        self._connected = False
        self._more: deque[KernelSpec] = deque()
        self._specs = dict(start.wanted.specs)
        self._seen: set[str] = {spec.blueprint for spec in start.wanted.specs.values()}
        self._fitting: dict[str, dict[str, KernelSpec]] = {}
        self._adopted = 0

    def obey(self, order: FetchOrder) -> None:
        """Take one more wish or report."""
        if order.wish is not None:
            self._more.append(order.wish)
        if order.report is not None:
            self._reports.add(order.identity, order.report)

    async def serve(self, closing: asyncio.Event) -> None:
        """Work until ``closing``, then send the reports that are left, as far as the library is there."""
        sessions = asyncio.create_task(self._sessions())
        await closing.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS if self._connected else 0):
                while not self._reports.all_sent():
                    await asyncio.sleep(0.02)
        sessions.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sessions

    async def _sessions(self) -> None:
        while True:
            try:
                await self._session()
            except (EsperError, OSError) as error:
                log.info("library: %s; trying on", error)
            except Exception:  # whatever it is, the library must never end a training
                log.exception("library: unexpected error")
            self._say_connected(False)
            await asyncio.sleep(RETRY_SECONDS)

    async def _session(self) -> None:
        address = BusAddress.load(self._address)
        mine = address.read_credentials()
        client = await connect(address, "training", patience=5.0)
        try:
            library = Library(client, self._trust, wishes=mine is None or not mine.of_run)
            await library.refresh()
            unknown = frozenset(kernel for kernel in self._wanted.named if library.known(kernel) is None)
            if unknown:
                self._tell(FetchNews(settled=unknown))
            self._say_connected(True)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(library))
                group.create_task(self._look_for_blueprints(library))
                group.create_task(self._wish_for_more(library))
                group.create_task(self._reports.run(client))
        except* (EsperError, OSError) as errors:
            raise errors.exceptions[0] from None
        finally:
            await disconnect(client)

    def _say_connected(self, now: bool) -> None:
        if now != self._connected:
            self._connected = now
            self._tell(FetchNews(connected=now))

    async def _wish(self, library: Library) -> None:
        """Ask for what the run wants and the shelf lacks, and for what is to be invented; a library that has
        lost its storage, for all."""
        there, _ = self._shelf.usable(self._specs, self._trust)
        now = library.incarnation
        for kernel, spec in list(self._specs.items()):
            if kernel not in there or self._incarnation not in (None, now):
                await library.wish(KernelWish(spec=spec, urgent=kernel in self._wanted.specs))
        if self._wanted.innovation is not None:
            await library.want_invented(self._wanted.innovation)
        self._incarnation = now

    async def _wish_for_more(self, library: Library) -> None:
        while True:
            while self._more:
                spec = self._more[0]
                self._specs[spec.kernel_id] = spec
                await library.wish(KernelWish(spec=spec))
                known = library.known(spec.kernel_id)
                if known is not None:
                    await self._hear(library, known)
                self._more.popleft()
            await asyncio.sleep(MORE_SECONDS)

    async def _take(self, library: Library) -> None:
        """Fetch what was validated, and hear what may be used no more."""
        async for record in library.watch(current=True):
            if record.kernel in self._specs or record.kernel in self._wanted.named:
                try:
                    await self._hear(library, record)
                except EsperError as error:
                    log.warning("library: %s: %s", record.kernel, error)

    async def _hear(self, library: Library, record: KernelRecord) -> None:
        kernel = record.kernel
        if record.state in (KernelState.VALIDATED, KernelState.SUPERSEDED):
            found = self._shelf.usable([kernel], self._trust)[0].get(kernel)
            if found is None or found.digest != record.digest:
                found = await self._fetch(library, record)
            self._tell(FetchNews(settled=frozenset({kernel}), offer=Offer(arrived=(found,))))
        elif record.state is KernelState.QUARANTINED:
            for _, word in await library.words():
                if isinstance(word.statement, Ruling) and word.statement.kernel == kernel:
                    self._shelf.rule(word.signed, self._trust)
            self._gone(kernel, f"quarantined: {record.reason}")
        elif record.state is KernelState.REJECTED:
            if record.verdict is not None:
                self._shelf.reject(kernel, record.verdict)
            self._gone(kernel, f"rejected: {record.reason}")

    def _gone(self, kernel: str, reason: str) -> None:
        self._tell(FetchNews(settled=frozenset({kernel}), offer=Offer(gone={kernel: reason})))

    async def _fetch(self, library: Library, record: KernelRecord) -> UsableKernel:
        if record.digest is None or record.compiled is None or record.verdict is None:
            raise KernelError("the library says that it is validated, but lacks the words that would show it")
        with tempfile.TemporaryDirectory(prefix="esper-fetch-") as folder:
            archive = Path(folder) / "kernel"
            await library.fetch_artifact(record.digest, archive)
            return self._shelf.put(archive, record.compiled, record.verdict, self._trust)

    async def _look_for_blueprints(self, library: Library) -> None:
        """Wish for kernels of blueprints that people enter, or Karn invents, while the run goes on; drop
        archived ones.

        What the run itself wants is wished for first, and again where the library is another one than before.
        """
        wished: str | None = None
        while True:
            entries = await library.blueprints()
            if library.incarnation != wished:
                wished = library.incarnation
                await self._wish(library)
            for entry in entries.values():
                if entry.archived is not None:
                    for kernel in [k for k, s in self._specs.items() if s.blueprint == entry.blueprint]:
                        del self._specs[kernel]
                        self._gone(kernel, f"its blueprint {entry.graph.name} is archived: {entry.archived}")
                    self._seen.discard(entry.blueprint)
                elif entry.blueprint not in self._seen and self._takes_up(library, entry):
                    self._seen.add(entry.blueprint)
                    await self._wish_for(library, entry)
            await asyncio.sleep(LOOK_SECONDS)

    def _takes_up(self, library: Library, entry: BlueprintEntry) -> bool:
        """Whether the run may use a blueprint: a person's always; one that was invented where the run has it
        on: its own, and as many of those that others had invented and that passed."""
        innovation = self._wanted.innovation
        if not entry.invented:
            return True
        if innovation is None or entry.wish == innovation.wish_id:
            return innovation is not None
        known = (library.known(kernel) for kernel in self._specs_of(entry))
        if self._adopted >= innovation.blueprints or not any(
            record is not None and record.state is KernelState.VALIDATED for record in known
        ):
            return False
        self._adopted += 1
        return True

    def _specs_of(self, entry: BlueprintEntry) -> dict[str, KernelSpec]:
        """The kernels of a blueprint that the run's slots could use, by id."""
        wanted, graph = self._wanted, entry.graph
        if entry.blueprint not in self._fitting:
            slots = wanted.slots if wanted.names.allows(graph.name) else ()
            specs = (wanted.spec(entry.blueprint, slot) for slot in slots if misfit(graph, slot) is None)
            self._fitting[entry.blueprint] = {spec.kernel_id: spec for spec in specs}
        return self._fitting[entry.blueprint]

    async def _wish_for(self, library: Library, entry: BlueprintEntry) -> None:
        for kernel, spec in self._specs_of(entry).items():
            if kernel not in self._specs:
                self._specs[kernel] = spec
                await library.wish(KernelWish(spec=spec))
                known = library.known(kernel)
                if known is not None and known.state is KernelState.VALIDATED:
                    await self._hear(library, known)
