"""What the jobs of the tests do: each function is one deed, done as native code does it."""

import ctypes
import mmap
import os
import signal
import socket
import threading
import time
from pathlib import Path

from esper_runtime.sandbox import Workspace

_LIBC = ctypes.CDLL(None, use_errno=True)


def echo(payload: bytes, workspace: Workspace) -> bytes:
    return payload


def read_own_file(payload: bytes, workspace: Workspace) -> bytes:
    return (workspace.folder / payload.decode()).read_bytes()


def count(payload: bytes, workspace: Workspace) -> bytes:
    for index in range(int(payload)):
        workspace.send(str(index).encode())
    return b"done"


def fail(payload: bytes, workspace: Workspace) -> bytes:
    raise ValueError("no good")


def facts(payload: bytes, workspace: Workspace) -> bytes:
    hidden = os.path.exists("/etc/passwd")
    return f"{os.getuid()} {os.getpid()} {hidden} {sorted(os.environ)}".encode()


def read(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.open(payload, os.O_RDONLY)
    return b"went on"


def write(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.open(payload, os.O_WRONLY | os.O_CREAT, 0o644)
    return b"went on"


def write_own_file(payload: bytes, workspace: Workspace) -> bytes:
    place = workspace.folder / "out" / "file"
    place.parent.mkdir()
    place.write_bytes(payload)
    return place.read_bytes()


def link(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.symlink(b"/etc/passwd", payload)
    return b"went on"


def connect(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    return b"went on"


def fork(payload: bytes, workspace: Workspace) -> bytes:
    if _LIBC.fork() == 0:
        time.sleep(60)
    return b"went on"


def thread(payload: bytes, workspace: Workspace) -> bytes:
    threading.Thread(target=time.sleep, args=(60,)).start()
    return b"went on"


def signal_by_pipe(payload: bytes, workspace: Workspace) -> bytes:
    """Has a signal sent to the parent when a pipe is written to (F_SETOWN)."""
    _LIBC.fcntl(3, 8, os.getppid())
    return b"went on"


def execute(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"/bin/true", None))
    return b"went on"


def kill_parent(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.kill(os.getppid(), signal.SIGKILL)
    return b"went on"


def trace(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.ptrace(16, 1, 0, 0)
    return b"went on"


def unshare(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.unshare(0x10000000)
    return b"went on"


def hang(payload: bytes, workspace: Workspace) -> bytes:
    while True:
        time.sleep(1)


def spin(payload: bytes, workspace: Workspace) -> bytes:
    workspace.send(b"begun")
    while True:
        pass


def ask_for_memory(payload: bytes, workspace: Workspace) -> bytes:
    mmap.mmap(-1, int(payload))
    return b"went on"


def fill_memory(payload: bytes, workspace: Workspace) -> bytes:
    kept = []
    while True:
        kept.append(b"x" * 1_000_000)


def flood_log(payload: bytes, workspace: Workspace) -> bytes:
    while True:
        _LIBC.write(1, b"x" * 4096, 4096)


def flood_output(payload: bytes, workspace: Workspace) -> bytes:
    while True:
        workspace.send(b"x" * 1_000_000)


def crash(payload: bytes, workspace: Workspace) -> bytes:
    ctypes.string_at(1)
    return b"went on"


def abort(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC.abort()
    return b"went on"


def leave(payload: bytes, workspace: Workspace) -> bytes:
    _LIBC._exit(0)
    return b"went on"


def forge(payload: bytes, workspace: Workspace) -> bytes:
    """Says over its pipe what only the sandbox may say."""
    os.write(3, b"L" + (2).to_bytes(4, "little") + b"[]")
    os.write(3, b"X" + (2).to_bytes(4, "little") + b"no")
    os.read(4, 2)
    return b"went on"


def compute(payload: bytes, workspace: Workspace) -> bytes:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Conv1d(4, 4, 3, padding=1))
    x = torch.randn(2, 4, 8, requires_grad=True)
    model(x).square().sum().backward()
    return bytes(str(tuple(x.grad.shape)) if x.grad is not None else "none", "ascii")


def compile_c(payload: bytes, workspace: Workspace) -> bytes:
    import subprocess

    (workspace.folder / "a.c").write_bytes(payload)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "a.so", "a.c"], cwd=workspace.folder, check=True)
    return (workspace.folder / "a.so").read_bytes()


def build_and_break_out(payload: bytes, workspace: Workspace) -> bytes:
    """All that a compiler has no business with, and what came of each."""
    outcomes = []
    for name, deed in (
        ("read", lambda: Path(payload.decode()).read_bytes()),
        ("write", lambda: Path("/var/tmp/esper-test").write_bytes(b"x")),
        ("inet", lambda: socket.socket(socket.AF_INET)),
        ("trace", lambda: _checked(_LIBC.ptrace(16, 1, 0, 0))),
        ("unshare", lambda: _checked(_LIBC.unshare(0x10000000))),
    ):
        try:
            deed()
        except OSError as error:
            outcomes.append(f"{name}:{type(error).__name__}")
        else:
            outcomes.append(f"{name}:done")
    return " ".join(outcomes).encode()


def leave_a_process(payload: bytes, workspace: Workspace) -> bytes:
    """A process that survives this one, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        for descriptor in range(20):
            try:
                os.close(descriptor)
            except OSError:
                continue
        _LIBC.prctl(15, b"esper-left-over", 0, 0, 0)
        time.sleep(60)
    return b"done"


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
