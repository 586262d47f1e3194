"""Writing the journal: each entry is sealed, chained and on the disk before what it announces happens."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from esper_runtime.contracts import (
    GENESIS,
    AnswerRefused,
    ControllerChanged,
    Event,
    Finished,
    Interrupted,
    JournalEntry,
    JournalError,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    Started,
    Steered,
    Validated,
    canonical_json,
)
from esper_runtime.nissa import scan_journal
from esper_runtime.tolaria.disk import sync_folder


class JournalWriter:
    """Appends entries to one journal file; nothing in it is ever changed or cut off.

    Opening a file that exists verifies its chain. Where its end is torn (the writing process was killed), the
    first entry appended must be a `Resumed`, in which the number of torn bytes is filled in.

    Args:
        path: the journal; its folder exists.
        incarnation: number of this process in the life of the run, from 0; written into each entry.

    Raises:
        JournalError: the chain of the existing file is broken, or the file cannot be opened.
    """

    def __init__(self, path: Path, incarnation: int = 0) -> None:
        try:
            scan = scan_journal(path)
        except OSError as error:
            raise JournalError(f"{path}: cannot be opened ({error.strerror})") from error
        if scan.finding is not None and scan.finding.broken:
            raise JournalError(f"{path}, {scan.finding}; restore the file from a copy, nothing was changed")
        self.path = path
        self.incarnation = incarnation
        self.sequence = scan.entries[-1].sequence if scan.entries else -1
        """Sequence of the last entry; -1 in an empty journal."""
        self._digest = scan.entries[-1].digest if scan.entries else GENESIS
        self._torn_bytes = scan.torn_bytes
        self._prefix = b"\n" if scan.ends_open or scan.torn_bytes else b""
        self._failed: str | None = None
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            sync_folder(path.parent)
        except OSError as error:
            raise JournalError(f"{path}: cannot be opened for writing ({error.strerror})") from error

    def append(self, event: Event, step: int, sync: bool = True) -> JournalEntry:
        """Write one entry and, with ``sync``, return only when it is on the disk.

        Args:
            event: what is about to happen, or did.
            step: optimizer steps done so far.
            sync: False for entries whose loss at a power failure would do no harm.

        Raises:
            JournalError: the entry could not be written; the journal refuses further entries.
        """
        if self._failed is not None:
            raise JournalError(f"{self.path}: an earlier write failed ({self._failed}); start the run again")
        self._check_in_place()
        if self._torn_bytes:
            if not isinstance(event, Resumed):
                raise JournalError(
                    f"{self.path}: the file ends in {self._torn_bytes} torn bytes, so a Resumed entry must "
                    f"come first, not {event.kind}"
                )
            event = event.model_copy(update={"torn_bytes": self._torn_bytes})
        entry = JournalEntry(
            sequence=self.sequence + 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            incarnation=self.incarnation,
            step=step,
            event=event,
            previous=self._digest,
        )
        data = entry.model_dump(mode="json", by_alias=True, exclude={"digest"})
        data["digest"] = hashlib.sha256(canonical_json(data)).hexdigest()
        self._write(self._prefix + canonical_json(data) + b"\n", sync)
        self._prefix, self._torn_bytes = b"", 0
        self.sequence, self._digest = entry.sequence, data["digest"]
        return entry.model_copy(update={"digest": data["digest"]})

    def _check_in_place(self) -> None:
        """What is written to a file that was removed or moved is lost, or parted from its checkpoints."""
        mine = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            self._failed = "it was removed or moved while the run went on"
            raise JournalError(
                f"{self.path}: {self._failed}; the run was stopped, put its folder back to go on"
            )

    def _write(self, line: bytes, sync: bool) -> None:
        try:
            written = os.write(self._file, line)
            if sync:
                os.fdatasync(self._file)
        except OSError as error:
            self._failed = error.strerror or str(error)
            raise JournalError(f"{self.path}: cannot be written ({self._failed})") from error
        if written != len(line):
            self._failed = f"only {written} of {len(line)} bytes fitted on the disk"
            raise JournalError(f"{self.path}: {self._failed}; make room and start the run again")

    def close(self) -> None:
        """Sync and close the file."""
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def must_sync(event: Event) -> bool:
    """Whether an entry must be on the disk before the run goes on.

    Validations can be measured again, a seed that is only named or loading has not touched the model, and who
    decides is settled anew after a failure.
    """
    if isinstance(event, SeedChanged):
        return event.after not in (SeedStage.GERMINATED, SeedStage.LOADING)
    return not isinstance(event, Validated | ControllerChanged | AnswerRefused)


def must_be_kept(event: Event) -> bool:
    """Whether an entry is copied to checkpoints that are elsewhere before the run goes on.

    What is not said again when the steps since the last checkpoint are done again; each checkpoint takes the
    rest with it.
    """
    return isinstance(event, Started | Resumed | RolledBack | Steered | Interrupted | Finished)
