"""Reading the library: what it holds now, and waiting for what is new."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Self

from nats.aio.client import Client

from esper_runtime.artifact import Trust
from esper_runtime.contracts import (
    LIBRARY_SUBJECT,
    BlueprintEntry,
    BusError,
    InnovationWish,
    KernelQuery,
    KernelRecord,
    KernelWish,
    Role,
)
from esper_runtime.oona import (
    BLUEPRINTS,
    COMPILED,
    RULINGS,
    VERDICTS,
    WISHES,
    BusAddress,
    OutOfOrderError,
    connect,
    disconnect,
    ensure_library_stores,
)
from esper_runtime.urza.artifacts import ArtifactStore
from esper_runtime.urza.bucket import Bucket, NoBucketError
from esper_runtime.urza.index import Ranked
from esper_runtime.urza.lineage import Lineage, lineage
from esper_runtime.urza.reports import StoredReport, read_reports
from esper_runtime.urza.steadily import jetstream
from esper_runtime.urza.view import LibraryView
from esper_runtime.urza.words import Fault, Word

POLL = 1.0
"""Seconds after which a watcher looks at the library though no event came."""

_AT_ONCE = 20
"""So many values are read, and their signatures checked, before others in the event loop have their turn."""

BUCKETS: Mapping[Role, str] = {
    Role.TEZZERET: COMPILED,
    Role.URABRASK: VERDICTS,
    Role.PLANNER: RULINGS,
}

_ROLES = {name: role for role, name in BUCKETS.items()}
_INCARNATION = "incarnation"
_log = logging.getLogger(__name__)


class LibraryReader:
    """What a library on a bus holds.

    What it answers is read from the bus first; a lost connection is waited for, ``patience`` seconds for each
    request. One object serves one event loop.

    Args:
        client: a connection.
        trust: whose words count.
        keeper: makes the buckets where they lack, also after the bus has lost its storage; the planner's.
        patience: seconds.
        wishes: whether wishes may be read; False for a run on a cluster, which is not to see those of others.
        replicas: of the buckets that a keeper makes.
    """

    def __init__(
        self,
        client: Client,
        trust: Trust,
        *,
        keeper: bool = False,
        patience: float = 10.0,
        wishes: bool = True,
        replicas: int = 1,
    ) -> None:
        self.artifacts = ArtifactStore(client, patience)
        self.trust = trust
        self._client = client
        self._keeper, self._replicas = keeper, replicas
        self._patience = patience
        self._reads_wishes = wishes
        self._sent_wishes: dict[str, bool] = {}
        self._ignored: Counter[Fault] = Counter()
        self._watchers: list[dict[str, KernelRecord]] = []
        self._lock = asyncio.Lock()
        self._view = LibraryView(trust)
        self._start_over()

    @classmethod
    async def connect(
        cls, address: BusAddress, trust: Trust, *, keeper: bool = False, patience: float = 10.0
    ) -> Self:
        """One with a connection of its own; `close` it.

        Raises:
            BusError: the bus cannot be reached, or has no library and we are not its keeper.
        """
        client = await connect(address, "library", patience=patience)
        library = cls(client, trust, keeper=keeper, patience=patience)
        try:
            await library.refresh()
        except BaseException:
            await disconnect(client)
            raise
        return library

    async def close(self) -> None:
        """Close the connection."""
        await disconnect(self._client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def incarnation(self) -> str | None:
        """Made once with the library: another one than before means that the bus had lost its storage."""
        return self._incarnation

    @property
    def ignored(self) -> Counter[Fault]:
        """How many words were seen that do not count, by reason."""
        return self._ignored + self._view.ignored

    async def refresh(self) -> dict[str, KernelRecord]:
        """Read what is new.

        Returns:
            The records that are not what they were.

        Raises:
            BusError: the bus does not answer, or has no library.
            ArtifactError: the list of trusted keys may not be used.
        """
        async with self._lock:
            try:
                lost = await self._catch_up()
            except NoBucketError:
                self._start_over()
                if not self._keeper:
                    raise
                await self._make()
                lost = await self._catch_up()
            if lost:
                self._start_over()
                await self._catch_up()
            if self._incarnation is None and self._keeper:
                await self._make()
                await self._catch_up()
            changed = self._view.settle()
        for watcher in self._watchers:
            watcher.update(changed)
        return changed

    async def records(self) -> Mapping[str, KernelRecord]:
        """All kernels by id.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return dict(self._view.records)

    async def record(self, kernel: str) -> KernelRecord | None:
        """One kernel.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return self._view.records.get(kernel)

    def known(self, kernel: str) -> KernelRecord | None:
        """One kernel as it was at the last `refresh`."""
        return self._view.records.get(kernel)

    async def blueprints(self) -> Mapping[str, BlueprintEntry]:
        """All blueprints by id, archived ones among them.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return dict(self._view.blueprints)

    async def wishes(self) -> Mapping[str, KernelWish]:
        """What trainings have wished for, by kernel.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return dict(self._view.wishes)

    async def innovations(self) -> Mapping[str, InnovationWish]:
        """What trainings want to have invented, by wish.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return dict(self._view.innovations)

    async def query(self, query: KernelQuery) -> list[Ranked]:
        """The best validated kernels for a slot, best first, without those of archived blueprints.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return self._view.index.best(query)

    async def lineage(self, identity: str) -> Lineage:
        """The relations of a blueprint or kernel.

        Raises:
            InputError: there is none with this id.
            BusError: as `refresh`.
        """
        await self.refresh()
        return lineage(identity, self._view.blueprints, self._view.records)

    async def words(self) -> list[tuple[Role, Word]]:
        """All words that count, in the order in which each role has said them.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return self._view.words()

    async def reports(self) -> dict[str, StoredReport]:
        """Field reports of trainings by the ids of their events.

        Raises:
            BusError: the bus does not answer.
        """
        return await read_reports(self._client, self._patience)

    async def named_digests(self) -> set[str]:
        """Digests of artifacts that a word names, whether it counts or not.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return self._view.named_digests()

    async def faults(self) -> list[tuple[str, str, Fault]]:
        """What lies in the buckets of words and does not count: bucket, key, reason.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return [(BUCKETS[role], value.key, fault) for role, value, fault in self._view.faults()]

    async def fetch_artifact(self, digest: str, destination: Path) -> None:
        """Write an artifact to a file, which is there only once it was found to have this digest.

        Raises:
            ArtifactError: the library lacks it, or what it holds has another digest.
            InputError: the file cannot be written.
            BusError: the bus does not answer.
        """
        await self.artifacts.fetch(digest, destination)

    async def watch(self, *, current: bool = False) -> AsyncIterator[KernelRecord]:
        """Records as they change, for ever: through lost connections, and through a bus that lost everything.

        Of changes that come while the reader is busy, the last of each kernel is given.

        Args:
            current: begin with all that there is.

        Raises:
            BusError: the connection was closed for good.
        """
        changed: dict[str, KernelRecord] = {}
        woken = asyncio.Event()

        async def wake(_: object) -> None:
            woken.set()

        subscription = await self._client.subscribe(LIBRARY_SUBJECT, cb=wake)
        self._watchers.append(changed)
        try:
            if current:
                await self._refresh_if_there()
                changed.update(self._view.records)
            while True:
                await self._refresh_if_there()
                while changed:
                    yield changed.pop(next(iter(changed)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await woken.wait()
                woken.clear()
        finally:
            self._watchers = [one for one in self._watchers if one is not changed]
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _refresh_if_there(self) -> None:
        try:
            await self.refresh()
        except BusError as error:
            if self._client.is_closed:
                raise
            _log.info("the library cannot be read at present: %s", error)

    def _start_over(self) -> None:
        """Forget all that was read."""
        self._ignored += self._view.ignored
        self._view = LibraryView(self.trust)
        self._incarnation: str | None = None
        self._sent_wishes.clear()
        names = (*BUCKETS.values(), *((WISHES,) if self._reads_wishes else ()), BLUEPRINTS)
        self._buckets = {
            name: Bucket(self._client, name, self._patience, forgets=name in (WISHES, BLUEPRINTS))
            for name in names
        }

    async def _make(self) -> None:
        js = jetstream(self._client)
        await ensure_library_stores(js, self._replicas)
        with contextlib.suppress(OutOfOrderError):  # another keeper was first
            await self._buckets[BLUEPRINTS].put(_INCARNATION, secrets.token_hex(8).encode(), after=0)

    async def _catch_up(self) -> bool:
        """Read what is new in all buckets; True where one of them is another than before."""
        for name, bucket in self._buckets.items():
            changes = await bucket.catch_up()
            if changes.lost:
                return True
            for number, value in enumerate(changes.values):
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                if name == WISHES:
                    self._view.add_wish(value)
                elif name != BLUEPRINTS:
                    self._view.add_word(_ROLES[name], value)
                elif value.key == _INCARNATION:
                    self._incarnation = value.data.decode(errors="replace")
                else:
                    self._view.add_blueprint(value)
            if name == BLUEPRINTS:
                for key in changes.removed:
                    self._view.remove_blueprint(key)
        return False
