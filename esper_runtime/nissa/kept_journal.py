"""The copy of a journal beside checkpoints that lie elsewhere, for a run whose folder is empty."""

from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from esper_runtime.contracts import CheckpointError, InputError, JournalEntry, JournalError
from esper_runtime.nissa.journal import JournalScan, scan_lines


class KeptJournal:
    """The copy of a run's journal at ``checkpoint.uri``, ``journal-NAME.jsonl``; whole each time it is made.

    It only grows: who finds that another process has gone on from it writes nothing there any more.

    There is none where the checkpoints are in a folder of this machine: what has that folder has the run's.

    Args:
        uri: of the checkpoints; None where they are in the run's folder.
        name: of the run on the bus, in which a pod's has its uid: two runs never take each other's.
        journal: the file that is copied.

    Raises:
        InputError: the URI cannot be opened.
    """

    def __init__(self, uri: str | None, name: str, journal: Path) -> None:
        self._journal = journal
        self.place: str | None = None
        """Its URI; None where there is none."""
        if uri is None:
            return
        try:
            self._fs, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise InputError(f"spec.checkpoint.uri {uri!r} cannot be opened: {error}") from error
        if not isinstance(self._fs, LocalFileSystem):
            self.place = f"{uri.rstrip('/')}/journal-{name}.jsonl"
            self._path = f"{root}/journal-{name}.jsonl"
            self._root = root

    def keep(self) -> None:
        """Make the copy anew.

        Raises:
            CheckpointError: it could not be written, or another process has gone on from it.
        """
        if self.place is None:
            return
        data = self._journal.read_bytes()
        if not data.startswith(self._read()):
            raise CheckpointError(
                f"{self.place} goes on otherwise than {self._journal}: another process trains this run, or "
                f"an old journal was put back; end this one, and let the other go on"
            )
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._path, data)
        except OSError as error:
            raise CheckpointError(
                f"the journal cannot be kept in {self.place}: {error}; the run goes on from its newest "
                f"checkpoint when it is started again"
            ) from error

    def fetch(self) -> bool:
        """Put the copy in the place of the run's journal, unless there is one; says whether it did.

        Raises:
            JournalError: the copy is damaged; nothing was changed.
            CheckpointError: it could not be read.
        """
        if self._journal.exists():
            return False
        data = self._read()
        if not self._scan(data).entries:
            return False
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        fetched = self._journal.with_name(f".{self._journal.name}.fetched")
        fetched.write_bytes(data)
        fetched.rename(self._journal)
        return True

    def entries(self) -> list[JournalEntry]:
        """What the copy holds; nothing where there is none.

        Raises:
            JournalError: the copy is damaged.
            CheckpointError: it could not be read.
        """
        return self._scan(self._read()).entries

    def _read(self) -> bytes:
        if self.place is None:
            return b""
        try:
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(self._path))
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CheckpointError(f"{self.place} cannot be read: {error}") from error

    def _scan(self, data: bytes) -> JournalScan:
        scan = scan_lines(data)
        if scan.finding is not None and scan.finding.broken:
            raise JournalError(f"{self.place}, {scan.finding}; restore it from a copy, nothing was changed")
        return scan
