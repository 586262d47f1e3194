"""Reading a bucket from where one was, and putting a value into it once."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import nats.js.errors
from nats.aio.client import Client

from esper_runtime.contracts import BusError
from esper_runtime.oona import OutOfOrderError, publish
from esper_runtime.urza.steadily import jetstream, messages, steadily, stream_info
from esper_runtime.urza.view import Value

_REMOVED = ("DEL", "PURGE")


@dataclass
class Changes:
    """What came into a bucket since it was read before.

    Attributes:
        values: in their order.
        removed: keys that were deleted.
        lost: the bucket is not the one that was read before: all that was read from it is void.
    """

    values: list[Value] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    lost: bool = False


class Bucket:
    """A KV bucket, read in order through any number of lost connections, without a consumer on the server.

    Args:
        client: a connection.
        name: of the bucket.
        patience: seconds that a request is tried for.
        forgets: whether keys can be deleted; in a bucket that takes each key once, a mark of deletion is a
            value like any other.
    """

    def __init__(self, client: Client, name: str, patience: float, *, forgets: bool) -> None:
        self.name = name
        self._client = client
        self._patience = patience
        self._forgets = forgets
        self._stream, self._prefix = f"KV_{name}", f"$KV.{name}."
        self._seen = 0
        self._made: object = None
        self._keys: set[str] = set()

    async def catch_up(self) -> Changes:
        """What is new. Where the bucket was made anew, or something was removed behind our back, it is read
        from the start and ``lost`` is set.

        Raises:
            BusError: the server does not answer, or there is no such bucket.
        """
        info = await stream_info(self._client, self._stream, self._patience)
        if info is None:
            self._forget()
            raise NoBucketError(f"the bus has no library: the bucket {self.name} is not there")
        state, lost = info.state, False
        anew = self._made is not None and (info.created != self._made or state.last_seq < self._seen)
        if anew or (state.last_seq == self._seen and state.messages != len(self._keys)):
            self._forget()
            lost = True
        self._made = info.created
        changes = await self._read(self._seen + 1, state.last_seq)
        changes.lost = lost
        self._seen = state.last_seq
        return changes

    async def last(self, key: str) -> int:
        """The sequence of the last value under ``key``, 0 where there never was one.

        Raises:
            BusError: the server does not answer.
        """
        message = await self._last(key)
        return 0 if message is None else int(message.seq)

    async def put(self, key: str, data: bytes, after: int) -> int:
        """Put a value where the last one under ``key`` has the sequence ``after`` (0: there is none).

        Returns:
            Its sequence.

        Raises:
            OutOfOrderError: the last one is another.
            BusError: it could not be stored.
        """
        name = hashlib.sha256(data).hexdigest()[:24]
        identity = f"{self.name}-{key}-{after}-{name}"
        subject = self._prefix + key
        try:
            return await publish(self._client, subject, data, identity, after=after, patience=self._patience)
        except OutOfOrderError:
            # It may be our own: stored, with the acknowledgement lost.
            found = await self._last(key)
            if found is not None and found.data == data and int(found.seq) > after:
                return int(found.seq)
            raise

    async def _last(self, key: str) -> Any | None:
        js, subject = jetstream(self._client), self._prefix + key
        try:
            return await steadily(subject, lambda: js.get_msg(self._stream, subject=subject), self._patience)
        except nats.js.errors.NotFoundError:
            return None

    def _forget(self) -> None:
        self._seen, self._made = 0, None
        self._keys.clear()

    async def _read(self, first: int, last: int) -> Changes:
        """All that lies at ``first`` to ``last``."""
        changes = Changes()
        for message in await messages(self._client, self._stream, ">", first, last, self._patience):
            key = str(message.subject).removeprefix(self._prefix)
            self._keys.add(key)
            if self._forgets and (message.headers or {}).get("KV-Operation") in _REMOVED:
                changes.removed.append(key)
            else:
                changes.values.append(Value(key, int(message.seq), message.data or b""))
        return changes


class NoBucketError(BusError):
    """There is no library on this bus, or its storage was lost."""
