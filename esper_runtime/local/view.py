"""What a person watching a run sees, kept up to date from the journal's entries and the steps between."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from esper_runtime.contracts import (
    GONE,
    AnswerRefused,
    ControllerChanged,
    JournalEntry,
    KernelsArrived,
    KernelsGone,
    Refused,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
    Started,
    Steered,
    Validated,
)
from esper_runtime.nissa import Metric, count, effective, in_words


@dataclass(frozen=True)
class SeedLine:
    """A living seed: where it is, what it is, its stage and since when (optimizer steps)."""

    seed: str
    slot: str
    name: str
    stage: SeedStage
    since: int
    parameters: int


@dataclass
class RunView:
    """The run as shown. ``seeds`` are the living ones by id."""

    entries: list[JournalEntry] = field(default_factory=list)
    started: Started | None = None
    validated: Validated | None = None
    seeds: dict[str, SeedLine] = field(default_factory=dict)
    step: int = 0
    loss: float | None = None

    @property
    def total_steps(self) -> int:
        """Length of the run in optimizer steps; 0 while it is not known."""
        return self.started.total_steps if self.started else 0

    @property
    def parameters(self) -> int:
        """Parameters of the host and the seeds that are part of the model now."""
        if self.started is None:
            return 0
        return self.started.parameters + sum(
            seed.parameters for seed in self.seeds.values() if seed.stage not in _BEHIND
        )

    @property
    def metric(self) -> Metric:
        """The task's metric."""
        if self.started is None:
            return Metric("metric", True)
        return Metric(self.started.metric_name, self.started.higher_is_better)

    def note(self, entry: JournalEntry) -> str | None:
        """Take in a new journal entry; returns the line that tells it, None where it is no news."""
        self.entries.append(entry)
        if isinstance(entry.event, Resumed | RolledBack):
            self._replay(effective(self.entries))
        else:
            self._apply(entry)
        self.step = entry.step
        return describe(entry)

    def note_earlier(self, entries: Iterable[JournalEntry]) -> None:
        """Take in what was written before this process."""
        self.entries = list(entries)
        self._replay(effective(self.entries))

    def _replay(self, entries: list[JournalEntry]) -> None:
        self.seeds, self.validated, self.loss = {}, None, None
        for entry in entries:
            self._apply(entry)
            self.step = entry.step

    def _apply(self, entry: JournalEntry) -> None:
        event = entry.event
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Validated):
            self.validated = event
        elif isinstance(event, SeedChanged) and event.after in GONE:
            self.seeds.pop(event.seed, None)
        elif isinstance(event, SeedChanged):
            self.seeds[event.seed] = SeedLine(
                event.seed, event.slot, event.name, event.after, entry.step, event.parameters
            )


_BEHIND = frozenset({SeedStage.GERMINATED, SeedStage.LOADING, SeedStage.TRAINING})


def describe(entry: JournalEntry) -> str | None:
    """A journal entry in one line, None where it is no news for a person."""
    event = entry.event
    if isinstance(event, SeedChanged):
        return _seed_line(event)
    if isinstance(event, KernelsArrived):
        words = (
            [f"{count(len(event.kernels))} kernels may be planted, {event.reason}"] if event.kernels else []
        )
        refused = [f"{kernel} may not be planted: {why}" for kernel, why in event.refused.items()]
        remade = [f"{kernel} was made anew: {why}" for kernel, why in event.remade.items()]
        return "; ".join(words + refused + remade) or None
    if isinstance(event, KernelsGone):
        return "; ".join(
            f"{kernel} may not be planted any more: {why}" for kernel, why in event.kernels.items()
        )
    if isinstance(event, RolledBack):
        return f"{event.fault}; back to step {event.to_step} ({event.blame} to blame)"
    if isinstance(event, Refused):
        target = event.directive.seed or event.directive.slot
        return f"not done: {event.directive.operation} {target}: {event.reason}"
    if isinstance(event, ControllerChanged):
        return f"the {event.after.lower()} controller decides from here on: {event.reason}"
    if isinstance(event, AnswerRefused):
        return f"the controller service is not obeyed: {event.reason}"
    if isinstance(event, SlotChanged) and event.after is SlotState.LOCKED:
        return f"slot {event.slot} is locked: {event.reason}"
    if isinstance(event, Steered):
        return in_words(event)
    if isinstance(event, Resumed):
        place = f"checkpoint {event.checkpoint}" if event.checkpoint else "the beginning"
        changes = "; ".join(f"{name}: {change}" for name, change in event.differences.items())
        return f"resumed from {place} at step {event.from_step}" + (f" ({changes})" if changes else "")
    return None


_STEP = re.compile(r"^step [\d,]+ of [\d,]+: ")
"""How a controller's explanations begin; the line says the step itself."""


def _seed_line(event: SeedChanged) -> str | None:
    if event.after is SeedStage.LOADING:
        return None
    what = f"seed {event.seed}: {event.name} at {event.slot}"
    reason = _STEP.sub("", event.reason).removeprefix(f"seed {event.seed} '{event.name}' at {event.slot}: ")
    words = {
        SeedStage.GERMINATED: f"planted (+{count(event.parameters)} parameters): {reason}",
        SeedStage.TRAINING: "learns behind the host",
        SeedStage.GRAFTING: "is part of the model and learns with it",
        SeedStage.STABILIZING: "stabilizes",
        SeedStage.EVALUATING: "is judged",
        SeedStage.FINE_TUNING: f"learns further: {reason}",
        SeedStage.FOSSILIZED: f"kept: {reason}",
        SeedStage.CULLED: f"culled: {reason}",
        SeedStage.CANCELLED: f"cancelled: {reason}",
        SeedStage.EXCISED: f"excised: {reason}",
        SeedStage.ROLLED_BACK: f"rolled back: {reason}",
    }
    return f"{what} {words[event.after]}"
