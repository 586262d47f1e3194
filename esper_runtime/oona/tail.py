"""Reading a stream from where one was, message by message, without a consumer that could be lost."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from esper_runtime.contracts import BusError

_AT_ONCE = 64


@dataclass(frozen=True)
class Kept:
    """A message as a stream keeps it; ``data`` is empty for what was deleted from a bucket."""

    sequence: int
    subject: str
    data: bytes


class Tail:
    """What is in a stream, from its first message on.

    Every `read` asks the server anew, so that nothing is lost over lost connections and servers that were
    killed. A stream that was made anew, or lost its end, is read from its beginning again.

    Args:
        js: a context of a connection.
        stream: its name.
    """

    def __init__(self, js: JetStreamContext, stream: str) -> None:
        self.messages = 0
        """How many the stream held at the last read."""
        self.began_anew = False
        """Whether the last read started from the beginning: what was read before no longer counts."""
        self._js, self._stream = js, stream
        self._next = 1
        self._created: datetime | None = None

    async def read(self) -> list[Kept]:
        """The messages that came since the last time, in their order.

        Raises:
            BusError: the server does not answer, or there is no such stream.
        """
        try:
            info = await self._js.stream_info(self._stream)
            self.began_anew = self._next > 1 and (
                info.created != self._created or info.state.last_seq + 1 < self._next
            )
            if self.began_anew:
                self._next = 1
            self._created, self.messages = info.created, info.state.messages
            found: list[Kept] = []
            numbers = range(max(self._next, info.state.first_seq), info.state.last_seq + 1)
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                found += [kept for kept in await asyncio.gather(*map(self._get, some)) if kept is not None]
            self._next = info.state.last_seq + 1
        except (OSError, nats.errors.Error) as error:
            raise BusError(f"stream {self._stream} cannot be read ({error})") from error
        return found

    def rewind(self) -> None:
        """Read everything again the next time."""
        self._next = 1

    async def _get(self, sequence: int) -> Kept | None:
        return await get_kept(self._js, self._stream, sequence)


async def get_kept(js: JetStreamContext, stream: str, sequence: int) -> Kept | None:
    """The message with a sequence, None where it is no longer there.

    It is asked for in JSON: in the direct form a stored message may look like a refusal.

    Raises:
        nats.errors.Error: the server does not answer.
    """
    try:
        message = await js.get_msg(stream, sequence)
    except nats.js.errors.NotFoundError:
        return None
    return Kept(sequence, str(message.subject), message.data or b"")


async def last_kept(js: JetStreamContext, stream: str, subject: str) -> Kept | None:
    """The last message of a subject, None where there is none.

    Raises:
        BusError: the server does not answer.
    """
    try:
        message = await js.get_last_msg(stream, subject)
    except nats.js.errors.NotFoundError:
        return None
    except (OSError, nats.errors.Error) as error:
        raise BusError(f"stream {stream} cannot be read ({error})") from error
    return Kept(int(message.seq or 0), subject, message.data or b"")
