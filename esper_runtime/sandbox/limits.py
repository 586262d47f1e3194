"""What a job in the sandbox may use, and what came of it."""

from dataclasses import dataclass, field
from enum import StrEnum

MIB = 1024 * 1024


class Profile(StrEnum):
    """What kind of work a job is.

    ``COMPUTE`` runs untrusted native code: only the calls that computing needs; no process, thread or socket,
    and no file outside its own folder. ``BUILD`` runs a compiler: it may start processes and write in its own
    folder.
    """

    COMPUTE = "compute"
    BUILD = "build"


@dataclass(frozen=True)
class Limits:
    """Bounds of one job. Sizes in bytes, times in seconds.

    Attributes:
        seconds: after which everything that belongs to the job is killed; time in which it could have run but
            had to wait for a processor does not count, up to ten times as long.
        memory: growth of resident memory over that of the warm process, all processes of the job together;
            one mapping larger than this is refused too.
        output: all that the job may send back.
        log: what it may print on standard output and error together.
        processes: of the job, itself included (``BUILD`` only; else 1).
        files: open at one time.
        file_bytes: the largest file it may write; 0: it writes none.
        folder_bytes: of all files in its folder (where it can be a file system of its own).
    """

    seconds: float = 10.0
    memory: int = 1024 * MIB
    output: int = 64 * MIB
    log: int = 64 * 1024
    processes: int = 1
    files: int = 64
    file_bytes: int = 0
    folder_bytes: int = 256 * MIB


@dataclass(frozen=True)
class Frame:
    """A piece of output, with what was seen from outside the job when it came.

    Attributes:
        data: as sent by the job: untrusted.
        seconds: since the job began.
        resident: memory of the job's process in bytes.
        peak: the most that was resident until then.
        mapped: address space of its first process in bytes.
    """

    data: bytes
    seconds: float
    resident: int
    peak: int
    mapped: int


@dataclass(frozen=True)
class Violation:
    """A rule that the job broke; it was killed for it.

    Attributes:
        call: the system call, or ``memory``, ``output``, ``log``, ``processes``.
        detail: in words, with the path or the size.
    """

    call: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        frames: what it sent, in order.
        result: what its function returned, or None where it did not return.
        error: the exception that its function ended with, as text.
        signal: that ended its process, if one did.
        timed_out: whether it was killed because its time was over.
        violation: the rule it was killed for.
        layers: of the sandbox that were active.
        log: the end of what it printed.
        seconds: it took.
        peak: most resident memory of the job's first process, in bytes, the warm process's own included.
    """

    frames: tuple[Frame, ...] = ()
    result: bytes | None = None
    error: str | None = None
    signal: int | None = None
    timed_out: bool = False
    violation: Violation | None = None
    layers: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0
    peak: int = 0
    exit_code: int | None = field(default=None)

    @property
    def finished(self) -> bool:
        """Whether the function returned and the process then ended by itself."""
        return (
            self.result is not None and self.violation is None and not self.timed_out and self.signal is None
        )

    @property
    def reason(self) -> str:
        """Why it did not finish, in one sentence; empty where it did."""
        if self.violation is not None:
            return self.violation.detail
        if self.timed_out:
            return f"still running after {self.seconds:.1f} s"
        if self.signal is not None:
            return f"ended by signal {self.signal}"
        if self.error is not None:
            return self.error
        return "" if self.result is not None else f"ended with exit code {self.exit_code} and no result"
