"""Connecting to the bus, and publishing so that what was acknowledged is stored, once."""

import asyncio
import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header

from esper_runtime.contracts import BusError, CloudEvent
from esper_runtime.oona.address import BusAddress
from esper_runtime.oona.nkeys import IMPORTED_API, inbox_of
from esper_runtime.oona.roles import inbox_prefix

CLOSING_SECONDS = 2.0
"""To close a connection at most: one whose TLS handshake failed would never say that it is closed."""

RECONNECT_WAIT = (0.1, 0.25)
"""Seconds between two tries to reach a server that is away: drawn from this range."""

ATTEMPT = 1.0
"""Seconds that one publication may take before it is tried again."""


_HALF_CLOSED = "returning true from eof_received()"
"""asyncio's warning about a server that closes a TLS connection: nats-py cannot avoid it, nor can anybody."""

logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith(_HALF_CLOSED))


class AccessRefusedError(BusError):
    """The server is there and does not let us in."""


class _Client(Client):
    """One that makes its requests to JetStream where its account has them."""

    api: str | None = None

    def jetstream(self, **settings: Any) -> JetStreamContext:
        """As `nats.aio.client.Client.jetstream`."""
        if self.api is not None:
            settings.setdefault("prefix", self.api)
        return super().jetstream(**settings)


async def connect(
    address: BusAddress,
    name: str,
    *,
    patience: float = 5.0,
    reconnect: bool = True,
    on_closed: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """A connection with an inbox prefix of its own, so that no other client overhears its replies; with
    credentials it is the one that these allow.

    Args:
        address: of the bus.
        name: of this client, as the server's monitoring shows it.
        patience: seconds to try for.
        reconnect: whether the connection comes back by itself, for ever, once it was made.
        on_closed: called when the connection is closed for good.

    Raises:
        AccessRefusedError: token, password or credentials are wrong.
        BusError: the server cannot be reached in time; the text says why.
        InputError: a file that the address names cannot be used.
    """
    problems: list[BaseException] = []

    async def note(error: Exception) -> None:
        problems[:] = [*problems[-3:], error]

    client = _Client()
    mine = address.read_credentials()
    client.api = IMPORTED_API if mine is not None and mine.imports else None
    options: dict[str, Any] = address.connect_options() | {
        "name": name,
        "error_cb": note,
        "closed_cb": on_closed,
        "inbox_prefix": f"{inbox_of(mine.user)}.{secrets.token_hex(8)}"
        if mine
        else inbox_prefix(address.user),
        "allow_reconnect": reconnect,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": random.uniform(*RECONNECT_WAIT),
        "connect_timeout": 2,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
    }
    connecting = asyncio.ensure_future(client.connect(**options))
    try:
        deadline = time.monotonic() + patience
        while not connecting.done() and time.monotonic() < deadline:
            await asyncio.wait({connecting}, timeout=min(0.05, patience))
            if any(_refused(problem) for problem in problems):
                break
        if connecting.done():
            connecting.result()
            return client
    except (TimeoutError, OSError, nats.errors.Error) as error:
        problems.append(error)
    finally:
        if not client.is_connected:
            connecting.cancel()
            await asyncio.wait({connecting}, timeout=CLOSING_SECONDS)
            if connecting.done() and not connecting.cancelled():
                connecting.exception()  # looked at, so that asyncio does not complain of it
            await disconnect(client)
    why = next((problem for problem in problems if _refused(problem)), problems[-1] if problems else None)
    if why is not None and _refused(why):
        raise AccessRefusedError(
            f"{address.url}: the bus refuses this token, password or credentials ({why})"
        )
    hint = "check tlsCa, tlsCert and tlsKey" if isinstance(why, ssl.SSLError) else "is the server running?"
    raise BusError(f"{address.url}: the bus cannot be reached ({why or 'no answer'}); {hint}")


async def disconnect(client: Client) -> None:
    """Close a connection, also one that is broken; raises nothing."""
    closing = asyncio.ensure_future(client.close())
    await asyncio.wait({closing}, timeout=CLOSING_SECONDS)
    if not closing.done():
        closing.cancel()
    elif not closing.cancelled():
        closing.exception()


def _refused(error: BaseException) -> bool:
    return isinstance(error, nats.errors.AuthorizationError) or "authorization" in str(error).lower()


async def publish(
    client: Client,
    subject: str,
    payload: bytes,
    identity: str,
    *,
    patience: float | None = None,
    after: int | None = None,
) -> int:
    """Publish into a stream and return when that acknowledged it, through any number of lost connections.

    A copy that is sent again within the stream's duplicate window is stored once.

    Args:
        client: a connection.
        subject: of a stream.
        payload: the message.
        identity: its id, the same at each try.
        patience: seconds to try for; None: for ever.
        after: stored only where the last message of this subject has this stream sequence (0: none).

    Returns:
        Its sequence in the stream.

    Raises:
        BusError: patience ran out, no stream has this subject, or the stream refuses the message.
        OutOfOrderError: ``after`` does not hold.
    """
    headers = {Header.MSG_ID.value: identity}
    if after is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(after)
    deadline = None if patience is None else time.monotonic() + patience
    wait = RECONNECT_WAIT[0]
    while True:
        left = ATTEMPT if deadline is None else min(ATTEMPT, deadline - time.monotonic())
        try:
            ack = await client.jetstream().publish(
                subject, payload, timeout=max(left, 0.001), headers=headers
            )
            return int(ack.seq)
        except nats.js.errors.APIError as error:
            if error.err_code == 10071:
                raise OutOfOrderError(f"{subject}: {error.description}") from error
            if (error.code or 0) < 500:
                raise BusError(f"{subject}: the stream refuses the message: {error.description}") from error
            why: BaseException = error
        except nats.errors.MaxPayloadError as error:
            raise BusError(f"{subject}: {len(payload)} bytes are more than the bus takes") from error
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise BusError(f"{subject}: the connection is closed") from error
        except (OSError, nats.errors.Error) as error:
            why = error
        if deadline is not None and time.monotonic() + wait > deadline:
            raise BusError(
                f"{subject}: not acknowledged within {patience:g} s ({why or 'no answer'})"
            ) from why
        if not isinstance(why, nats.errors.TimeoutError):
            await asyncio.sleep(wait)


async def publish_event(
    client: Client, subject: str, event: CloudEvent, *, patience: float | None = None
) -> int:
    """`publish` a `CloudEvent` under its own id.

    Raises:
        BusError: as `publish`.
    """
    return await publish(client, subject, event.encoded(), event.id, patience=patience)


class OutOfOrderError(BusError):
    """Another message came between."""
