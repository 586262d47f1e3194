"""Adding to the library: words, blueprints, wishes, artifacts."""

import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

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
    InnovationWish,
    InputError,
    KernelWish,
    LibraryEvent,
    Role,
    Signed,
    Statement,
    Verdict,
    utc_now,
)
from esper_runtime.oona import BLUEPRINTS, WISHES, OutOfOrderError, publish, publish_event
from esper_runtime.urza.lineage import lineage
from esper_runtime.urza.reader import BUCKETS, LibraryReader
from esper_runtime.urza.reports import StoredReport, put_report
from esper_runtime.urza.words import Word

_Change = Callable[[BlueprintEntry | None], BlueprintEntry | None]
_log = logging.getLogger(__name__)


class Library(LibraryReader):
    """Blueprints, kernels and artifacts on a bus: `LibraryReader`, and what adds to it."""

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
        new = not self.is_settled(word.statement)
        if new:
            await self.put_word(role, word)
            await self.refresh()
        else:  # who said it may have died before everybody was told
            await self._tell(LibraryEvent(kind=word.statement.kind, kernel=word.statement.kernel), word.key)
        return new

    async def put_word(self, role: Role, word: Word) -> None:
        """Put a word whose signature was checked into the bucket of its role, and tell everybody.

        Raises:
            BusError: it could not be stored.
        """
        await self._buckets[BUCKETS[role]].put(word.key, word.encoded, after=0)
        await self._tell(LibraryEvent(kind=word.statement.kind, kernel=word.statement.kernel), word.key)

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
        entry = BlueprintEntry(
            blueprint=canonical_id(blueprint),
            graph=blueprint,
            origin=origin or blueprint.provenance.origin.value,
            entered=utc_now(),
        )
        await self.put_entry(entry, reinstate=reinstate)
        return entry.blueprint

    async def put_entry(self, entry: BlueprintEntry, *, reinstate: bool = False) -> bool:
        """Enter a blueprint as an entry that was made before says; where it is known, that one stays.

        Returns:
            Whether anything was changed.

        Raises:
            BusError: it could not be stored.
        """
        return await self._change(entry.blueprint, lambda known: _entered(known, entry, reinstate))

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
        if not self._reads_wishes:
            return await self._send_wish(wish)
        bucket = self._buckets[WISHES]
        while True:
            last = await bucket.last(kernel)  # before what is decided upon is read
            await self.refresh()
            known = self._view.wishes.get(kernel)
            if known is not None and (known.urgent or not wish.urgent):
                return False
            with contextlib.suppress(OutOfOrderError):
                await bucket.put(kernel, wish.model_dump_json(by_alias=True).encode(), after=last)
                return True

    async def want_invented(self, wish: InnovationWish) -> bool:
        """Say that a training wants blueprints to be invented.

        Returns:
            False where the same was said before.

        Raises:
            BusError: it could not be stored.
        """
        data = wish.model_dump_json(by_alias=True).encode()
        if not self._reads_wishes:
            identity = f"{wish.wish_id}-{secrets.token_hex(4)}"
            await publish(
                self._client, f"$KV.{WISHES}.{wish.wish_id}", data, identity, patience=self._patience
            )
            return True
        bucket = self._buckets[WISHES]
        while True:
            last = await bucket.last(wish.wish_id)
            await self.refresh()
            if self._view.innovations.get(wish.wish_id) == wish:
                return False
            with contextlib.suppress(OutOfOrderError):
                await bucket.put(wish.wish_id, data, after=last)
                return True

    async def _send_wish(self, wish: KernelWish) -> bool:
        """Where wishes cannot be read, one that was sent over this connection is not sent again."""
        kernel, said = wish.spec.kernel_id, self._sent_wishes.get(wish.spec.kernel_id)
        if said is not None and (said or not wish.urgent):
            return False
        data = wish.model_dump_json(by_alias=True).encode()
        identity = f"wish-{kernel}-{wish.urgent}-{secrets.token_hex(4)}"
        await publish(self._client, f"$KV.{WISHES}.{kernel}", data, identity, patience=self._patience)
        self._sent_wishes[kernel] = wish.urgent
        return True

    async def put_report(self, report: StoredReport) -> None:
        """Publish a field report of an earlier library again.

        Raises:
            BusError: it could not be stored.
        """
        await put_report(self._client, report, self._patience)

    async def put_artifact(self, path: Path) -> str:
        """Store an artifact and return its digest; one that is there is not stored again.

        Raises:
            InputError: the file cannot be read.
            BusError: the store does not take it.
        """
        digest, _ = await self.artifacts.put(path)
        return digest

    def is_settled(self, statement: Statement) -> bool:
        """Whether a statement would add nothing to what was there at the last `refresh`."""
        said = [word.statement for word in self._view.words_about(statement.kernel)]
        match statement:
            case Compiled():
                return any(isinstance(one, Compiled) for one in said)
            case CompileFailed():
                return any(isinstance(one, Compiled | CompileFailed) for one in said)
            case Verdict():
                return any(isinstance(one, Verdict) and one.digest == statement.digest for one in said)
        return statement in said

    async def _change(self, key: str, change: _Change) -> bool:
        """Put what ``change`` makes of the entry under ``key``, against whoever does the same."""
        bucket = self._buckets[BLUEPRINTS]
        while True:
            last = await bucket.last(key)  # before what is decided upon is read
            await self.refresh()
            entry = change(self._view.blueprints.get(key))
            if entry is None:
                return False
            try:
                await bucket.put(key, entry.model_dump_json(by_alias=True).encode(), after=last)
            except OutOfOrderError:
                continue
            await self.refresh()
            await self._tell(LibraryEvent(kind="Blueprint", blueprint=key), f"{key}.{last}")
            return True

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
