"""`esper run FILE` as a supervisor: it starts the run's processes, starts them again, and ends them in order.

It imports no torch and holds the run's folder; the trainer speaks for itself on the same terminal.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esper_runtime.contracts import Checkpointed, Interrupted, Resumed, Started, Steer, Steered
from esper_runtime.local.children import SUPERVISED, Child, Port, start_child
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.helpers import Helper
from esper_runtime.local.processes import (
    TRAINER,
    ProcessRecord,
    ProcessTable,
    end_in_order,
    read_table,
    record_of,
    write_table,
)
from esper_runtime.local.ranks import EXIT_STOPPED, LATE_SECONDS, see_through
from esper_runtime.local.signals import SignalQueue
from esper_runtime.nissa import scan_journal
from esper_runtime.oona import BusAddress
from esper_runtime.planning import Done, GiveUp, Restart, RestartPolicy, plan_trainer

EXIT_QUIT = 130


@dataclass
class Job:
    """What a supervisor is to run.

    Attributes:
        folder: of the run.
        command: of a trainer; rank and the like are in its environment.
        ranks: processes that train together.
        ranks_per_worker: how many of them share a machine.
        grace_seconds: time for a last checkpoint.
        once: its arguments for the first start only, e.g. ``("--fresh",)``.
        address: of the bus, kept in the folder while the run goes on.
        environment: of the trainers.
        helpers: bus and service, in the order in which they start.
        started: is told of each trainer.
        policy: when to give up.
        say: prints a line.
    """

    folder: RunFolder
    command: Sequence[str]
    ranks: int
    ranks_per_worker: int
    grace_seconds: float
    say: Callable[[str], None]
    once: Sequence[str] = ()
    address: BusAddress | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    helpers: Sequence[Helper] = ()
    started: Callable[[ProcessRecord], None] | None = None
    policy: RestartPolicy = field(default_factory=RestartPolicy)


def take_over(folder: RunFolder, grace_seconds: float, say: Callable[[str], None]) -> None:
    """End what an earlier supervisor that was killed has left running; a living one is left alone."""
    table = read_table(folder.processes)
    if table is None or table.supervisor.alive:
        return
    ended = end_in_order(table.children, grace_seconds + LATE_SECONDS)
    for child in ended.found:
        how = "killed" if child in ended.killed else "ended"
        say(f"{how} process {child.pid} ({child.role}), left by an earlier start that was killed")


def end_helpers(folder: RunFolder) -> None:
    """For a trainer whose supervisor was killed: end bus and service when the training is over."""
    table = read_table(folder.processes)
    if table is not None and not table.supervisor.alive:
        end_in_order([child for child in table.children if child.role != TRAINER], LATE_SECONDS)


def supervise(job: Job) -> int:
    """Run a job to its end.

    Returns:
        Exit code of the trainer; 75 when it was told to stop, 1 when it was given up, 130 when it was quit.

    Raises:
        InputError: another process trains the run, or its folder cannot be made.
    """
    take_over(job.folder, job.grace_seconds, job.say)
    with SignalQueue() as signals, job.folder.held() as lock:
        return _Supervision(job, signals, lock).run()


class _Supervision:
    def __init__(self, job: Job, signals: SignalQueue, lock: int) -> None:
        self._job = job
        self._signals = signals
        self._lock = lock
        self._me = record_of("supervisor", os.getpid())
        self._ranks: list[Child] = []
        self._port: Port | None = None
        self._asked = 0
        self._deadline: float | None = None
        self._fruitless = 0
        self._checkpoints = -1
        self._old_journal = _identity(job.folder.journal)

    def run(self) -> int:
        """Start the trainer and see it through."""
        job, again = self._job, False
        try:
            if job.address is not None:
                job.address.store(job.folder.bus_address)
            while True:
                self._checkpoints = _progress(job.folder.journal)
                self._start_ranks(again)
                code = self._see_through()
                if _progress(job.folder.journal) > self._checkpoints:
                    self._fruitless = 0
                self._fruitless += 1
                stopping = self._asked > 0 or _told_to_stop(job.folder.journal)
                step = plan_trainer(code, self._fruitless, stopping, job.policy)
                if isinstance(step, Done):
                    return self._code(step.code)
                if isinstance(step, GiveUp):
                    job.say(f"esper: {step.why}")
                    return step.code
                if not self._announce(step):
                    return self._code(EXIT_STOPPED)
                again = self._begun()
        finally:
            self._end_all()

    def _code(self, code: int) -> int:
        if self._asked > 1:
            return EXIT_QUIT
        if code == EXIT_STOPPED and not self._job.folder.started:
            self._job.say("stopped")
            return EXIT_QUIT
        return code

    def _announce(self, step: Restart) -> bool:
        """Say that the trainer starts again and wait; False when told to stop meanwhile."""
        self._job.say(f"the trainer ended ({step.why}); it starts again in {step.seconds:g} s")
        until = time.monotonic() + step.seconds
        while time.monotonic() < until:
            self._look(until - time.monotonic())
            if self._asked:
                return False
        return True

    # The trainer

    def _start_ranks(self, again: bool) -> None:
        job = self._job
        command = [*job.command, *(() if again else job.once)]
        before, self._port = self._port, Port()  # another one: who is left of the last group may hold its own
        if before is not None:
            before.close()
        group = {
            **job.environment,
            SUPERVISED: "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._port.number),
            "WORLD_SIZE": str(job.ranks),
            "LOCAL_WORLD_SIZE": str(job.ranks_per_worker),
        }
        self._ranks = []
        for rank in range(job.ranks):
            environment = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank % job.ranks_per_worker)}
            log = job.folder.logs / f"rank-{rank}.log" if rank else None
            self._ranks.append(start_child(TRAINER, command, environment, (self._lock,), log))
            if job.started is not None:
                job.started(self._ranks[-1].record)
            self._record()

    def _see_through(self) -> int:
        """Wait until all ranks have ended; returns how the group ended."""
        codes, outcome = see_through(self._ranks, self._look, self._job.grace_seconds, lambda: self._deadline)
        self._tell_logs(codes)
        return outcome

    def _tell_logs(self, codes: Sequence[int]) -> None:
        for number, code in enumerate(codes):
            if number and code not in (0, 2, 75, 76) and not self._asked:
                log = self._job.folder.logs / f"rank-{number}.log"
                self._job.say(f"rank {number} ended with {code}; what it said is in {log}")

    # What happens meanwhile

    def _look(self, seconds: float) -> None:
        """Wait for news, hand on signals, and look after bus and service."""
        wakes = [helper.wakes_in() for helper in self._job.helpers]
        self._signals.wait(min([seconds, *(wake for wake in wakes if wake is not None)]))
        for number in self._signals.take():
            self._asked += 1
            if self._asked == 1:
                self._deadline = time.monotonic() + self._job.grace_seconds + LATE_SECONDS
                for rank in self._ranks:
                    rank.ask_to_stop(number)
            else:
                for rank in self._ranks:
                    rank.kill()
        if not self._asked:
            begun = self._begun()
            due = [helper for helper in self._job.helpers if begun or helper.early]
            changed = [helper.look(self._job.say) for helper in due]
            if any(changed):
                self._record()

    def _begun(self) -> bool:
        """Whether the trainer has written to the journal: before, nothing else is started for it."""
        return self._job.folder.started and _identity(self._job.folder.journal) != self._old_journal

    def _record(self) -> None:
        children: list[ProcessRecord] = [rank.record for rank in self._ranks]
        children += [h.record for h in reversed(self._job.helpers) if h.record is not None and not h.shared]
        write_table(self._job.folder.processes, ProcessTable(supervisor=self._me, children=tuple(children)))

    def _end_all(self) -> None:
        """End what still runs, the trainer first, and leave no address of what is gone."""
        end_in_order([rank.record for rank in self._ranks if rank.ended is None], LATE_SECONDS)
        for rank in self._ranks:
            rank.wait(LATE_SECONDS)
        if self._port is not None:
            self._port.close()
        for helper in reversed(self._job.helpers):
            helper.stop()
        self._job.folder.bus_address.unlink(missing_ok=True)
        self._job.folder.processes.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Which file it is, also after another one took its name, and how long."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size


def _progress(journal: Path) -> int:
    """Sequence of the last checkpoint in a journal: it grows whenever the run has got further."""
    entries = scan_journal(journal).entries
    return max((e.sequence for e in entries if isinstance(e.event, Checkpointed)), default=-1)


def _told_to_stop(journal: Path) -> bool:
    """Whether a person commanded the last trainer to stop, and it did not get to say that it did."""
    for entry in reversed(scan_journal(journal).entries):
        event = entry.event
        if isinstance(event, Steered) and event.command is Steer.STOP:
            return True
        if isinstance(event, Started | Resumed | Interrupted):
            return False
    return False
