"""Requests to the bus that outlive a lost connection, a server that starts, and an answer that got lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from esper_runtime.contracts import BusError

T = TypeVar("T")

NO_MESSAGE, NO_STREAM = 10037, 10059
"""Codes of the server's errors: no such message; no such stream."""

_WALKERS = 24
"""So many parts of a stream are read at the same time."""

_WAIT = 0.1
_ATTEMPT = 2.0


def jetstream(client: Client) -> JetStreamContext:
    """JetStream with requests that are made again before long."""
    return client.jetstream(timeout=_ATTEMPT)


async def steadily(what: str, request: Callable[[], Awaitable[T]], patience: float) -> T:
    """The answer to a request that may be made twice, tried for ``patience`` seconds.

    Args:
        what: it is about, for the message.
        request: makes it.
        patience: seconds.

    Raises:
        BusError: no answer came in time; the connection is closed.
        nats.js.errors.APIError: the server refuses (codes below 500).
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return await request()
        except nats.js.errors.APIError as error:
            if (error.code or 0) < 500:
                raise
            why: BaseException = error
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise BusError(f"{what}: the connection to the bus is closed") from error
        except (OSError, nats.errors.Error) as error:
            why = error
        if time.monotonic() + _WAIT > deadline:
            said = str(why) or "no answer; may this user read the library?"
            raise BusError(f"{what}: the bus did not answer within {patience:g} s ({said})") from why
        await asyncio.sleep(_WAIT)


async def stream_info(client: Client, stream: str, patience: float) -> StreamInfo | None:
    """What the server says of a stream; None where there is none.

    Raises:
        BusError: as `steadily`.
    """
    try:
        return await steadily(stream, lambda: jetstream(client).stream_info(stream), patience)
    except nats.js.errors.NotFoundError:
        return None


async def next_message(
    client: Client, stream: str, subject: str, sequence: int, patience: float
) -> Any | None:
    """The first message of ``subject`` (may have wildcards) at ``sequence`` or later; None: there is none.

    It is asked for in JSON: in the direct form a stored message with the headers of a refusal would be taken
    for one.

    Raises:
        BusError: as `steadily`; the stream is gone.
    """
    js = jetstream(client)
    try:
        return await steadily(
            stream, lambda: js.get_msg(stream, seq=sequence, subject=subject, next=True), patience
        )
    except nats.js.errors.NotFoundError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise BusError(f"{stream}: the bus has lost it ({error.description})") from error


async def messages(
    client: Client, stream: str, subject: str, first: int, last: int, patience: float
) -> list[Any]:
    """All messages of ``subject`` at ``first`` to ``last``, in their order; several parts are read at a time.

    Raises:
        BusError: as `steadily`; the stream is gone.
    """
    step = max(1, -(-(last - first + 1) // _WALKERS))

    async def walk(begin: int, end: int) -> list[Any]:
        found = []
        while begin <= end:
            message = await next_message(client, stream, subject, begin, patience)
            if message is None or not begin <= int(message.seq) <= end:
                break
            found.append(message)
            begin = int(message.seq) + 1
        return found

    starts = range(first, last + 1, step)
    parts = await asyncio.gather(*(walk(begin, min(begin + step - 1, last)) for begin in starts))
    return [message for part in parts for message in part]
