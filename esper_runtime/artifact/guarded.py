"""Files that only their owner may read or change, written in one step; and the folder that they live in."""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esper_runtime.contracts import ArtifactError

HOME_VARIABLE = "ESPER_HOME"
"""Environment variable that names the folder of `esper_home`."""
ALONE_VARIABLE = "ESPER_ALONE"
"""Environment variable that is set where no other user shares the file system, as in a container: there a
folder may lie below one in which everybody may write, as an emptyDir of Kubernetes is."""


def esper_home() -> Path:
    """The machine's folder for keys, library and kernels, made (0700) where it lacks.

    ``$ESPER_HOME``, else ``$XDG_DATA_HOME/esper``, else ``~/.local/share/esper``.

    Raises:
        ArtifactError: it cannot be made, or others may write there.
    """
    given = os.environ.get(HOME_VARIABLE)
    base = os.environ.get("XDG_DATA_HOME", "")
    if given:
        home = Path(given).absolute()
    else:
        home = (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "esper"
    return guarded_folder(home)


def guarded_folder(folder: Path) -> Path:
    """``folder``, made (0700) where it lacks.

    Raises:
        ArtifactError: it cannot be made, belongs to another user, or others may write there or replace it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise ArtifactError(f"{folder}: a folder is expected")
        _check_owner(folder, found)
        if found.st_mode & 0o022:
            raise ArtifactError(f"{folder}: others may write there; run: chmod go-w {folder}")
        for parent in () if os.environ.get(ALONE_VARIABLE) else folder.resolve().parents:
            mode = parent.stat().st_mode
            if mode & 0o002 and not mode & stat.S_ISVTX:
                raise ArtifactError(
                    f"{folder}: others may replace it, because everybody may write in {parent}; "
                    f"run: chmod o-w {parent}, or name another place with {HOME_VARIABLE}"
                )
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be used ({error.strerror})") from error
    return folder


def read_private(path: Path) -> bytes:
    """The bytes of a file of ours that nobody else may read.

    Raises:
        ArtifactError: it cannot be read, is no regular file, belongs to another user or is open to others.
    """
    return _read(path, 0o077, f"others may read or change it; run: chmod 600 {path}")


def read_trusted(path: Path) -> bytes:
    """The bytes of a file of ours that nobody else may change.

    Raises:
        ArtifactError: it cannot be read, is no regular file, belongs to another user, or others may write it.
    """
    return _read(path, 0o022, f"others may change it; run: chmod go-w {path}")


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file, whoever owns it; a link is not followed.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        ArtifactError: it cannot be read, is no regular file, or is larger.
    """
    with _opened(path) as (handle, found):
        if found.st_size > most:
            raise ArtifactError(f"{path}: {found.st_size:,} bytes; allowed: {most:,}")
        with os.fdopen(os.dup(handle), "rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise ArtifactError(f"{path}: more than {most:,} bytes")
    return data


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` at ``path`` in one step, synced; a file that is there is replaced.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, against other processes and threads; waits for who holds it.

    Raises:
        ArtifactError: the lock file cannot be made.
    """
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be made ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path, forbidden: int, words: str) -> bytes:
    with _opened(path) as (handle, found):
        _check_owner(path, found)
        if found.st_mode & forbidden:
            raise ArtifactError(f"{path}: {words}")
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """The open regular file and its state, so that what is checked is what is read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path}: a regular file is expected")
        yield handle, found
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise ArtifactError(
            f"{path}: belongs to user {found.st_uid}, not to the one that runs this ({os.geteuid()})"
        )
