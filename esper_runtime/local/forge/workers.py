"""The forge's workers as child processes: modest, away from the training's core, replaced when they die."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.contracts import Role
from esper_runtime.local.children import Child, log_file, start_child
from esper_runtime.local.processes import ProcessRecord
from esper_runtime.planning import WORKERS, RestartPolicy, how_it_ended

NICE = 15
"""How far a worker stands back: the kernel gives it 1/28 of a core that a training wants too."""
MOST_WORKERS = 4
STEADY_SECONDS = 20.0
GRACE_SECONDS = 3.0
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def default_workers() -> int:
    """As many as there are cores but one, at least 1, at most `MOST_WORKERS`."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))


def stand_back(pid: int, cores: frozenset[int]) -> None:
    """Give a process the lowest claim on the processor, and the given cores only."""
    os.setpriority(os.PRIO_PROCESS, pid, NICE)
    os.sched_setaffinity(pid, cores)


@dataclass
class _Worker:
    child: Child
    since: float
    kill_at: float | None = None


class WorkerPool:
    """Worker processes of each role.

    Args:
        command: what to run for a role.
        environment: of a role's workers, added to this process's.
        cores: where they may run.
        logs: folder that takes what they print.
        say: prints a line.
        policy: how long to wait before one that died is replaced.
    """

    def __init__(
        self,
        command: Callable[[Role], Sequence[str]],
        environment: Callable[[Role], Mapping[str, str]],
        cores: frozenset[int],
        logs: Path,
        say: Callable[[str], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._command, self._environment = command, environment
        self._cores, self._logs, self._say = cores, logs, say
        self._policy = policy or RestartPolicy()
        self._workers: dict[Role, list[_Worker]] = {role: [] for role in WORKERS}
        self._fruitless = dict.fromkeys(WORKERS, 0)
        self._due = dict.fromkeys(WORKERS, 0.0)

    @property
    def running(self) -> dict[Role, int]:
        """Workers of each role that are not told to end."""
        return {role: sum(w.kill_at is None for w in workers) for role, workers in self._workers.items()}

    @property
    def records(self) -> tuple[ProcessRecord, ...]:
        """All that live."""
        return tuple(w.child.record for workers in self._workers.values() for w in workers)

    def look(self, wanted: Mapping[Role, int]) -> bool:
        """Note who has ended, start and end what is to be; True when something changed. Waits for nobody."""
        before = self.records
        now = time.monotonic()
        for role, workers in self._workers.items():
            self._reap(role, now)
            living = [worker for worker in workers if worker.kill_at is None]
            for worker in living[wanted.get(role, 0) :]:
                worker.child.terminate()
                worker.kill_at = now + GRACE_SECONDS
            if now >= self._due[role]:
                missing = wanted.get(role, 0) - len(living)
                workers += [_Worker(self._start(role), now) for _ in range(missing)]
        return self.records != before

    def end(self) -> None:
        """End all, and wait for that."""
        workers = [worker for each in self._workers.values() for worker in each]
        for worker in workers:
            worker.child.terminate()
        until = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            if not worker.child.wait(max(0.0, until - time.monotonic())):
                worker.child.kill()
                worker.child.wait(GRACE_SECONDS)
        for each in self._workers.values():
            each.clear()

    def _reap(self, role: Role, now: float) -> None:
        left = []
        for worker in self._workers[role]:
            code = worker.child.ended
            if code is None:
                if worker.kill_at is not None and now > worker.kill_at:
                    worker.child.kill()
                left.append(worker)
            elif worker.kill_at is None and code != 0:
                steady = now - worker.since >= STEADY_SECONDS
                self._fruitless[role] = 1 if steady else self._fruitless[role] + 1
                wait = self._policy.wait(self._fruitless[role])
                self._due[role] = now + wait
                self._say(f"a {role.value} ended ({how_it_ended(code)}); another one starts in {wait:g} s")
        self._workers[role][:] = left

    def _start(self, role: Role) -> Child:
        log = log_file(self._logs / f"{role.value}.log")
        threads = dict.fromkeys(_ONE_THREAD, "1")
        environment = {**threads, **self._environment(role)}
        child = start_child(role.value, self._command(role), environment, log=log)
        with contextlib.suppress(ProcessLookupError):  # it has ended already; the next look says so
            stand_back(child.record.pid, self._cores)
        return child
