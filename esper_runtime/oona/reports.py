"""The field reports of a run on the bus: each once, in order, after any outage or restart."""

import asyncio
import json
import logging

from nats.aio.client import Client
from nats.js.errors import NotFoundError

from esper_runtime.contracts import BusError, EventType, FieldReport, event_bytes
from esper_runtime.oona.client import publish

STREAM = "REPORTS"
POLL = 0.1
"""Seconds between two looks for a new report."""

_log = logging.getLogger(__name__)


class Reports:
    """Publishes the reports that are handed to it, those of earlier processes included.

    Args:
        subject: where they go.
        source: of the events.
    """

    def __init__(self, subject: str, source: str) -> None:
        self._subject, self._source = subject, source
        self._reports: list[tuple[str, FieldReport]] = []
        self._sent = 0

    def add(self, identity: str, report: FieldReport) -> None:
        """The next report of the run, in the order of its journal; ``identity`` is its entry's digest."""
        self._reports.append((identity, report))

    def all_sent(self) -> bool:
        """Whether the bus has all of them."""
        return self._sent == len(self._reports)

    async def run(self, client: Client) -> None:
        """Find out what the bus has, send the rest, and go on as reports come."""
        known = await self._last_on_bus(client)
        identities = [identity for identity, _ in self._reports]
        if known in identities:
            self._sent = max(self._sent, identities.index(known) + 1)
        while True:
            while not self.all_sent():
                identity, report = self._reports[self._sent]
                data = report.model_dump_json(by_alias=True).encode()
                payload = event_bytes(EventType.REPORT, self._source, identity, data)
                try:
                    await publish(client, self._subject, payload, identity)
                except BusError as error:
                    if client.is_closed:
                        raise
                    _log.warning("bus: a field report is left to the journal alone: %s", error)
                self._sent += 1
            await asyncio.sleep(POLL)

    async def _last_on_bus(self, client: Client) -> str | None:
        try:
            message = await client.jetstream().get_last_msg(STREAM, self._subject, direct=True)
            return str(json.loads(message.data or b"")["id"])
        except (NotFoundError, ValueError, KeyError):
            return None
