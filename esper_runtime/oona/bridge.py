"""The bridge between a training thread and the bus: the thread touches queues, never a socket or a lock."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from esper_runtime.contracts import (
    Channel,
    CloudEvent,
    ContractModel,
    EventType,
    FieldReport,
    Progress,
    TelemetryCounts,
)
from esper_runtime.oona.address import BusAddress
from esper_runtime.oona.courier import BusStatus, Courier
from esper_runtime.oona.receive import Received
from esper_runtime.oona.telemetry import Item, TelemetryBuffer

DEFAULT_BUFFER = 65_536
"""Samples kept while the bus is away: at 100 steps a second, eleven minutes."""


@dataclass(frozen=True)
class BridgeCounts:
    """What passed the bridge.

    Attributes:
        telemetry: produced = delivered + dropped + waiting; after `Bridge.close` nothing waits.
        unusable: samples dropped because JSON cannot hold them.
        received: events handed to the training thread.
        malformed: messages ignored because they were no CloudEvents.
        duplicates: copies of events that were handed out before.
        journal: sequence of the last journal entry that the bus has; -1 for none.
    """

    telemetry: TelemetryCounts
    unusable: int
    received: int
    malformed: int
    duplicates: int
    journal: int


class Bridge:
    """Connects one run with the bus, from a background thread with an event loop of its own.

    `telemetry`, `state`, `ask`, `progress` and `received` are for the training thread: each is a few queue
    operations, without a lock, a system call or serialisation, whatever the state of the bus. The bus may be
    away from the start, go and come back; nothing here raises because of it.

    Streams and consumer are made where they lack, unless the credentials are those of a run on a cluster, for
    which they were made.

    Args:
        address: of the bus.
        namespace: of the run; on one machine `LOCAL_NAMESPACE`.
        run: its name.
        source: of its events, e.g. ``/runs/local/NAME``.
        journal: the run's journal file, which is copied to the bus as it grows; None for no copy.
        buffer: samples of telemetry kept while the bus is away; the oldest are dropped and counted.

    Raises:
        InputError: namespace or run cannot stand in a subject.
    """

    def __init__(
        self,
        address: BusAddress,
        namespace: str,
        run: str,
        source: str,
        journal: Path | None = None,
        *,
        buffer: int = DEFAULT_BUFFER,
    ) -> None:
        self._buffer = TelemetryBuffer(buffer)
        self._courier = Courier(address, namespace, run, source, journal, self._buffer)
        self._latest = self._courier.latest
        self._arrived = self._courier.arrived
        self._given: deque[Received] = deque()
        self._received = 0
        self._deadline = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="esper-bus", daemon=True)

    def start(self) -> None:
        """Start the thread; returns at once, connected or not."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    # For the training thread

    def telemetry(self, item: Item) -> None:
        """Send one sample, batched with others; may be dropped where the bus is away for long."""
        self._buffer.put(item)

    def state(self, item: Item) -> None:
        """Publish a state snapshot; one that was not sent yet gives way to it."""
        self._latest[Channel.STATE].append((EventType.STATE.value, item))

    def ask(self, question: ContractModel) -> None:
        """Put a question to the controller service; one that was not sent yet gives way to it."""
        self._latest[Channel.STATE].append((EventType.QUESTION.value, question))

    def progress(self, item: Progress) -> None:
        """Publish how far the run is; the telemetry counts are filled in."""
        self._latest[Channel.PROGRESS].append((EventType.PROGRESS.value, item))

    def report(self, identity: str, item: FieldReport) -> None:
        """Publish what a kernel did; it is kept until the bus has it.

        Args:
            identity: of the report, the same in every process: the digest of its journal entry.
            item: the next report of the run. A process that goes on with a run hands over the earlier ones
                first.
        """
        self._courier.reports.add(identity, item)

    def received(self) -> list[CloudEvent]:
        """The directives and commands that arrived since the last call, each once in this process.

        What one call returned counts as handled when the next one is made: only then is it acknowledged, so
        that a process that dies before leaves it to the next one. That one may see it again, so what has been
        done is to be recognised by the event's id (the journal has it).
        """
        while self._given:
            self._courier.handled.append(self._given.popleft())
        while self._arrived:
            self._given.append(self._arrived.popleft())
        self._received += len(self._given)
        return [received.event for received in self._given]

    @property
    def overtaken(self) -> bool:
        """Whether another attempt of this run has gone on, as the journal on the bus shows."""
        return self._courier.copy is not None and self._courier.copy.overtaken

    # For anybody

    def status(self) -> BusStatus:
        """Whether the connection is up, since when, and why not."""
        return self._courier.status

    def counts(self) -> BridgeCounts:
        """What passed so far."""
        receiver, copy = self._courier.receiver, self._courier.copy
        return BridgeCounts(
            telemetry=self._buffer.counts(),
            unusable=self._buffer.unusable,
            received=self._received,
            malformed=receiver.malformed,
            duplicates=receiver.duplicates,
            journal=copy.copied if copy is not None else -1,
        )

    def close(self, deadline: float = 5.0, handled: bool = True) -> BridgeCounts:
        """Send what is left, within ``deadline`` seconds, and end the thread; waits, and may be called twice.

        Args:
            deadline: seconds; what was not sent by then is dropped and counted. The journal's copy goes on
                when a bridge for the same run is opened again.
            handled: whether what `received` returned last had its effect.

        Returns:
            The final counts: no sample waits any more.
        """
        if self._loop is None:
            self._buffer.drop_rest()
            return self.counts()
        if handled:
            while self._given:
                self._courier.handled.append(self._given.popleft())
        if self._thread.is_alive():
            self._deadline = deadline
            self._loop.call_soon_threadsafe(self._courier.close)
            self._thread.join(deadline + 5.0)
        return self.counts()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._courier.run(lambda: self._deadline))
        finally:
            self._loop.close()
