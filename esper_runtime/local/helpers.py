"""The bus and the controller service as a supervisor sees them: kept running, but never waited for."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from esper_runtime.contracts import BusError, EsperError
from esper_runtime.local.children import Child, start_child
from esper_runtime.local.home import HomeBus
from esper_runtime.local.processes import ProcessRecord, record_of
from esper_runtime.oona import BundledServer, BusAddress
from esper_runtime.planning import GiveUp, Restart, RestartPolicy, how_it_ended, plan_helper

STARTING_SECONDS = 0.05
"""How often it is seen to whether a helper that starts has started."""
STEADY_SECONDS = 10.0
"""A helper that ran for so long has started well: its end is no sign that it cannot run."""


class Process(Protocol):
    """Something that can be started again and again."""

    def start(self) -> ProcessRecord:
        """Start it; raises `BusError` where it cannot be."""
        ...

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""
        ...

    def give_up(self) -> None:
        """Let a start that is under way in another thread come to its end soon, whatever that is."""
        ...

    def stop(self) -> None:
        """End it and wait for that."""
        ...


class BusProcess:
    """The bundled nats-server of a run.

    Args:
        store: folder of its files.
        address: where it is to listen.
    """

    def __init__(self, store: Path, address: BusAddress) -> None:
        self._store, self._address = store, address
        self._server = BundledServer(store)

    def start(self) -> ProcessRecord:
        """Start it with the streams that are there, at the address that the others know."""
        try:
            self._store.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise BusError(f"{self._store}: {error.strerror}") from error
        self._address.store(self._server.address_file)
        self._server.start()
        return record_of("bus", self._server.pid or 0)

    def ended(self) -> str | None:
        """That it is gone; None while it runs."""
        return None if self._server.is_alive() else "its process is gone"

    def give_up(self) -> None:
        """Wait no longer until it is ready."""
        self._server.give_up()

    def stop(self) -> None:
        """End it; its streams stay."""
        self._server.stop()


class LibraryProcess:
    """The machine's home bus with the library, which this run shares with others.

    Args:
        home: the bus.
    """

    def __init__(self, home: HomeBus) -> None:
        self._home = home
        self._joined = False

    def start(self) -> ProcessRecord:
        """Join it; start it again where it has died."""
        if self._joined:
            self._home.revive()
        else:
            self._home.join()
            self._joined = True
        return record_of("library", self._home.pid or 0)

    def ended(self) -> str | None:
        """That it is gone; None while it runs."""
        return None if self._home.alive else "its process is gone"

    def give_up(self) -> None:
        """Wait no longer until it is ready."""
        self._home.give_up()

    def stop(self) -> None:
        """Use it no more; the last one ends it."""
        self._home.leave()


class ServiceProcess:
    """A command of `esper` that serves the run.

    Args:
        role: its part.
        command: what to run.
        environment: added to that of this process.
        log: takes its output.
    """

    def __init__(self, role: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._role, self._command, self._environment, self._log = role, command, environment, log
        self._child: Child | None = None

    def start(self) -> ProcessRecord:
        """Start it."""
        self._child = start_child(self._role, self._command, self._environment, log=self._log)
        return self._child.record

    def ended(self) -> str | None:
        """How it ended; None while it runs."""
        code = None if self._child is None else self._child.ended
        return None if code is None else f"{how_it_ended(code)} (see {self._log})"

    def give_up(self) -> None:
        """It starts at once."""

    def stop(self) -> None:
        """Reap it where it was ended already, else end it."""
        if self._child is not None:
            self._child.end()


class Helper:
    """A process without which the training goes on, started in a thread of its own: nobody waits for it.

    Args:
        name: what a person calls it.
        process: what is kept running.
        without: what it means that it is not there, for the message when it is given up.
        policy: how often it is started again, and after how long.
        shared: others use the process as well: it is not this run's to end.
        early: the trainer needs it before its first step: it is started with it.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        without: str,
        policy: RestartPolicy | None = None,
        *,
        shared: bool = False,
        early: bool = False,
    ) -> None:
        self.shared, self.early = shared, early
        self.record: ProcessRecord | None = None
        """The process that runs, None while there is none."""
        self._name, self._process, self._without = name, process, without
        self._policy = policy or RestartPolicy()
        self._fruitless = 0
        self._since = 0.0
        self._due: float | None = 0.0
        self._thread = ThreadPoolExecutor(1)
        self._starting: Future[ProcessRecord] | None = None

    def look(self, say: Callable[[str], None]) -> bool:
        """Start it where it is due, and note where it has started or ended; True when something changed."""
        if self._starting is not None:
            return self._has_started(self._starting, say)
        if self.record is None:
            if self._due is not None and time.monotonic() >= self._due:
                self._since = time.monotonic()
                self._starting = self._thread.submit(self._process.start)
            return False
        how = self._process.ended()
        if how is None:
            return False
        self.record = None
        self._plan(how, say)
        return True

    def _has_started(self, starting: Future[ProcessRecord], say: Callable[[str], None]) -> bool:
        if not starting.done():
            return False
        self._starting = None
        try:
            self.record = starting.result()
        except (EsperError, OSError) as error:
            self._plan(str(error), say)
        return True

    def _plan(self, how: str, say: Callable[[str], None]) -> None:
        steady = time.monotonic() - self._since >= STEADY_SECONDS
        self._fruitless = 1 if steady else self._fruitless + 1
        match plan_helper(how, self._fruitless, self._policy):
            case Restart(seconds, _):
                self._due = time.monotonic() + seconds
            case GiveUp(_, why):
                self._due = None
                say(f"{self._name}: {why}. {self._without}")

    def stop(self) -> None:
        """End it, also while it starts."""
        self._process.give_up()
        self._thread.shutdown()
        self._process.stop()
        self.record = self._starting = None

    def wakes_in(self) -> float | None:
        """Seconds until it is due to be started or may have started, None where it runs or never will."""
        if self._starting is not None:
            return STARTING_SECONDS
        return None if self.record is not None or self._due is None else self._due - time.monotonic()
