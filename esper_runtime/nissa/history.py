"""A run's journal put in order: what counts, each seed's life, and what happened to the run itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from esper_runtime.contracts import (
    GONE,
    Absorbed,
    AnswerRefused,
    Checkpointed,
    Compared,
    ContractModel,
    ControllerChanged,
    Decided,
    Finished,
    Interrupted,
    JournalEntry,
    JournalError,
    Measured,
    Refused,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    Started,
    Steered,
    Validated,
)
from esper_runtime.nissa.journal import effective
from esper_runtime.nissa.words import Metric

E = TypeVar("E", bound=ContractModel)


@dataclass(frozen=True)
class Stay:
    """One stage of a seed's life, in optimizer steps; ``end`` is where it left, or where the run stands."""

    stage: SeedStage
    start: int
    end: int


@dataclass(frozen=True)
class SeedLife:
    """A seed from germination to its end.

    ``undone`` is True when the run was restored to a time before the seed's germination, so that nothing
    of this life is part of the run. ``contribution`` is the last one measured.
    """

    seed: str
    slot: str
    blueprint: str
    name: str
    parameters: int
    born: int
    stays: tuple[Stay, ...]
    stage: SeedStage
    reason: str
    why_planted: str
    contribution: Measured | None = None
    isolated_gain: Measured | None = None
    undone: bool = False

    @property
    def kept(self) -> bool:
        """True when the seed became part of the model and still is."""
        return self.stage is SeedStage.FOSSILIZED

    @property
    def gone(self) -> bool:
        """True when nothing of the seed is in the model."""
        return self.stage in GONE

    @property
    def end(self) -> int:
        """Step at which it went, or where the run stands."""
        return self.stays[-1].end if self.stays else self.born

    def entered(self, stage: SeedStage) -> int | None:
        """Step at which it first entered ``stage``."""
        return next((stay.start for stay in self.stays if stay.stage is stage), None)


@dataclass(frozen=True)
class History:
    """What a journal tells, in order of time. Pairs are (step, event)."""

    started: Started
    entries: Sequence[JournalEntry]
    lives: tuple[SeedLife, ...]
    validations: tuple[tuple[int, Validated], ...]
    decisions: tuple[tuple[int, Decided], ...]
    refusals: tuple[tuple[int, Refused], ...]
    handovers: tuple[tuple[int, ControllerChanged], ...]
    answers_refused: tuple[tuple[int, AnswerRefused], ...]
    changes: tuple[tuple[int, SeedChanged], ...]
    slot_changes: tuple[tuple[int, SlotChanged], ...]
    rollbacks: tuple[tuple[int, RolledBack], ...]
    resumes: tuple[tuple[int, Resumed], ...]
    interruptions: tuple[tuple[int, Interrupted], ...]
    steered: tuple[tuple[int, Steered], ...]
    absorptions: tuple[tuple[int, Absorbed], ...]
    checkpoints: tuple[tuple[int, Checkpointed], ...]
    comparisons: tuple[Compared, ...]
    finished: Finished | None
    step: int
    metric: Metric = field(init=False)

    def __post_init__(self) -> None:
        metric = Metric(self.started.metric_name, self.started.higher_is_better)
        object.__setattr__(self, "metric", metric)

    def setting(self, *path: str) -> Any:
        """A value of the manifest by its path below ``spec``, or None where it is not given."""
        value: Any = self.started.manifest.get("spec")
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def names(self) -> dict[str, str]:
        """Names of the blueprints that were planted, by id."""
        return {life.blueprint: life.name for life in self.lives}

    @property
    def absorbed(self) -> dict[str, Absorbed]:
        """Seeds that are part of two host layers, by id."""
        return {event.seed: event for _, event in self.absorptions if event.refused is None}

    @property
    def growth_off(self) -> bool:
        """True when the manifest forbids growth."""
        return bool(self.setting("growth", "controller", "kind") == "Off")

    @property
    def confidence(self) -> float:
        """Confidence of the intervals of contributions, from the manifest."""
        given = self.setting("growth", "gates", "confidence")
        return float(given) if isinstance(given, int | float) and 0.5 < given < 1 else 0.95

    @property
    def seconds(self) -> float:
        """Wall time of all incarnations together, from the journal's clock unless the run has finished."""
        if self.finished is not None:
            return self.finished.wall_seconds
        times: dict[int, list[float]] = {}
        for entry in self.entries:
            times.setdefault(entry.incarnation, []).append(_timestamp(entry.time))
        return sum(max(stamps) - min(stamps) for stamps in times.values())


