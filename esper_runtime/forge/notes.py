"""The planner's notes in a bucket of their own: compare-and-set, so that two planners lose nothing."""

import secrets
from collections.abc import Callable, Mapping

from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.contracts import KernelNote
from esper_runtime.oona import NOTES, OutOfOrderError, Tail, publish

_PREFIX = f"$KV.{NOTES}."
PATIENCE = 5.0


class Notes:
    """What planners have noted, by kernel.

    Args:
        client: a connection of the planner's.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tail = Tail(client.jetstream(), f"KV_{NOTES}")
        self._notes: dict[str, KernelNote] = {}
        self._revisions: dict[str, int] = {}

    @property
    def all(self) -> Mapping[str, KernelNote]:
        """The notes as last read."""
        return self._notes

    async def refresh(self) -> None:
        """Read what is new.

        Raises:
            BusError: the bus does not answer.
        """
        found = await self._tail.read()
        if self._tail.began_anew:
            self._notes.clear()
            self._revisions.clear()
        for kept in found:
            key = kept.subject.removeprefix(_PREFIX)
            if kept.sequence > self._revisions.get(key, 0):
                self._revisions[key] = kept.sequence
                self._take(key, kept.data)

    async def change(self, kernel: str, change: Callable[[KernelNote], KernelNote]) -> KernelNote:
        """Put ``change(note)`` in the place of the note on a kernel, whatever others write meanwhile.

        ``change`` may be called several times; where it returns its argument nothing is written.

        Raises:
            BusError: the bus does not answer.
        """
        while True:
            before = self._notes.get(kernel) or KernelNote(kernel=kernel)
            after = change(before)
            if after == before:
                return before
            try:
                revision = await publish(
                    self._client,
                    _PREFIX + kernel,
                    after.model_dump_json(by_alias=True, exclude_defaults=True).encode(),
                    f"note-{secrets.token_hex(16)}",
                    patience=PATIENCE,
                    after=self._revisions.get(kernel, 0),
                )
            except OutOfOrderError:
                await self.refresh()
                continue
            self._notes[kernel], self._revisions[kernel] = after, revision
            return after

    def _take(self, key: str, data: bytes) -> None:
        if not key.startswith("ck-"):
            return
        try:
            self._notes[key] = KernelNote.model_validate_json(data)
        except ValidationError:  # of a later version, or none: what it said is found out again
            self._notes.pop(key, None)
