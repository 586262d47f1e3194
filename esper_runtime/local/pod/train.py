"""The container `training`: starts the ranks of its pod once, and ends with a code that the operator knows.

It starts nothing again: that is the Job's part. The first pod holds the run's folder; the others keep no
files, and look at the folder only to see whether the run is complete. Without a claim each pod has a folder
of its own, and the journal's copy beside the checkpoints says that.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.contracts import ControllerKind, InputError, MorphogeneticRun, RunOnBus, load_run
from esper_runtime.local.children import (
    IN_POD,
    LISTEN_VARIABLE,
    SUPERVISED,
    Child,
    esper_command,
    start_child,
)
from esper_runtime.local.folder import FolderHeldError, RunFolder
from esper_runtime.local.pod.container import settle
from esper_runtime.local.pod.master import Master
from esper_runtime.local.processes import TRAINER
from esper_runtime.local.ranks import LATE_SECONDS, see_through
from esper_runtime.local.signals import SignalQueue
from esper_runtime.nissa import KeptJournal, scan_journal
from esper_runtime.oona import LIBRARY_VARIABLE
from esper_runtime.planning import how_it_ended, observe, pod_exit

MANIFEST, RUNS = "manifest.yaml", "runs"
DONE, RESUME_ME, PEER_DIED = 0, 75, 76
HELD_SECONDS = 60.0
"""How long a pod that is ending may still hold the run's folder."""
ENDING_SECONDS = 600.0
"""How long the first pod may take, after the last step, to measure, save and export the model."""
_LOOK_SECONDS = 0.5
_LOOK_ELSEWHERE_SECONDS = 5.0


def train(config: Path, data: Path, say: Callable[[str], None]) -> int:
    """Train as this pod of a run.

    Args:
        config: folder of the mounted Secret, with manifest.yaml.
        data: folder of the run's claim, that all pods of the run see.
        say: prints a line.

    Returns:
        Exit code (`pod_exit`): 0 complete, 75 resume me, 76 a peer died, 77 budget used up, 2, 137 or 1.

    Raises:
        InputError: manifest, environment or folders cannot work.
        ArtifactError: the keys cannot be used.
    """
    settle(config)
    run = load_run(config / MANIFEST)
    seat = Seat.of(run, os.environ)
    folder = RunFolder(_runs(data, say) / run.metadata.name)
    with SignalQueue() as signals:
        return _Pod(run, config / MANIFEST, folder, seat, signals, say).run()


@dataclass(frozen=True)
class Seat:
    """Which pod of the run this is.

    Attributes:
        index: of the pod, from 0.
        pods: how many there are.
        master: where rank 0 listens; None where one process trains alone.
    """

    index: int
    pods: int
    master: Master | None

    @classmethod
    def of(cls, run: MorphogeneticRun, environment: Mapping[str, str]) -> "Seat":
        """From JOB_COMPLETION_INDEX and ESPER_MASTER.

        Raises:
            InputError: they are missing or do not go with the manifest.
        """
        workers = run.spec.training.workers
        text = environment.get("JOB_COMPLETION_INDEX", "0" if workers.count == 1 else "")
        if not text.isdigit() or int(text) >= workers.count:
            raise InputError(
                f"JOB_COMPLETION_INDEX is {text!r}; with spec.training.workers.count {workers.count} it is "
                f"0 to {workers.count - 1}, as an Indexed Job sets it"
            )
        if workers.count == 1:
            return cls(0, 1, Master.named(environment.get("ESPER_MASTER", "localhost")))
        if "ESPER_MASTER" not in environment:
            raise InputError("ESPER_MASTER is not set: the name of the first pod, where rank 0 listens")
        return cls(int(text), workers.count, Master.named(environment["ESPER_MASTER"]))


