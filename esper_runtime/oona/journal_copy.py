"""The copy of a journal on the bus: made from the file, so that it becomes complete after any outage."""

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client
from nats.js.errors import NotFoundError

from esper_runtime.contracts import EventType, JournalOmitted, event_bytes
from esper_runtime.oona.client import OutOfOrderError, publish

POLL = 0.05
"""Seconds between two looks at the file's end."""

_CHUNK = 256 * 1024
_ROOM = 4096
"""Bytes that the envelope of an entry takes at most."""

# Entries are canonical JSON, so that the digest is at the front and the sequence near the end. They are
# found without parsing an entry that may be large, which would hold the interpreter lock for too long.
_DIGEST = re.compile(rb'\{"digest":"([0-9a-f]{64})",')
_SEQUENCE = re.compile(rb'"sequence":(\d+),"step":\d+,"time":"[^"\\]*"\}$')


@dataclass(frozen=True)
class Line:
    """One entry as it stands in the file."""

    sequence: int
    digest: str
    data: bytes


class JournalFile:
    """Reads the complete lines of a journal as it grows; torn ones are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rewind()

    def rewind(self) -> None:
        """Begin with the first entry again."""
        self._offset = 0
        self._rest = b""

    def at_end(self) -> bool:
        """Whether all of the file was read; a torn end counts as read."""
        try:
            return self._path.stat().st_size == self._offset
        except FileNotFoundError:
            return True

    def read(self) -> list[Line] | None:
        """The entries in the next 256 KiB of the file; None at its end."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except FileNotFoundError:
            return None
        if not data:
            return None
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line for line in map(parse_line, lines) if line is not None]


def parse_line(data: bytes) -> Line | None:
    """The entry in a line; None where the line is torn."""
    digest, sequence = _DIGEST.match(data), _SEQUENCE.search(data, max(0, len(data) - 256))
    if digest is None or sequence is None:
        return None
    return Line(int(sequence[1]), digest[1].decode(), data)


class JournalCopy:
    """Publishes the journal's entries in their order, each once: only after the one before it.

    Args:
        path: the journal; it may not exist yet.
        subject: where the copy goes.
        source: of the events.
    """

    fenced = False
    """Whether only attempts of this run may write there: an unknown entry shows that another one goes on."""
    overtaken = False
    """Whether another attempt of the run has gone on; nothing more is copied then."""

    def __init__(self, path: Path, subject: str, source: str) -> None:
        self._file = JournalFile(path)
        self._subject, self._source = subject, source
        self._stream_sequence = 0
        self._all_sent = False
        self._leads = False  # whether the bus's last entry was ever one of this file
        self.copied = -1
        """Sequence of the last entry that the bus has; -1 for none."""

    async def run(self, client: Client) -> None:
        """Find out what the bus has, send what it lacks, and go on as the file grows."""
        self._all_sent = False
        waiting = await self._resume(client)
        while not self.overtaken:
            for line in waiting:
                try:
                    await self._send(client, line)
                except OutOfOrderError:  # an earlier try was stored and its acknowledgement lost
                    waiting = await self._resume(client)
                    break
            else:
                found = self._file.read()
                waiting = found or []
                self._all_sent = not waiting
                await asyncio.sleep(POLL if found is None else 0)
        await asyncio.Event().wait()

    def caught_up(self) -> bool:
        """Whether nothing that is in the file now lacks on the bus."""
        return self.overtaken or (self._all_sent and self._file.at_end())

    async def _resume(self, client: Client) -> list[Line]:
        """Read the file up to the last entry on the bus; returns the entries after it that were read too."""
        digest = await self._last_on_bus(client)
        self._file.rewind()
        while digest is not None and (lines := self._file.read()) is not None:
            for index, line in enumerate(lines):
                if line.digest == digest:
                    self.copied, self._leads = line.sequence, True
                    return lines[index + 1 :]
            await asyncio.sleep(0)
        self.overtaken = self.fenced and digest is not None and self._leads
        self._file.rewind()  # the bus has nothing, or the copy of another run of this name
        self.copied = -1
        return []

    async def _last_on_bus(self, client: Client) -> str | None:
        try:
            message = await client.jetstream().get_last_msg("EVENTS", self._subject, direct=True)
        except NotFoundError:
            self._stream_sequence = 0
            return None
        self._stream_sequence = message.seq or 0
        try:
            data = json.loads(message.data or b"")["data"]
            return str(data["digest"])
        except (ValueError, KeyError, TypeError):
            return None

    async def _send(self, client: Client, line: Line) -> None:
        data, kind = line.data, EventType.JOURNAL
        if len(data) + _ROOM > client.max_payload:
            omitted = JournalOmitted(sequence=line.sequence, digest=line.digest, bytes=len(data))
            data, kind = omitted.model_dump_json(by_alias=True).encode(), EventType.JOURNAL_OMITTED
        payload = event_bytes(kind, self._source, line.digest, data)
        stored = await publish(client, self._subject, payload, line.digest, after=self._stream_sequence)
        if (
            stored > self._stream_sequence
        ):  # else the bus had it, before what an attempt that was lost left there
            self._stream_sequence, self._leads = stored, True
        self.copied = line.sequence
