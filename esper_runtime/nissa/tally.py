"""How a run stands, kept up to date entry by entry while it goes on."""

from collections import Counter
from collections.abc import Sequence

from esper_runtime.contracts import (
    GONE,
    Finished,
    Interrupted,
    JournalEntry,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    Started,
    Validated,
)
from esper_runtime.nissa.journal import effective


class Tally:
    """What of a run's journal is true now; what a rollback or a resumption undoes does not count.

    Args:
        earlier: the journal's entries so far.

    Attributes:
        entries: all of them, in order.
        step: optimizer steps done.
        incarnation: of the last entry.
        started: the run's beginning; None before it.
        validated: the last validation; None before one.
        outcome: how it ended or was interrupted; None while it goes on.
    """

    def __init__(self, earlier: Sequence[JournalEntry] = ()) -> None:
        self.entries = list(earlier)
        self.step = self.incarnation = 0
        self.started: Started | None = None
        self._forget()
        for entry in effective(self.entries):
            self._apply(entry)

    def add(self, entry: JournalEntry) -> None:
        """Take in the next entry."""
        self.entries.append(entry)
        if not isinstance(entry.event, Resumed | RolledBack):
            self._apply(entry)
            return
        self._forget()
        for kept in effective(self.entries):
            self._apply(kept)

    @property
    def seeds(self) -> dict[SeedStage, int]:
        """How many seeds are in which stage."""
        return dict(Counter(self._seeds.values()))

    def _forget(self) -> None:
        self._seeds: dict[str, SeedStage] = {}
        self.validated: Validated | None = None
        self.outcome: str | None = None

    def _apply(self, entry: JournalEntry) -> None:
        self.step, self.incarnation = entry.step, entry.incarnation
        match entry.event:
            case Started() as event:
                self.started = event
            case Validated() as event:
                self.validated = event
            case SeedChanged(seed=seed, after=after):
                if after in GONE:
                    self._seeds.pop(seed, None)
                else:
                    self._seeds[seed] = after
            case Finished(outcome=outcome):
                self.outcome = outcome
            case Interrupted():
                self.outcome = "Interrupted"