class _Pod:
    def __init__(
        self,
        run: MorphogeneticRun,
        manifest: Path,
        folder: RunFolder,
        seat: Seat,
        signals: SignalQueue,
        say: Callable[[str], None],
    ) -> None:
        self._run, self._manifest, self._folder = run, manifest, folder
        self._seat, self._signals, self._say = seat, signals, say
        self._ranks: list[Child] = []
        self._kill_at: float | None = None
        self._first = seat.index == 0
        name = RunOnBus.of(run.metadata.name).run
        self._kept = KeptJournal(run.spec.checkpoint.uri, name, folder.journal)

    def run(self) -> int:
        """See the pod through; returns its exit code."""
        complete = self._complete()
        if complete and not self._first:
            self._say(f"run {self._run.metadata.name!r} is complete")
            return DONE
        with contextlib.ExitStack() as stack:
            lock: tuple[int, ...] = ()
            if self._first:
                held = stack.enter_context(self._held())
                if held is None:
                    return RESUME_ME if self._stopping else PEER_DIED
                lock = (held,)
            if self._seat.pods > 1 and not complete:
                assert self._seat.master is not None
                if not self._seat.master.wait(self._first, self._stopped_within, self._say):
                    return RESUME_ME if self._stopping else PEER_DIED
            stack.callback(self._end_all)
            self._start(lock, 1 if complete else self._run.spec.training.workers.processes_per_worker)
            codes, outcome = see_through(
                self._ranks, self._look, self._run.spec.checkpoint.grace_seconds, lambda: self._kill_at
            )
            code = pod_exit(outcome, self._stopping)
            if len(codes) > 1 or outcome != code:
                self._say("ranks of this pod: " + ", ".join(how_it_ended(each) for each in codes))
            if code == DONE and not self._first:
                return self._until_recorded()
            return code

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """Inside, this pod holds the run's folder; None where another one does not let it go."""
        deadline = time.monotonic() + HELD_SECONDS
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    held: int | None = stack.enter_context(self._folder.held())
                    break
                except FolderHeldError:
                    if time.monotonic() > deadline or self._stopped_within(_LOOK_SECONDS):
                        held = None
                        self._say(f"{self._folder.path}: another pod still trains this run")
                        break
            yield held

    def _start(self, lock: tuple[int, ...], ranks: int) -> None:
        workers, master = self._run.spec.training.workers, self._seat.master
        assert master is not None
        group = {
            SUPERVISED: IN_POD,
            "MASTER_ADDR": master.host,
            "MASTER_PORT": str(master.port),
            "WORLD_SIZE": str(workers.ranks),
            "LOCAL_WORLD_SIZE": str(workers.processes_per_worker),
            "PYTHONUNBUFFERED": "1",
        }
        if self._run.spec.growth.controller.kind is ControllerKind.OFF:
            group[LIBRARY_VARIABLE] = ""
        command: tuple[str, ...] = (
            *esper_command(),
            "run",
            str(self._manifest),
            "--runs-dir",
            str(self._folder.path.parent),
        )
        if LISTEN_VARIABLE in os.environ:
            command = (*command, "--listen", os.environ[LISTEN_VARIABLE])
        for local in range(ranks):
            rank = self._seat.index * workers.processes_per_worker + local
            environment = {**group, "RANK": str(rank), "LOCAL_RANK": str(local)}
            self._ranks.append(start_child(TRAINER, command, environment, lock))
        if workers.ranks > 1:
            first = self._seat.index * workers.processes_per_worker
            these = f"rank {first}" if ranks == 1 else f"ranks {first} to {first + ranks - 1}"
            self._say(
                f"pod {self._seat.index} of {self._seat.pods}: {these} of {workers.ranks}, meet at {master}"
            )

    def _until_recorded(self) -> int:
        """A rank that follows has done its last step: it stays until the first pod has recorded the end.

        A Job does not start a pod again that has ended well; the first pod, should it die now, would wait for
        this one.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        here = self._folder.started
        while (here or self._kept.place is not None) and not self._complete():
            if here and self._folder.holder() is None and not self._complete():
                self._say("the first pod is gone, and the run's end is not recorded")
                return PEER_DIED
            if time.monotonic() > deadline:
                self._say(f"the first pod has not recorded the run's end within {ENDING_SECONDS:g} s")
                return PEER_DIED
            if self._stopped_within(_LOOK_SECONDS if here else _LOOK_ELSEWHERE_SECONDS):
                return RESUME_ME
        return DONE

    def _complete(self) -> bool:
        """As far as the journal says; rank 0 says what may be wrong with that."""
        entries = scan_journal(self._folder.journal).entries or self._kept.entries()
        return observe(entries, False).outcome == "Complete"

    # Signals

    @property
    def _stopping(self) -> bool:
        return self._kill_at is not None

    def _stopped_within(self, seconds: float) -> bool:
        self._look(seconds)
        return self._stopping

    def _look(self, seconds: float) -> None:
        """Wait for news, hand on the first signal, and bury orphans, which come to process 1."""
        self._signals.wait(seconds)
        for number in self._signals.take():
            if self._kill_at is None:
                self._kill_at = time.monotonic() + self._run.spec.checkpoint.grace_seconds + LATE_SECONDS
                self._say(f"{number.name}: this pod is to end")
                for rank in self._ranks:
                    rank.ask_to_stop(number)
        _bury({rank.popen.pid for rank in self._ranks})

    def _end_all(self) -> None:
        for rank in self._ranks:
            if rank.ended is None:
                rank.end(LATE_SECONDS)


def _runs(data: Path, say: Callable[[str], None]) -> Path:
    """The folder of runs on the claim."""
    if os.access(data, os.W_OK | os.X_OK):
        return data / RUNS
    temporary = Path(os.environ["TMPDIR"]) / RUNS
    say(
        f"{data} cannot be written to: journal and report are in {temporary} and end with this pod. Mount a "
        f"claim there to keep them"
    )
    return temporary


def _bury(ours: set[int]) -> None:
    """Reap processes that ended and are not known here: a container has no other process to do so."""
    with contextlib.suppress(ChildProcessError):
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
