"""Watching a job from outside: time, memory, output, and the system calls that were refused."""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from esper_runtime.sandbox import calls
from esper_runtime.sandbox.job import DATA, ERROR, HEAD, LAYERS, REFUSED, RESULT
from esper_runtime.sandbox.limits import Frame, Limits, Outcome, Violation

_RECEIVE, _SEND, _VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTICE: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_CONTINUE: Final = 1
_TICK: Final = 0.02
PATIENCE: Final = 10
"""A job that has to wait for a processor may take so many times as long as its limit."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST_FRAMES: Final = 20_000
_LONGEST_PATH: Final = 4096
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000
_ENOENT: Final = 2
# Asked for by the C library and by torch about the machine; refused without blame.
_HARMLESS: Final = (
    "/sys/devices/system",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/self",
    "/etc/localtime",
)


@dataclass
class Watch:
    """One job under watch.

    Args:
        pid: of its process, a child of this one.
        limits: of the job.
        readable: what it may read.
        output, log, answers: this side's ends of its pipes.
        channel: over which its listener comes.
        hurry: descriptor whose readiness means that nobody waits for the job any more.
    """

    pid: int
    limits: Limits
    readable: tuple[Path, ...]
    output: int
    log: int
    answers: int
    channel: socket.socket
    hurry: int
    frames: list[Frame] = field(default_factory=list)
    layers: tuple[str, ...] = ()
    result: bytes | None = None
    error: str | None = None
    refused: str | None = None
    violation: Violation | None = None
    timed_out: bool = False
    peak: int = 0
    _folder: Path | None = None
    _log: bytearray = field(default_factory=bytearray)
    _pending: bytearray = field(default_factory=bytearray)
    _taken: int = 0
    _listener: int = -1
    _first: int = -1
    _mapped: int = 0
    _waited: dict[int, int] = field(default_factory=dict)
    _waited_before: int = 0

    def run(self) -> Outcome:
        """Watch until the process is gone; every descriptor is closed then."""
        begun = time.monotonic()
        self._begun = begun
        with contextlib.suppress(OSError, IndexError, ValueError):
            self._waited_before = int(Path("/proc/self/schedstat").read_bytes().split()[1])
        pidfd = os.pidfd_open(self.pid)
        with selectors.DefaultSelector() as ready:
            self._ready = ready
            for end in (self.output, self.log, self.channel.fileno(), pidfd, self.hurry):
                ready.register(end, selectors.EVENT_READ)
            gone = False
            while not gone:
                events = [key.fd for key, _ in ready.select(_TICK)]
                gone = pidfd in events
                for end in events:
                    self._serve(end)
                self._measure()
                if self._is_over(time.monotonic() - begun) and not gone:
                    self.timed_out = self.violation is None
                    self.kill()
            self._drain()
        seconds = time.monotonic() - begun
        _, status, used = os.wait4(self.pid, 0)
        for end in (self.output, self.log, self.answers, pidfd, self._listener):
            if end >= 0:
                os.close(end)
        self.channel.close()
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if ended_by in (signal.SIGKILL, signal.SIGXCPU) and self.violation is None:
            # The kernel's limit on processor time may be first where this process has to wait for its own.
            self.timed_out = self.timed_out or used.ru_utime + used.ru_stime >= self.limits.seconds
        if ended_by == signal.SIGSYS and self.violation is None:
            self.violation = Violation("unknown", "made a system call that is not allowed")
        return Outcome(
            frames=tuple(self.frames),
            result=self.result,
            error=self.error,
            signal=ended_by,
            timed_out=self.timed_out,
            violation=self.violation,
            layers=self.layers,
            log=bytes(self._log[-4000:]).decode(errors="replace"),
            seconds=seconds,
            peak=self.peak,
            exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        )

    def _is_over(self, seconds: float) -> bool:
        """Whether the job's time is over. On a busy machine it may have had little of it."""
        if seconds <= self.limits.seconds:
            return False
        if seconds > PATIENCE * self.limits.seconds:
            return True
        for pid in (os.getpid(), *self._members()):
            try:
                self._waited[pid] = int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1])
            except (OSError, IndexError, ValueError):
                continue
        waited = sum(self._waited.values()) - self._waited_before
        return seconds - waited / 1e9 > self.limits.seconds

    def kill(self) -> None:
        """End the job's process, and with it its namespace; its group where it has none."""
        for end in (os.killpg, os.kill):
            try:
                end(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _blame(self, call: str, detail: str) -> None:
        if self.violation is None:
            self.violation = Violation(call, detail)
        self.kill()

    def _serve(self, end: int) -> None:
        if end == self.output:
            self._take()
        elif end == self.log:
            self._take_log()
        elif end == self._listener:
            self._notice()
        elif end == self.channel.fileno():
            self._meet()
        elif end == self.hurry:
            self.kill()

    def _meet(self) -> None:
        self._ready.unregister(self.channel)
        _, descriptors, _, _ = socket.recv_fds(self.channel, 16, 1)
        if descriptors:
            self._listener = descriptors[0]
            self._ready.register(self._listener, selectors.EVENT_READ)

    def _take(self) -> bool:
        try:
            data = os.read(self.output, 1 << 20)
        except BlockingIOError:
            return False
        if not data:
            if self.output in self._ready.get_map():
                self._ready.unregister(self.output)
            return False
        self._pending += data
        self._taken += len(data)
        if self._taken > self.limits.output or len(self.frames) > _MOST_FRAMES:
            self._blame("output", f"sent more than the {self.limits.output} bytes that it may")
            return False
        while len(self._pending) >= HEAD.size:
            kind, size = HEAD.unpack_from(self._pending)
            if len(self._pending) < HEAD.size + size:
                break
            body = bytes(self._pending[HEAD.size : HEAD.size + size])
            del self._pending[: HEAD.size + size]
            self._frame(kind, body)
        return True

    def _frame(self, kind: bytes, body: bytes) -> None:
        resident = self._measure()
        if self._folder is None:
            # The first frame is sent before anything untrusted runs; later ones say what they like.
            if kind == LAYERS:
                layers, folder = json.loads(body)
                self.layers, self._folder = tuple(layers), Path(folder)
                self._first = resident
            elif kind == REFUSED:
                self.refused = body.decode()
        elif kind == DATA:
            seconds = time.monotonic() - self._begun
            self.frames.append(Frame(body, seconds, resident, self.peak, self._mapped))
        elif kind == RESULT:
            self.result = body
        elif kind == ERROR:
            self.error = body.decode(errors="replace")
        try:
            os.write(self.answers, b".")
        except BrokenPipeError:
            return

    def _take_log(self) -> bool:
        try:
            data = os.read(self.log, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            if self.log in self._ready.get_map():
                self._ready.unregister(self.log)
            return False
        self._log += data
        if len(self._log) > self.limits.log:
            self._blame("log", f"printed more than the {self.limits.log} bytes that it may")
            del self._log[: -self.limits.log]
            return False
        return True

    def _drain(self) -> None:
        for take in (self._take, self._take_log):
            while take():
                pass

    def _measure(self) -> int:
        """Resident memory of the job in bytes; ends it where that grew too much."""
        total = 0
        for pid in self._members():
            try:
                mapped, resident = (
                    int(pages) * _PAGE for pages in Path(f"/proc/{pid}/statm").read_bytes().split()[:2]
                )
            except (OSError, ValueError):
                continue
            if pid == self.pid and mapped:
                self._mapped = mapped
            total += resident
        self.peak = max(self.peak, total)
        if self._first >= 0 and total - self._first > self.limits.memory:
            self._blame(
                "memory", f"used {total - self._first} bytes, of the {self.limits.memory} that it may"
            )
        return total

    def _members(self) -> list[int]:
        found, queue = [], [self.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            if self.limits.processes > 1:
                try:
                    queue += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split())
                except OSError:
                    continue
        return found

    def _notice(self) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notice)
        except OSError:
            # The process went away between the call and here.
            if self._gone():
                self._ready.unregister(self._listener)
            return
        number, pid, _, call, _, _, *arguments = _NOTICE.unpack(notice)
        detail = self._judge(calls.names().get(call, f"system call {call}"), pid, arguments)
        if detail is None:
            self._answer(number, 0, _CONTINUE)
        elif detail == "":
            self._answer(number, -_ENOENT, 0)

    def _gone(self) -> bool:
        return not Path(f"/proc/{self.pid}").exists()

    def _answer(self, number: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(number, 0, error, flags))
        except OSError:
            return

    def _judge(self, name: str, pid: int, arguments: list[int]) -> str | None:
        """None: let it be done; empty: refuse it quietly; otherwise the job was ended for it."""
        if name in calls.OPENING:
            folder, place = calls.OPENING[name]
            return self._judge_open(
                name, pid, self._path(pid, arguments, folder, place), arguments[place + 1]
            )
        if name in calls.CHANGING_FILES:
            paths = [self._path(pid, arguments, *places) for places in calls.CHANGING_FILES[name]]
            if all(self._inside(path) for path in paths):
                return None
            return self._end(name, f"changed files outside its folder: {name} {' '.join(map(str, paths))}")
        if name == "mmap":
            return self._end("memory", f"asked for {arguments[1]} bytes of memory at once")
        if name == "clone":
            thread = arguments[0] & 0x10000
            return self._end("thread" if thread else "fork", f"started a {'thread' if thread else 'process'}")
        return self._end(name, f"made the system call {name}")

    def _judge_open(self, name: str, pid: int, path: Path | None, flags: int) -> str | None:
        if path is None:
            return ""
        if flags & _WRITING:
            if self.limits.file_bytes and self._inside(path):
                return None
            return self._end(name, f"opened {path} for writing")
        if self._inside(path) or any(root == path or root in path.parents for root in self.readable):
            return None
        if str(path).startswith(_HARMLESS) or str(path) in ("/dev/null", "/dev/urandom", "/dev/random"):
            return None if str(path).startswith("/dev") else ""
        return self._end(name, f"opened {path}")

    def _end(self, call: str, detail: str) -> str:
        self._blame(call, detail)
        return detail

    def _inside(self, path: Path | None) -> bool:
        return path is not None and self._folder is not None and self._folder in (path, *path.parents)

    def _path(self, pid: int, arguments: list[int], folder: int | None, place: int) -> Path | None:
        """The path that a call names, or None where it cannot be read."""
        try:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(arguments[place])
                # Up to the end of the page: the next one need not be there.
                data = memory.read(min(_LONGEST_PATH, _PAGE - arguments[place] % _PAGE))
                if b"\0" not in data:
                    data += memory.read(_LONGEST_PATH)
        except (OSError, OverflowError, ValueError):
            return None
        text = os.fsdecode(data.split(b"\0", 1)[0])
        base = str(self._folder or "/")
        if folder is not None:
            descriptor = struct.unpack("=i", struct.pack("=I", arguments[folder] & 0xFFFFFFFF))[0]
            if descriptor >= 0 and not text.startswith("/"):
                try:
                    base = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                except OSError:
                    return None
        return Path(os.path.normpath(os.path.join(base, text)))
