"""Processes that a supervisor starts: each in a session of its own, its output where it belongs."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from esper_runtime.local.processes import ProcessRecord, catches, record_of, send

SUPERVISED = "ESPER_SUPERVISED"
"""Set in the environment of what a supervisor starts: it holds the run's folder for them."""
IN_POD = "pod"
"""Its value in a training pod."""
LISTEN_VARIABLE = "ESPER_LISTEN"
"""In a pod: HOST:PORT at which Prometheus may ask."""

MOST_LOG = 1_000_000
"""Bytes of a log that outlives runs; twice as many are kept."""


@dataclass
class Child:
    """A process that was started here."""

    record: ProcessRecord
    popen: subprocess.Popen[bytes]
    pumps: list[threading.Thread] = field(default_factory=list)

    @property
    def ended(self) -> int | None:
        """How it ended, a signal as a negative number; None while it runs."""
        return self.popen.poll()

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Hand on a signal, or SIGTERM where it does not catch that one or has nothing to save yet."""
        caught = all(catches(self.record.pid, each) for each in (signal.SIGTERM, number))
        send(self.record, number if caught else signal.SIGTERM)

    def terminate(self) -> None:
        """Tell it to end in order."""
        send(self.record, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        send(self.record, signal.SIGKILL)

    def end(self, seconds: float = 5.0) -> None:
        """SIGTERM, and SIGKILL where it does not end in time."""
        self.terminate()
        if not self.wait(seconds):
            self.kill()
            self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; False when the time is over before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
            for pump in self.pumps:
                pump.join(seconds)
            return True
        return False


def start_child(
    role: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    inherited: Sequence[int] = (),
    log: Path | None = None,
) -> Child:
    """Start a process in a session of its own, so that a Ctrl-C reaches the supervisor alone.

    Args:
        role: its part in the run.
        command: what to run.
        environment: added to that of this process.
        inherited: descriptors that stay open in it.
        log: takes its output; without one it speaks through the standard streams of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.ExitStack() as stack:
        out: int | IO[bytes] = _descriptor(sys.stdout)
        err: int | IO[bytes] = _descriptor(sys.stderr)
        if log is not None:
            log.parent.mkdir(exist_ok=True)
            out = err = stack.enter_context(log.open("ab"))
        popen = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=tuple(inherited),
            start_new_session=True,
        )
    child = Child(record_of(role, popen.pid), popen)
    for pipe, stream in ((popen.stdout, sys.stdout), (popen.stderr, sys.stderr)):
        if pipe is not None:
            child.pumps.append(threading.Thread(target=_pump, args=(pipe, stream), daemon=True))
            child.pumps[-1].start()
    return child


def log_file(path: Path) -> Path:
    """``path``, where a log that has grown too long is moved aside first."""
    if path.exists() and path.stat().st_size > MOST_LOG:
        path.replace(path.with_suffix(".log.old"))
    return path


def esper_command() -> list[str]:
    """`esper` with this interpreter, which looks for modules where this process does."""
    here = {"", os.getcwd()} & set(sys.path)
    return [sys.executable, *(() if here else ("-P",)), "-m", "esper_runtime.cli"]


def _descriptor(stream: IO[str]) -> int:
    """The descriptor of a standard stream, or a pipe where it was replaced by something that has none."""
    try:
        return stream.fileno()
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return subprocess.PIPE


def _pump(pipe: IO[bytes], stream: IO[str]) -> None:
    with pipe:
        for line in pipe:
            stream.write(line.decode(errors="replace"))


class Port:
    """A TCP port of this machine, kept for whoever is to listen on it until it is let go.

    It is bound, but nobody listens. Who binds it with SO_REUSEADDR, as nats-server and torch do, can listen
    there; the system gives it to no other.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let it go; twice is as good as once."""
        self._socket.close()
