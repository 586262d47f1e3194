"""A run's folder: where its files are, who holds it, and how it comes and goes whole."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from esper_runtime.contracts import InputError, nearest

DEFAULT_RUNS = Path("runs")
_FROM = "# from "


class FolderHeldError(InputError):
    """Another process trains the run."""


class RunFolder:
    """`runs/NAME/`: manifest.yaml, journal.jsonl, checkpoints/, model/, report.html.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.report = path / "report.html"
        self.error_log = path / "error.log"
        self.processes = path / "processes.json"
        self.bus_address = path / "bus.json"
        self.bus_store = path / "bus"
        self.logs = path / "logs"
        self._lock = path / "lock"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    def keep_manifest(self, manifest: Path) -> None:
        """Copy a manifest here, with a first line that says where it came from."""
        text = manifest.read_text(encoding="utf-8-sig")
        if text.startswith(_FROM):
            text = text.split("\n", 1)[1]
        self.manifest.write_text(f"{_FROM}{manifest.resolve()}\n{text}", encoding="utf-8")

    def origin(self) -> Path | None:
        """Folder that the manifest came from, where its entrypoints and relative paths are looked for."""
        try:
            first = self.manifest.read_text(encoding="utf-8").split("\n", 1)[0]
        except OSError:
            return None
        return Path(first.removeprefix(_FROM)).parent if first.startswith(_FROM) else None

    @property
    def started(self) -> bool:
        """True when a run has left a journal here."""
        try:
            return self.journal.stat().st_size > 0
        except OSError:  # none yet, or it was moved aside just now
            return False

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Hold the folder for this process; what was made is removed again if no journal was begun.

        The kernel frees the lock when the process, and those that inherited the descriptor which is given,
        have ended, however they ended.

        Raises:
            FolderHeldError: another process holds it.
            InputError: the folder cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written to: {error.strerror}") from None
        try:
            try:
                self._acquire(handle)
            except OSError as error:
                if not self.started:
                    self._leave_nothing(made)
                raise InputError(f"{self.path}: cannot be written to: {error.strerror}") from None
            try:
                yield handle
            finally:
                if not self.started:
                    self._leave_nothing(made)
        finally:
            os.close(handle)

    def _leave_nothing(self, made: list[Path]) -> None:
        """Remove what was made for a run that did not begin; everything else stays."""
        for file in (self._lock, self.manifest, self.journal, self.processes, self.bus_address):
            file.unlink(missing_ok=True)
        for folder in (self.logs, self.bus_store):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.path, *made[1:]):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _acquire(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise FolderHeldError(
                f"run {self.name!r} ({self.path}) is being trained by process {holder}; wait for it, stop it "
                f"(kill -TERM {holder} leaves a checkpoint), or give the new run another metadata.name"
            ) from None
        if os.fstat(handle).st_nlink == 0:
            raise InputError(f"{self.path}: was just removed by another process; start again")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def holder(self) -> int | None:
        """Process that trains this run now, None when there is none."""
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(handle, 32).decode(errors="replace").strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(handle)
        return None

    def set_aside(self) -> Path | None:
        """Move what an earlier run left here to a folder of its own; None if there was nothing.

        Call it while the folder is held: the lock and what tells of this start's processes stay in place.
        """
        staying = (self._lock, self.processes, self.bus_address, self.logs)
        earlier = [item for item in self.path.iterdir() if item not in staying]
        if not earlier:
            return None
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.name}.{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.name}.{stamp}-{number}")
        aside.mkdir()
        for item in earlier:
            item.rename(aside / item.name)
        return aside


def find_run(run: str, runs_dir: Path) -> RunFolder:
    """The folder of a run, given its name below ``runs_dir`` or the path of its folder.

    Raises:
        InputError: there is no such run; the text names those there are.
    """
    for path in (runs_dir / run, Path(run)):
        folder = RunFolder(path)
        if folder.started:
            return folder
    there = [folder.name for folder in list_runs(runs_dir)]
    near = nearest(run, there)
    hint = f"; nearest known name: {near!r}" if near else ""
    known = f"runs there: {', '.join(there)}" if there else "there are none; `esper run FILE` starts one"
    raise InputError(f"no run {run!r} in {runs_dir}{hint} ({known})")


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs below a folder, by name."""
    if not runs_dir.is_dir():
        return []
    folders = (RunFolder(path) for path in sorted(runs_dir.iterdir()) if path.is_dir())
    return [folder for folder in folders if folder.started]