def read_history(entries: Sequence[JournalEntry]) -> History:
    """Put a journal in order; raise `JournalError` when it does not begin with the start of a run.

    Before the start there may be resumptions: of processes that were killed while they wrote it.
    """
    started = next((entry.event for entry in entries if not isinstance(entry.event, Resumed)), None)
    if not isinstance(started, Started):
        given = entries[0].event.kind if entries else "nothing"
        raise JournalError(f"a journal begins with an entry of kind 'Started'; this one begins with {given}")
    counted = effective(list(entries))
    step = max(entry.step for entry in counted)
    finished = _pairs(counted, Finished)
    return History(
        started=started,
        entries=entries,
        lives=_lives(entries, counted, step),
        validations=_pairs(counted, Validated),
        decisions=_pairs(counted, Decided),
        refusals=_pairs(counted, Refused),
        handovers=_pairs(entries, ControllerChanged),
        answers_refused=_pairs(entries, AnswerRefused),
        changes=_pairs(counted, SeedChanged),
        slot_changes=_pairs(counted, SlotChanged),
        rollbacks=_pairs(entries, RolledBack),
        resumes=_pairs(entries, Resumed),
        interruptions=_pairs(entries, Interrupted),
        steered=_pairs(entries, Steered),
        absorptions=_pairs(counted, Absorbed),
        checkpoints=_pairs(counted, Checkpointed),
        comparisons=_comparisons(entries),
        finished=finished[-1][1] if finished else None,
        step=step,
    )


def _pairs(entries: Iterable[JournalEntry], kind: type[E]) -> tuple[tuple[int, E], ...]:
    return tuple((entry.step, entry.event) for entry in entries if isinstance(entry.event, kind))


def _comparisons(entries: Iterable[JournalEntry]) -> tuple[Compared, ...]:
    """The last result of each arm: an arm may be run again after an interruption."""
    return tuple({event.arm: event for _, event in _pairs(entries, Compared)}.values())


def _lives(entries: Sequence[JournalEntry], counted: list[JournalEntry], step: int) -> tuple[SeedLife, ...]:
    lives = _follow(counted, step)
    undone = list(_undone(entries, counted))
    for entry in counted:
        change = entry.event
        if isinstance(change, SeedChanged) and change.seed not in lives:
            undone = [replace(u, reason=change.reason) if u.seed == change.seed else u for u in undone]
    return tuple(sorted([*lives.values(), *undone], key=lambda life: (life.born, life.end)))


def _follow(entries: Iterable[JournalEntry], step: int) -> dict[str, SeedLife]:
    """Lives of the seeds that germinate within ``entries``; those still there last until ``step``."""
    lives: dict[str, SeedLife] = {}
    for entry in entries:
        change = entry.event
        if not isinstance(change, SeedChanged):
            continue
        life = lives.get(change.seed)
        if life is None:
            if change.before is not None:
                continue
            life = SeedLife(
                seed=change.seed,
                slot=change.slot,
                blueprint=change.blueprint,
                name=change.name,
                parameters=change.parameters,
                born=entry.step,
                stays=(),
                stage=change.after,
                reason=change.reason,
                why_planted=change.reason,
            )
        stays = life.stays
        if stays:
            stays = (*stays[:-1], replace(stays[-1], end=entry.step))
        if change.after not in GONE:
            stays = (*stays, Stay(change.after, entry.step, max(step, entry.step)))
        lives[change.seed] = replace(
            life,
            stays=stays,
            stage=change.after,
            reason=change.reason,
            parameters=change.parameters,
            contribution=change.contribution or life.contribution,
            isolated_gain=change.isolated_gain or life.isolated_gain,
        )
    return lives


def _undone(entries: Sequence[JournalEntry], counted: list[JournalEntry]) -> Iterable[SeedLife]:
    """Lives that a rollback erased. What a resume supersedes is lived again, so it is left out."""
    known = {entry.sequence for entry in counted}
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        event = entry.event
        if not isinstance(event, RolledBack | Resumed):
            continue
        erased = [
            e
            for e in entries[:index]
            if e.sequence > event.after_sequence and e.sequence not in known and e.sequence not in seen
        ]
        seen.update(e.sequence for e in erased)
        if isinstance(event, Resumed) or not erased:
            continue
        for life in _follow(erased, max(entry.step, *(e.step for e in erased))).values():
            blamed = event.seed == life.seed
            reason = event.fault if blamed else f"undone by the restore to step {event.to_step:,}"
            yield replace(life, stage=SeedStage.ROLLED_BACK, reason=reason, undone=True)


def _timestamp(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()
