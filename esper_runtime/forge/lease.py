"""Who plans: one process at a time for each library, decided by compare-and-set on one key."""

import secrets
import time
from collections.abc import Callable

from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.contracts import BusError, ContractModel
from esper_runtime.forge.notes import PATIENCE
from esper_runtime.oona import NOTES, OutOfOrderError, last_kept, publish

EXPIRES = 15.0
"""Seconds without a renewal after which another process takes over."""
RENEW = 4.0

_SUBJECT = f"$KV.{NOTES}.lease"


class Holder(ContractModel):
    """Who holds the lease.

    Attributes:
        host: where; a machine's name, or the kind of place.
        process: which process it is there.
        nonce: of this one object.
    """

    host: str
    process: str
    nonce: str


class Lease:
    """The right to plan for a library.

    A holder that is known to be over is replaced at once; another one when it has not renewed for `EXPIRES`
    seconds of this process's own clock. It keeps two planners from doing the same work, no more: what they
    do is right also where a holder that was paused goes on for a moment.

    Args:
        client: a connection of the planner's.
        host: where this process is.
        process: which one it is there.
        is_over: whether a holder is known not to plan any more.
    """

    def __init__(
        self,
        client: Client,
        host: str,
        process: str,
        is_over: Callable[[Holder], bool] = lambda holder: False,
    ) -> None:
        self._client, self._is_over = client, is_over
        self._me = Holder(host=host, process=process, nonce=secrets.token_hex(8))
        self._revision: int | None = None
        self._renewed = 0.0
        self._seen: tuple[int, float] | None = None

    @property
    def held(self) -> bool:
        """Whether this process held it when it last asked."""
        return self._revision is not None

    async def hold(self) -> bool:
        """Take it where it is free, renew it where it is due; whether this process has it.

        Raises:
            BusError: the bus does not answer.
        """
        now = time.monotonic()
        if self._revision is not None and now - self._renewed < RENEW:
            return True
        try:
            kept = await last_kept(self._client.jetstream(), f"KV_{NOTES}", _SUBJECT)
            revision = kept.sequence if kept is not None else 0
            if kept is not None and not self._free(kept.sequence, kept.data, now):
                self._revision = None
                return False
            self._revision = await self._write(self._me.model_dump_json(by_alias=True).encode(), revision)
        except OutOfOrderError:
            self._revision = None
            return False
        self._renewed = now
        return True

    async def release(self) -> None:
        """Give it back, so that the next one need not wait."""
        if self._revision is not None:
            revision, self._revision = self._revision, None
            try:
                await self._write(b"{}", revision)
            except BusError:
                return  # gone with the bus, or another one has it

    async def _write(self, data: bytes, after: int) -> int:
        return await publish(
            self._client, _SUBJECT, data, f"lease-{secrets.token_hex(16)}", patience=PATIENCE, after=after
        )

    def _free(self, revision: int, data: bytes, now: float) -> bool:
        try:
            holder = Holder.model_validate_json(data)
        except ValidationError:
            return True
        if holder == self._me or self._is_over(holder):
            return True
        if self._seen is None or self._seen[0] != revision:
            self._seen = revision, now
        return now - self._seen[1] > EXPIRES
