"""Processes of a run: recorded by id and start time, so that another one with the id is told apart."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from esper_runtime.contracts import ContractModel

TRAINER = "trainer"
"""Role of the processes that train."""
POLL_SECONDS = 0.02
_STARTED_FIELD = 19
"""Place of the start time in /proc/PID/stat, counted behind the name in brackets; see proc(5)."""


class ProcessRecord(ContractModel):
    """A process: its part in the run, its id, and when it started (clock ticks since the machine's boot)."""

    role: str
    pid: int = Field(ge=1)
    started: int = Field(ge=0)

    @property
    def alive(self) -> bool:
        """True while this very process runs; a later one with the same id is another."""
        return start_time(self.pid) == self.started


class ProcessTable(ContractModel):
    """Who runs a run: the supervisor, and what it started, in the order in which it is to be ended."""

    supervisor: ProcessRecord
    children: tuple[ProcessRecord, ...] = ()


_TABLE = TypeAdapter(ProcessTable)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None where there is none (any more)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[_STARTED_FIELD])


def record_of(role: str, pid: int) -> ProcessRecord:
    """The record of a process; one that has ended already is recorded as not alive."""
    return ProcessRecord(role=role, pid=pid, started=start_time(pid) or 0)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def write_table(path: Path, table: ProcessTable) -> None:
    """Put a table in place of the one there, whole."""
    new = path.with_suffix(".new")
    new.write_text(table.model_dump_json(by_alias=True, indent=2) + "\n")
    new.replace(path)


def read_table(path: Path) -> ProcessTable | None:
    """The table in a file; None where there is none that can be read."""
    try:
        return _TABLE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


@dataclass(frozen=True)
class Ended:
    """How `end_in_order` went: who was still alive, and who of them had to be killed."""

    found: tuple[ProcessRecord, ...]
    killed: tuple[ProcessRecord, ...]


def end_in_order(children: Sequence[ProcessRecord], grace_seconds: float) -> Ended:
    """End processes one role after the other: SIGTERM, time to save, then SIGKILL.

    Args:
        children: in the order in which they are to end; ranks of one trainer are told together.
        grace_seconds: how long a trainer may take; the others get five seconds.
    """
    found: list[ProcessRecord] = []
    killed: list[ProcessRecord] = []
    for role in dict.fromkeys(child.role for child in children):
        living = [child for child in children if child.role == role and child.alive]
        found += living
        for child in living:
            send(child, signal.SIGTERM)
        left = _wait(living, grace_seconds if role == TRAINER else 5.0)
        for child in left:
            send(child, signal.SIGKILL)
        _wait(left, 5.0)
        killed += left
    return Ended(tuple(found), tuple(killed))


def send(child: ProcessRecord, number: signal.Signals) -> None:
    """Send a signal to a recorded process, if it is still that one."""
    if child.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _wait(children: Iterable[ProcessRecord], seconds: float) -> list[ProcessRecord]:
    """Wait until none is alive; returns those that are when the time is over."""
    deadline = time.monotonic() + seconds
    left = [child for child in children if child.alive]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [child for child in left if child.alive]
    return left
