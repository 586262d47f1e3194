"""What a journal says about how a run came to its end: all that doing it again needs, and nothing undone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from esper_runtime.contracts import (
    Decided,
    Finished,
    JournalEntry,
    JournalError,
    Refused,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    Started,
    TwinChanged,
)
from esper_runtime.nissa.journal import effective

BEFORE_START = -1
"""In place of a step: before the boundary at step 0."""


@dataclass(frozen=True)
class Recording:
    """The effective history of a run, up to its end or to a state that was saved.

    Attributes:
        started: the journal's first entry.
        until: step at which it ends.
        finished: the last entry of a complete run; None where the history ends earlier.
        decisions: by step, what was decided, without the directives that were refused.
        lessons: rollbacks that a seed was to blame for, in the order of the steps that they went back to.
        bars: by step, the numbers of the batches that are never used from there on.
        failures: by the boundary that culled them, the seeds that failed in the step before it, with the
            reason.
        loaded: by seed, the step at which its kernel was there, where that was after its germination.
        twins: by step, what changed about compiled twins.
        entries: those that count.
        changed: settings of the manifest that a resumption changed, each with ``before -> now``.
    """

    started: Started
    until: int
    finished: Finished | None
    decisions: Mapping[int, Decided]
    lessons: tuple[RolledBack, ...]
    bars: Mapping[int, tuple[int, ...]]
    failures: Mapping[int, Mapping[str, str]]
    loaded: Mapping[str, int]
    twins: Mapping[int, tuple[TwinChanged, ...]]
    entries: tuple[JournalEntry, ...]
    changed: Mapping[str, str]


def completed(entries: list[JournalEntry]) -> JournalEntry | None:
    """The `Finished` entry of a run that is complete, None for any other."""
    for entry in reversed(effective(entries)):
        if isinstance(entry.event, Finished):
            return entry if entry.event.outcome == "Complete" else None
    return None


def recording_of(entries: list[JournalEntry], until: int, last_sequence: int | None = None) -> Recording:
    """What led to the state at step ``until``.

    Args:
        entries: all entries of the journal, superseded ones included.
        until: step at which the recording ends.
        last_sequence: sequence of the last entry that led there; None takes all of them.

    Raises:
        JournalError: the journal does not say how the run began.
    """
    used = entries if last_sequence is None else entries[: last_sequence + 1]
    started = [entry.event for entry in used if isinstance(entry.event, Started)]
    if not started:
        raise JournalError("the journal has no Started entry: the run stopped before it began")
    kept = effective(used)
    end = completed(used)
    return Recording(
        started=started[-1],
        until=until,
        finished=end.event if end is not None and isinstance(end.event, Finished) else None,
        decisions=_decisions(kept),
        lessons=_lessons(used),
        bars=_bars(used),
        failures=_failures(kept),
        loaded=_loaded(kept),
        twins=_twins(kept),
        entries=tuple(kept),
        changed=_changed(used),
    )


def _decisions(kept: Iterable[JournalEntry]) -> dict[int, Decided]:
    """Refused directives are struck from the latest decision that holds them."""
    found: dict[int, Decided] = {}
    for entry in kept:
        if isinstance(entry.event, Decided):
            found[entry.step] = entry.event
        elif isinstance(entry.event, Refused):
            refused = entry.event.directive
            for step in sorted(found, reverse=True):
                directives = list(found[step].directives)
                if refused in directives:
                    directives.remove(refused)
                    found[step] = found[step].model_copy(update={"directives": tuple(directives)})
                    break
    return found


def _lessons(used: Iterable[JournalEntry]) -> tuple[RolledBack, ...]:
    faults = [e.event for e in used if isinstance(e.event, RolledBack) and e.event.blame == "seed"]
    return tuple(sorted(faults, key=lambda event: event.to_step))


def _bars(used: list[JournalEntry]) -> dict[int, tuple[int, ...]]:
    """A batch is barred from the step that the rollback went back to; where a later rollback or resumption
    went back further without undoing the bar, from there."""
    found: dict[int, tuple[int, ...]] = {}
    for entry in used:
        event = entry.event
        if not isinstance(event, RolledBack) or event.batch is None:
            continue
        step = event.to_step
        for later in used[entry.sequence + 1 :]:
            if isinstance(later.event, RolledBack | Resumed) and later.event.after_sequence < entry.sequence:
                step = min(step, _went_back_to(later.event))
        found[step] = found.get(step, ()) + tuple(range(event.batch, event.batch + event.batches))
    return found


def _went_back_to(event: RolledBack | Resumed) -> int:
    if isinstance(event, RolledBack):
        return event.to_step
    return BEFORE_START if event.checkpoint is None else event.from_step


def _failures(kept: Iterable[JournalEntry]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for entry in kept:
        event = entry.event
        if isinstance(event, SeedChanged) and event.after is SeedStage.CULLED and event.failure is not None:
            found.setdefault(entry.step, {})[event.seed] = event.failure
    return found


def _loaded(kept: Iterable[JournalEntry]) -> dict[str, int]:
    born: dict[str, int] = {}
    loaded: dict[str, int] = {}
    for entry in kept:
        event = entry.event
        if isinstance(event, SeedChanged) and event.before is None:
            born[event.seed] = entry.step
        elif isinstance(event, SeedChanged) and event.before is SeedStage.LOADING:
            loaded[event.seed] = entry.step
    return {seed: step for seed, step in loaded.items() if step > born.get(seed, step)}


def _twins(kept: Iterable[JournalEntry]) -> dict[int, tuple[TwinChanged, ...]]:
    found: dict[int, tuple[TwinChanged, ...]] = {}
    for entry in kept:
        if isinstance(entry.event, TwinChanged):
            found[entry.step] = (*found.get(entry.step, ()), entry.event)
    return found


def _changed(used: list[JournalEntry]) -> dict[str, str]:
    """What resumptions changed in the manifest, where steps that followed still count."""
    found: dict[str, str] = {}
    for entry in used:
        event = entry.event
        if isinstance(event, Resumed) and not _undone(entry, event, used):
            found |= {path: text for path, text in event.differences.items() if path.startswith("spec.")}
    return found


def _undone(entry: JournalEntry, event: Resumed, used: list[JournalEntry]) -> bool:
    """True where a later resumption began at or before the step that this one went on from."""
    return any(
        isinstance(later.event, Resumed) and later.event.from_step <= event.from_step
        for later in used[entry.sequence + 1 :]
    )
