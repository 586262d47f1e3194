"""A trainer on the bus: the connection from its begin to its end, and what it is told of."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from esper_runtime.contracts import JournalEntry, RunOnBus
from esper_runtime.local.cores import forge_cores
from esper_runtime.local.home import FORGE_VARIABLE
from esper_runtime.local.processes import read_table
from esper_runtime.nissa import count
from esper_runtime.oona import LIBRARY_VARIABLE, Bridge, BusAddress
from esper_runtime.tolaria import LibraryLink, Observer

FLUSH_SECONDS, FLUSH_SECONDS_NEVER = 5.0, 0.5
"""How long the end of a run waits for what was not sent yet; the second where no bus was ever there."""

SWITCH_SECONDS = 0.0001
"""After so long the training thread gets the interpreter back from the bridge's (Python's own: 5 ms)."""


class Both:
    """Tells two observers.

    Args:
        first: is told first.
        second: is told then.
    """

    def __init__(self, first: Observer, second: Observer) -> None:
        self._first, self._second = first, second

    def on_step(self, step: int, loss: float) -> None:
        """Tell both of a step."""
        self._first.on_step(step, loss)
        self._second.on_step(step, loss)

    def on_event(self, entry: JournalEntry) -> None:
        """Tell both of an event."""
        self._first.on_event(entry)
        self._second.on_event(entry)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Tell both what is made ready."""
        self._first.on_preparing(text, done, total)
        self._second.on_preparing(text, done, total)


def library_link(run: str) -> LibraryLink | None:
    """The way to the library that the environment names, for the trainer of ``run``; None for none."""
    path = os.environ.get(LIBRARY_VARIABLE)
    if not path:
        return None
    table = os.environ.get(FORGE_VARIABLE)
    made = partial(_works, Path(table)) if table else lambda: True
    return LibraryLink(Path(path), RunOnBus.of(run), made, forge_cores())


def _works(table: Path) -> bool:
    """Whether the forge that a table tells of lives."""
    found = read_table(table)
    return found is not None and found.supervisor.alive


@contextlib.contextmanager
def connected(
    address: BusAddress | None, run: str, journal: Path, say: Callable[[str], None]
) -> Iterator[Bridge | None]:
    """Inside, the run is on the bus.

    Args:
        address: of the bus; None where there is none, which gives None.
        run: its name.
        journal: its file, of which the bus gets a copy.
        say: prints a line, where something did not get to the bus.
    """
    if address is None:
        yield None
        return
    place = RunOnBus.of(run)
    bridge = Bridge(address, place.namespace, place.run, place.source, journal)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    bridge.start()
    handled = False
    try:
        yield bridge
        handled = True
    finally:
        sys.setswitchinterval(interval)
        been_there = bridge.status().connections > 0  # a bus that died a moment ago comes back
        counts = bridge.close(FLUSH_SECONDS if been_there else FLUSH_SECONDS_NEVER, handled).telemetry
        if counts.dropped:
            say(
                f"bus: of {count(counts.produced)} samples of telemetry {count(counts.delivered)} were "
                f"delivered and {count(counts.dropped)} dropped while it was away; the journal's file has "
                f"all that happened"
            )
