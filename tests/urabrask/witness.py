"""What the machine looks like before and after kernels that mean harm: files, processes, connections."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.turns import turn
from tests.urabrask.members import EVIL, PORT

_WATCHED = (Path("/etc/passwd"), Path("/etc/hostname"), Path("/bin/true"))
_FIRST_SANDBOX_UID = 1_879_048_192


def _look(folders: tuple[Path, ...]) -> dict[str, str]:
    seen = {str(path): str(path.exists()) for path in EVIL}
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in (*_WATCHED, *files):
        if path.exists():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            seen[str(path)] = f"{digest} {path.stat().st_mode} {path.stat().st_uid}"
    return seen


def _strangers(warm_process: int) -> list[str]:
    """Children of the warm process, and processes of the user that its jobs run as."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "status").read_text()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        of_job = int(fields["Uid"].split()[0]) == _FIRST_SANDBOX_UID + warm_process % 4096
        if of_job or int(fields["PPid"]) == warm_process:
            found.append(f"{entry.name} {fields['Name']}")
    return found


@contextmanager
def unharmed(warm_process: int, *folders: Path) -> Iterator[None]:
    """Raises where the body left a trace: in files of the folders and some of the system, as processes, as a
    connection to a port of this machine that listens meanwhile.

    Args:
        warm_process: of the sandbox; it must live on and have no children afterwards.
        folders: whose files must stay as they are.
    """
    with turn("witness"):  # for the port and the files of this machine
        before = _look(folders)
        with socket.create_server(("127.0.0.1", PORT)) as listener:
            listener.setblocking(False)
            yield
            try:
                listener.accept()
            except BlockingIOError:
                pass
            else:
                raise AssertionError("a kernel reached a port of this machine")
        after = _look(folders)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"changed: {changed}"
    assert os.path.exists(f"/proc/{warm_process}"), "the warm process is gone"
    strangers = _strangers(warm_process)
    assert not strangers, f"left behind: {strangers}"
