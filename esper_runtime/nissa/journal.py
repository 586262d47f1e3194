"""Reading the journal: the chain is verified link by link, and a line torn by a kill is told from tampering.

A journal is a file of JSON lines, one sealed `JournalEntry` each. A process that is killed in the middle of
a write leaves a torn last line. It is never cut off: the next process writes a newline and then a `Resumed`
entry whose ``torn_bytes`` says how many unreadable bytes lie before that newline.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from esper_runtime.contracts import (
    GENESIS,
    Compared,
    JournalEntry,
    JournalError,
    KernelsArrived,
    KernelsGone,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
    Steered,
    canonical_json,
)


@dataclass(frozen=True)
class Finding:
    """Something found in a journal. ``broken`` is False for a torn end, which the next start accounts for."""

    line: int
    what: str
    broken: bool

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


@dataclass(frozen=True)
class JournalScan:
    """What a journal file holds: the entries up to the first broken link, and the state of its end.

    ``torn_bytes`` counts unreadable bytes after the last entry; ``ends_open`` says that the file's last byte
    is not a newline.
    """

    entries: list[JournalEntry]
    finding: Finding | None
    torn_bytes: int
    ends_open: bool


class _TornError(Exception):
    """The line is not JSON."""


class _BrokenError(Exception):
    """The line is JSON, but not the next link of the chain."""


def scan_journal(path: Path) -> JournalScan:
    """Read a journal and stop at the first broken link, which is described and not raised.

    A missing file is an empty journal.
    """
    return scan_lines(path.read_bytes() if path.exists() else b"")


def scan_lines(data: bytes) -> JournalScan:
    """`scan_journal` for the bytes of one."""
    lines = data.split(b"\n")
    entries: list[JournalEntry] = []
    torn_bytes, torn_line = 0, 0
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            entry = _parse(line, entries[-1] if entries else None)
        except _TornError:
            torn_line = torn_line or number
            torn_bytes += len(line) + (0 if last else 1)
            continue
        except _BrokenError as error:
            return JournalScan(entries, Finding(number, str(error), True), 0, not data.endswith(b"\n"))
        said = entry.event.torn_bytes if isinstance(entry.event, Resumed) else 0
        if said != max(0, torn_bytes - 1):
            what = f"{max(0, torn_bytes - 1)} unreadable bytes, but the next entry accounts for {said}"
            return JournalScan(entries, Finding(torn_line or number, what, True), 0, False)
        torn_bytes, torn_line = 0, 0
        entries.append(entry)
    torn = Finding(torn_line, f"torn end of {torn_bytes} bytes: killed while writing", False)
    ends_open = bool(data) and not data.endswith(b"\n")
    return JournalScan(entries, torn if torn_bytes else None, torn_bytes, ends_open)


def _parse(line: bytes, before: JournalEntry | None) -> JournalEntry:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise _TornError from error
    try:
        entry = JournalEntry.model_validate(data)
    except ValidationError as error:
        raise _BrokenError(f"not a journal entry: {error.errors()[0]['msg']}") from error
    unsealed = {key: value for key, value in data.items() if key != "digest"}
    if hashlib.sha256(canonical_json(unsealed)).hexdigest() != entry.digest:
        raise _BrokenError(
            f"entry {entry.sequence} does not match its digest: it was changed after it was written"
        )
    if canonical_json(data) != line:
        raise _BrokenError(
            f"entry {entry.sequence} is not in canonical form: it was changed after it was written"
        )
    sequence, previous = (before.sequence + 1, before.digest) if before else (0, GENESIS)
    if entry.sequence != sequence:
        raise _BrokenError(
            f"entry {entry.sequence} where entry {sequence} must follow: entries are missing or moved"
        )
    if entry.previous != previous:
        raise _BrokenError(
            f"entry {entry.sequence} does not follow the entry before it: another history was put in"
        )
    return entry


def read_journal(path: Path) -> list[JournalEntry]:
    """All entries of a journal whose chain holds.

    Raises:
        JournalError: the file is missing, or names the first broken link.
    """
    if not path.exists():
        raise JournalError(f"{path}: there is no journal here; give the folder of a run that was started")
    scan = scan_journal(path)
    if scan.finding is not None and scan.finding.broken:
        raise JournalError(f"{path}, {scan.finding}; restore the file from a copy, nothing was changed")
    return scan.entries


def verify_journal(path: Path) -> list[Finding]:
    """What is wrong with a journal: nothing, its first broken link, or a torn end."""
    if not path.exists():
        return [Finding(0, f"{path} does not exist", True)]
    finding = scan_journal(path).finding
    return [] if finding is None else [finding]


def effective(entries: list[JournalEntry]) -> list[JournalEntry]:
    """The entries that count: those of steps that were done again are dropped.

    `Resumed` and `RolledBack` supersede what was written after their ``after_sequence``, except faults,
    locks, a person's commands, kernels that came or went, earlier resumptions and comparisons, which stay
    true.
    """
    kept: list[JournalEntry] = []
    for entry in entries:
        if isinstance(entry.event, Resumed | RolledBack):
            after = entry.event.after_sequence
            kept = [old for old in kept if old.sequence <= after or _outlives(old)]
        kept.append(entry)
    return kept


def _outlives(entry: JournalEntry) -> bool:
    event = entry.event
    if isinstance(event, SlotChanged):
        return event.after is SlotState.LOCKED
    if isinstance(event, SeedChanged):
        return event.after is SeedStage.ROLLED_BACK
    return isinstance(event, Resumed | RolledBack | Compared | Steered | KernelsArrived | KernelsGone)
