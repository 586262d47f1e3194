"""What a training reports: while it runs to an observer, at its end as a result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from esper_runtime.contracts import Finished, JournalEntry


class Observer(Protocol):
    """Watches a run, e.g. to draw its progress. Calls come from the training thread and must be cheap."""

    def on_step(self, step: int, loss: float) -> None:
        """``step`` optimizer steps are done; ``loss`` is the last batch's mean training loss."""

    def on_event(self, entry: JournalEntry) -> None:
        """An entry was added to the journal."""

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Before the first step something is made ready, ``done`` of ``total``; ``text`` says what."""


class NoObserver:
    """Watches nothing."""

    def on_step(self, step: int, loss: float) -> None:
        """Do nothing."""

    def on_event(self, entry: JournalEntry) -> None:
        """Do nothing."""

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        outcome: Complete, or Interrupted with a checkpoint from which the same call goes on.
        reason: why it ended.
        step: optimizer steps done.
        folder: the run's folder.
        finished: the journal's last entry of a complete run; None for an interrupted one.
        trained: False when nothing was done: the run had been complete before, or was stopped before it could
            go on.
        budget_used: whether it was interrupted because this process has used up `spec.budget`.
    """

    outcome: Literal["Complete", "Interrupted"]
    reason: str
    step: int
    folder: Path
    finished: Finished | None = None
    trained: bool = True
    budget_used: bool = False
