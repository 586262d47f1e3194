"""The library on a bus: who reads it, adds to it, and waits for what is new."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Self

from nats.aio.client import Client

from esper_runtime.artifact import Trust
from esper_runtime.blueprint import canonical_id, validate
from esper_runtime.contracts import (
    LIBRARY_SUBJECT,
    Blueprint,
    BlueprintEntry,
    BusError,
    CloudEvent,
    Compiled,
    CompileFailed,
    EventType,
    InputError,
    KernelQuery,
    KernelRecord,
    KernelWish,
    LibraryEvent,
    Role,
    Signed,
    Statement,
    Verdict,
    utc_now,
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
    ensure_streams,
    publish_event,
)
from esper_runtime.urza.artifacts import ArtifactStore
from esper_runtime.urza.bucket import Bucket, NoBucketError
from esper_runtime.urza.index import Ranked
from esper_runtime.urza.lineage import Lineage, lineage
from esper_runtime.urza.steadily import jetstream
from esper_runtime.urza.view import LibraryView
from esper_runtime.urza.words import Fault, Word

POLL = 1.0
"""Seconds after which a watcher looks at the library though no event came."""

BUCKETS: Mapping[Role, str] = {
    Role.TEZZERET: COMPILED,
    Role.URABRASK: VERDICTS,
    Role.PLANNER: RULINGS,
}

_ROLES = {name: role for role, name in BUCKETS.items()}
_INCARNATION = "incarnation"
_Change = Callable[[BlueprintEntry | None], BlueprintEntry | None]
_log = logging.getLogger(__name__)


class Library:
    """Blueprints, kernels and artifacts on a bus.

    What it answers is read from the bus first; a lost connection is waited for, ``patience`` seconds for each
    request. One object serves one event loop.

    Args:
        client: a connection.
        trust: whose words count.
        keeper: makes the buckets where they lack, also after the bus has lost its storage; the planner's.
        patience: seconds.
    """

    def __init__(self, client: Client, trust: Trust, *, keeper: bool = False, patience: float = 10.0) -> None:
        self.artifacts = ArtifactStore(client, patience)
        self.trust = trust
        self._client = client
        self._keeper = keeper
        self._patience = patience
        self._ignored: Counter[Fault] = Counter()
        self._watchers: list[dict[str, KernelRecord]] = []
        self._lock = asyncio.Lock()
        self._view = LibraryView(trust)
        self._start_over()

    @classmethod
    async def connect(
        cls, address: BusAddress, trust: Trust, *, keeper: bool = False, patience: float = 10.0
    ) -> Self:
        """A library with a connection of its own; `close` it.

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

    async def faults(self) -> list[tuple[str, str, Fault]]:
        """What lies in the buckets of words and does not count: bucket, key, reason.

        Raises:
            BusError: as `refresh`.
        """
        await self.refresh()
        return [(BUCKETS[role], value.key, fault) for role, value, fault in self._view.faults()]

    async def publish(self, signed: Signed) -> bool:
        """Say a word, in the bucket of the role that has signed it, and tell everybody.

        Returns:
            False where it adds nothing: it was said before, or an earlier word has settled it (an artifact of
            the kernel, a verdict about the digest).

        Raises:
            ArtifactError: we ourselves would not believe it.
            BusError: it could not be stored.
        """
        key = self.trust.keys.find(signed.signature.key)
        role = key.role if key is not None else Role.PLANNER
        word = Word(self.trust.verify(signed, role), signed)
        await self.refresh()
        new = not self._is_settled(word.statement)
        if new:
            await self._buckets[BUCKETS[role]].put(word.key, word.encoded, after=0)
            await self.refresh()
        statement = word.statement
        await self._tell(LibraryEvent(kind=statement.kind, kernel=statement.kernel), word.key)
        return new

    async def enter(self, blueprint: Blueprint, origin: str | None = None, *, reinstate: bool = False) -> str:
        """Enter a blueprint after the static check.

        Args:
            blueprint: one that is known stays as it is.
            origin: default: the one in its provenance.
            reinstate: take it out of the archive, where it is there.

        Returns:
            Its id.

        Raises:
            BlueprintError: the check refuses it.
            BusError: it could not be stored.
        """
        validate(blueprint)
        identity = canonical_id(blueprint)
        entry = BlueprintEntry(
            blueprint=identity,
            graph=blueprint,
            origin=origin or blueprint.provenance.origin.value,
            entered=utc_now(),
        )
        await self._change(identity, lambda known: _entered(known, entry, reinstate))
        return identity

    async def archive(self, blueprint: str, reason: str) -> None:
        """Offer a blueprint and its kernels no more; all that is known of them stays.

        Raises:
            InputError: there is no such blueprint, or the reason is too long.
            BusError: it could not be stored.
        """
        if not 0 < len(reason) <= 500:
            raise InputError(f"a reason of {len(reason)} characters; allowed: 1 to 500")
        if blueprint not in await self.blueprints():
            lineage(blueprint, self._view.blueprints, {})
        await self._change(blueprint, lambda known: _archived(known, reason))

    async def wish(self, wish: KernelWish) -> bool:
        """Say that a training can use a kernel.

        Returns:
            False where that was said before, as urgently.

        Raises:
            BusError: it could not be stored.
        """
        kernel = wish.spec.kernel_id
        bucket = self._buckets[WISHES]
        while True:
            await self.refresh()
            known = self._view.wishes.get(kernel)
            if known is not None and (known.urgent or not wish.urgent):
                return False
            with contextlib.suppress(OutOfOrderError):
                data = wish.model_dump_json(by_alias=True).encode()
                await bucket.put(kernel, data, after=await bucket.last(kernel))
                return True

    async def put_artifact(self, path: Path) -> str:
        """Store an artifact and return its digest; one that is there is not stored again.

        Raises:
            InputError: the file cannot be read.
            BusError: the store does not take it.
        """
        digest, _ = await self.artifacts.put(path)
        return digest

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
                    await asyncio.wait_for(woken.wait(), POLL)
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
        names = (*BUCKETS.values(), WISHES, BLUEPRINTS)
        self._buckets = {name: Bucket(self._client, name, self._patience) for name in names}

    async def _make(self) -> None:
        js = jetstream(self._client)
        await ensure_streams(js)
        await ensure_library_stores(js)
        with contextlib.suppress(OutOfOrderError):  # another keeper was first
            await self._buckets[BLUEPRINTS].put(_INCARNATION, secrets.token_hex(8).encode(), after=0)

    async def _catch_up(self) -> bool:
        """Read what is new in all buckets; True where one of them is another than before."""
        for name, bucket in self._buckets.items():
            changes = await bucket.catch_up()
            if changes.lost:
                return True
            for value in changes.values:
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

    def _is_settled(self, statement: Statement) -> bool:
        said = [word.statement for word in self._view.words_about(statement.kernel)]
        match statement:
            case Compiled():
                return any(isinstance(one, Compiled) for one in said)
            case CompileFailed():
                return any(isinstance(one, Compiled | CompileFailed) for one in said)
            case Verdict():
                return any(isinstance(one, Verdict) and one.digest == statement.digest for one in said)
        return statement in said

    async def _change(self, key: str, change: _Change) -> None:
        """Put what ``change`` makes of the entry under ``key``, against whoever does the same."""
        bucket = self._buckets[BLUEPRINTS]
        while True:
            last = await bucket.last(key)
            await self.refresh()
            entry = change(self._view.blueprints.get(key))
            if entry is None:
                return
            try:
                await bucket.put(key, entry.model_dump_json(by_alias=True).encode(), after=last)
            except OutOfOrderError:
                continue
            await self.refresh()
            await self._tell(LibraryEvent(kind="Blueprint", blueprint=key), f"{key}.{last}")
            return

    async def _tell(self, event: LibraryEvent, identity: str) -> None:
        """Publish an event; what it is about is in the library already, and watchers find it without."""
        message = CloudEvent.new(EventType.LIBRARY, "/library", event, identity)
        try:
            await publish_event(self._client, LIBRARY_SUBJECT, message, patience=self._patience)
        except BusError as error:
            _log.warning("an event of the library was not published: %s", error)


def _entered(known: BlueprintEntry | None, entry: BlueprintEntry, reinstate: bool) -> BlueprintEntry | None:
    if known is None:
        return entry
    return known.model_copy(update={"archived": None}) if reinstate and known.archived is not None else None


def _archived(known: BlueprintEntry | None, reason: str) -> BlueprintEntry | None:
    if known is None or known.archived is not None:
        return None
    return known.model_copy(update={"archived": reason})
