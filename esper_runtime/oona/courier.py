"""The bridge's other side: what runs in its thread and talks to the server."""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from esper_runtime.contracts import (
    BusError,
    Channel,
    EventType,
    InputError,
    Progress,
    event_bytes,
    new_traceparent,
    run_subject,
)
from esper_runtime.oona.accounts import consumer_name
from esper_runtime.oona.address import BusAddress
from esper_runtime.oona.client import RECONNECT_WAIT, AccessRefusedError, connect, disconnect, publish
from esper_runtime.oona.journal_copy import JournalCopy
from esper_runtime.oona.receive import Received, Receiver, ensure_consumer
from esper_runtime.oona.reports import Reports
from esper_runtime.oona.streams import ensure_streams
from esper_runtime.oona.telemetry import Batch, Item, TelemetryBuffer, item_json

SLOW_RETRY = 5.0
"""Seconds at most between two tries after a refusal that only a person can mend."""

PATIENCE = 10.0
"""Seconds after which a connection over which nothing is acknowledged is given up for a new one."""

_BUSY, _IDLE = 0.002, 0.02
"""Seconds between two looks at the buffer. Waking a thread would cost the training thread a system call."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BusStatus:
    """How it stands with the connection.

    Attributes:
        connected: whether it is up.
        since: Unix time at which that changed.
        connections: how many there have been.
        error: why it is not up.
    """

    connected: bool
    since: float
    connections: int
    error: str | None


class Courier:
    """Carries everything between a bridge's queues and the bus, one connection after the other.

    Args:
        address: of the bus.
        namespace: of the run.
        run: its name.
        source: of its events.
        journal: file to copy; None for none.
        buffer: telemetry of the run.
    """

    def __init__(
        self,
        address: BusAddress,
        namespace: str,
        run: str,
        source: str,
        journal: Path | None,
        buffer: TelemetryBuffer,
    ) -> None:
        self.latest: dict[Channel, deque[tuple[str, Item]]] = {
            channel: deque(maxlen=1) for channel in (Channel.STATE, Channel.PROGRESS)
        }
        """What is to be sent next; a newer item displaces one that was not sent yet."""
        self.arrived: deque[Received] = deque()
        self.handled: deque[Received] = deque()
        self.status = BusStatus(connected=False, since=time.time(), connections=0, error=None)
        self.receiver = Receiver("EVENTS", consumer_name(namespace, run))
        self._subjects = {channel: run_subject(namespace, run, channel) for channel in Channel}
        self.copy = JournalCopy(journal, self._subjects[Channel.JOURNAL], source) if journal else None
        self.reports = Reports(self._subjects[Channel.REPORT], source)
        self._address, self._source, self._buffer = address, source, buffer
        self._name = f"esper {source}"
        self._trace = secrets.token_hex(16)
        self._unique = secrets.token_hex(6)
        self._batch: Batch | None = None
        self._held: dict[Channel, tuple[str, bytes]] = {}
        self._last_progress: Progress | None = None
        self._sent = itertools.count()
        self._closing = asyncio.Event()
        self._flushed = asyncio.Event()

    async def run(self, patience: Callable[[], float]) -> None:
        """Work until `close`, then until what is left was sent, or for ``patience()`` seconds more."""
        sessions = asyncio.create_task(self._sessions())
        await self._closing.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience()):
                await self._flushed.wait()
        sessions.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sessions
        self._buffer.drop_rest()
        self.status = replace(self.status, connected=False, since=time.time())

    def close(self) -> None:
        """Send what is left and end; called in the loop's thread."""
        self._closing.set()

    async def _sessions(self) -> None:
        slow = 0.0
        while True:
            try:
                await self._session()
                wait = RECONNECT_WAIT[0]
            except _MendError as error:
                # A server that has just started says so too, for a moment.
                self._note(str(error))
                wait = slow = min(SLOW_RETRY, 2 * slow or RECONNECT_WAIT[1])
            except (BusError, nats.errors.Error, OSError) as error:
                self._note(str(error) or type(error).__name__)
                wait, slow = RECONNECT_WAIT[1], 0.0
            except Exception as error:  # whatever it is, the bus must never end a training
                _log.exception("bus: unexpected error")
                self._note(f"{type(error).__name__}: {error}")
                wait = SLOW_RETRY
            await asyncio.sleep(wait)

    async def _session(self) -> None:
        """One connection from its beginning to its end."""
        closed = asyncio.Event()

        async def on_closed() -> None:
            closed.set()

        try:
            client = await connect(
                self._address, self._name, patience=1.0, reconnect=False, on_closed=on_closed
            )
        except (AccessRefusedError, InputError) as error:
            raise _MendError(str(error)) from error
        try:
            await self._prepare(client)
            connections = self.status.connections + 1
            self.status = BusStatus(connected=True, since=time.time(), connections=connections, error=None)
            _log.info("bus: connected to %s", self._address.url)
            await self._work(client, closed)
        finally:
            await disconnect(client)

    async def _prepare(self, client: Client) -> None:
        js = client.jetstream(timeout=5)
        mine = self._address.read_credentials()
        if self.copy is not None:
            self.copy.fenced = mine is not None and mine.of_run
        if mine is None or not mine.imports:  # else all is there, and nothing can be made
            subject = self._subjects[Channel.DIRECTIVE]
            try:
                await ensure_streams(js)
                await ensure_consumer(js, "EVENTS", self.receiver.durable, subject, only_new=True)
            except (BusError, nats.js.errors.APIError) as error:
                raise _MendError(str(error)) from error
        await self.receiver.bind(js)

    async def _work(self, client: Client, closed: asyncio.Event) -> None:
        works: list[Coroutine[Any, Any, None]] = [
            self._send_telemetry(client),
            self._send_latest(client, Channel.STATE),
            self._send_latest(client, Channel.PROGRESS),
            self.reports.run(client),
            self._receive(),
            self._acknowledge(client),
            self._finish(client),
            self._until(closed),
        ]
        if self.copy is not None:
            works.append(self.copy.run(client))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until(self, closed: asyncio.Event) -> None:
        await closed.wait()
        raise BusError(f"{self._address.url}: the connection was lost")

    # What goes out

    async def _send_telemetry(self, client: Client) -> None:
        wait = _BUSY
        while True:
            self._batch = self._batch or self._buffer.take()
            batch = self._batch
            if batch is None:
                await asyncio.sleep(wait)
                wait = min(_IDLE, 1.5 * wait)
                continue
            wait = _BUSY
            identity = f"{self._source}/telemetry/{self._unique}/{batch.first}"
            if await self._publish(client, Channel.TELEMETRY, EventType.TELEMETRY, identity, batch.data):
                self._buffer.delivered += batch.size
            else:
                self._buffer.unusable += batch.size
                self._buffer.dropped += batch.size
            self._batch = None
            await asyncio.sleep(_BUSY)

    async def _send_latest(self, client: Client, channel: Channel) -> None:
        while True:
            self._serialise(channel)
            held = self._held.get(channel)
            if held is None:
                await asyncio.sleep(_IDLE)
                continue
            identity = f"{self._source}/{channel.value}/{self._unique}/{next(self._sent)}"
            await self._publish(client, channel, held[0], identity, held[1])
            del self._held[channel]

    def _serialise(self, channel: Channel) -> None:
        """Hold the newest item of a channel ready for sending."""
        try:
            kind, item = self.latest[channel].popleft()
        except IndexError:
            return
        if isinstance(item, Progress):
            self._last_progress = item
            item = item.model_copy(update={"telemetry": self._buffer.counts()})
        try:
            self._held[channel] = kind, item_json(item)
        except ValueError as error:
            _log.warning("bus: %s cannot be sent: %s", kind, error)

    async def _publish(self, client: Client, channel: Channel, kind: str, identity: str, data: bytes) -> bool:
        """False where the message is larger than the server takes and was left out."""
        payload = event_bytes(kind, self._source, identity, data, new_traceparent(self._trace))
        if len(payload) > client.max_payload:
            _log.warning("bus: %s of %d bytes is more than the server takes; left out", kind, len(payload))
            return False
        await publish(client, self._subjects[channel], payload, identity, patience=PATIENCE)
        return True

    async def _finish(self, client: Client) -> None:
        """Once the run closes: when all was sent, say what became of the samples."""
        await self._closing.wait()
        while not self._all_sent():
            await asyncio.sleep(_BUSY)
        counts = self._buffer.counts()
        identity = f"{self._source}/telemetry/{self._unique}/end"
        data = counts.model_dump_json(by_alias=True).encode()
        await self._publish(client, Channel.TELEMETRY, EventType.TELEMETRY_ENDED, identity, data)
        if self._last_progress is not None:
            last = self._last_progress.model_copy(update={"telemetry": counts})
            identity = f"{self._source}/progress/{self._unique}/end"
            data = last.model_dump_json(by_alias=True).encode()
            await self._publish(client, Channel.PROGRESS, EventType.PROGRESS, identity, data)
        await client.flush()
        self._flushed.set()
        await asyncio.Event().wait()

    def _all_sent(self) -> bool:
        return (
            self._buffer.counts().waiting == 0
            and not self._held
            and not any(self.latest.values())
            and not self.handled
            and self.reports.all_sent()
            and (self.copy is None or self.copy.caught_up())
        )

    # What comes in

    async def _receive(self) -> None:
        while True:
            self.arrived.extend(await self.receiver.fetch(1, timeout=5))

    async def _acknowledge(self, client: Client) -> None:
        while True:
            while self.handled:
                await self.handled[0].acknowledge(client)
                self.handled.popleft()
            await asyncio.sleep(_IDLE)

    def _note(self, what: str) -> None:
        if self.status.connected or what != self.status.error:
            _log.info("bus: %s; trying on", what)
            since = time.time() if self.status.connected else self.status.since
            self.status = replace(self.status, connected=False, since=since, error=what)


class _MendError(Exception):
    """A person must mend this: tried again, but slowly."""
