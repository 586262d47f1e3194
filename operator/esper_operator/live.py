"""What a run itself says while it trains: its progress and its journal, folded into what the status shows."""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from esper_runtime.contracts import (
    Absorbed,
    Checkpointed,
    Finished,
    JournalEntry,
    Progress,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    Started,
)
from esper_runtime.contracts.resources import (
    ADAPTATIONS_SHOWN,
    Adaptation,
    RunCheckpoint,
    RunParameters,
    RunProgress,
    RunResult,
    RunStatus,
)

EVENTS_KEPT = 50
"""Structural events of a run that wait to be posted, at most; the oldest go first."""

_TOLD = {
    SeedStage.GRAFTING: "Grafted",
    SeedStage.CULLED: "Culled",
    SeedStage.FOSSILIZED: "Fossilized",
    SeedStage.EXCISED: "Excised",
}
_ORDER = tuple(SeedStage)


@dataclass(frozen=True)
class Notice:
    """An event of a run's resource. The same ``identity`` is posted once."""

    identity: str
    reason: str
    message: str
    warning: bool = False


@dataclass
class Live:
    """The last word of a run about itself; what was not heard is None.

    Attributes:
        progress: how far it is.
        parameters: of the model.
        seeds: how many in which stage.
        adaptations: the last ones, oldest first.
        checkpoint: the last complete one.
        result: how it ended.
        restarts: starts beyond the first one.
        wall_seconds: of training.
        device_seconds: of CPU.
        generation: structural changes so far.
        heard: whether the run has said anything since this operator began.
        notices: events that were not posted yet.
        after: what to do once the status that says all this is written.
    """

    progress: RunProgress | None = None
    parameters: RunParameters | None = None
    seeds: dict[str, int] = field(default_factory=dict)
    adaptations: deque[Adaptation] = field(default_factory=lambda: deque(maxlen=ADAPTATIONS_SHOWN))
    checkpoint: RunCheckpoint | None = None
    result: RunResult | None = None
    restarts: int | None = None
    wall_seconds: float | None = None
    device_seconds: float | None = None
    generation: int = 0
    heard: bool = False
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    after: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    @classmethod
    def from_status(cls, status: RunStatus) -> Self:
        """What the status of a run says of it, to go on from."""
        live = cls(
            progress=status.progress,
            parameters=status.parameters,
            seeds=dict(status.seeds),
            checkpoint=status.checkpoint,
            result=status.result,
            restarts=status.usage.restarts,
            wall_seconds=status.usage.wall_seconds,
            device_seconds=status.usage.device_seconds,
        )
        live.adaptations.extend(status.adaptations)
        if status.checkpoint is not None:
            live.generation = status.checkpoint.architecture_generation
        return live

    def hear(self, progress: Progress, time: str) -> None:
        """Take in a word about progress.

        Args:
            progress: the last one.
            time: when it was said, RFC 3339.
        """
        self.heard = True
        eta = None if progress.eta_seconds is None else round(progress.eta_seconds)
        self.progress = RunProgress(
            step=progress.step,
            total_steps=progress.total_steps,
            summary=f"{progress.step}/{progress.total_steps}",
            metric_name=_short(progress.metric_name),
            metric=progress.metric,
            metric_text="" if progress.metric is None else f"{progress.metric:.4g}",
            validation_loss=progress.validation_loss,
            train_loss=progress.train_loss,
            eta_seconds=eta,
            eta="" if eta is None else duration(eta),
            time=time[:40],
        )
        self._count_parameters(progress.parameters_start, progress.parameters)
        self.seeds = {stage[:128]: count for stage, count in list(progress.seeds.items())[:16]}

    def fold(self, entry: JournalEntry) -> None:
        """Take in the next entry of the journal; the same one may come again."""
        self.heard = True
        match entry.event:
            case Started(parameters=parameters):
                self.restarts = self.restarts or 0
                self._count_parameters(parameters, parameters)
            case Resumed(incarnation=incarnation, from_step=step):
                self.restarts = incarnation
                self._undo(step)
            case SeedChanged() as change:
                self._adapt(entry, change)
            case Absorbed(refused=None) as absorbed:
                self._add(entry, absorbed.seed, absorbed.slot, absorbed.name, None, "absorbed by the host")
            case RolledBack() as back:
                self._undo(back.to_step)
                reason = f"rolled back to step {back.to_step}: {back.fault}"
                self._add(entry, back.seed, back.slot, back.blueprint, SeedStage.ROLLED_BACK, reason)
                self._tell(entry, "RolledBack", f"step {entry.step}: {reason}", warning=True)
            case Checkpointed() as saved:
                self.checkpoint = RunCheckpoint(
                    uri=saved.checkpoint[:1000],
                    step=entry.step,
                    digest=saved.digest[:128],
                    architecture_generation=self.generation,
                )
                self._tell(entry, "Checkpointed", f"step {entry.step}: {saved.checkpoint}")
            case Finished() as end:
                self.result = RunResult(
                    weights_digest=_short(end.weights_digest),
                    test_metric=end.test_metric,
                    test_loss=end.test_loss,
                    reason=f"{end.outcome}: {end.reason}"[:500],
                )
                self.wall_seconds, self.device_seconds = end.wall_seconds, end.cpu_seconds
                self._count_parameters(end.parameters_start, end.parameters)

    def _adapt(self, entry: JournalEntry, change: SeedChanged) -> None:
        self._add(entry, change.seed, change.slot, change.blueprint, change.after, change.reason)
        if change.after in (SeedStage.GRAFTING, *_ENDS):
            self.generation += 1
        reason = _TOLD.get(change.after)
        if reason is not None:
            text = f"step {entry.step}: {change.name} in {change.slot}: {change.reason}"
            self._tell(entry, reason, text)

    def _add(
        self,
        entry: JournalEntry,
        seed: str | None,
        slot: str | None,
        blueprint: str | None,
        stage: SeedStage | None,
        reason: str,
    ) -> None:
        made = Adaptation(
            step=entry.step,
            seed=_short(seed),
            slot=None if slot is None else slot[:300],
            blueprint=_short(blueprint),
            stage=stage,
            reason=reason[:300],
            time=entry.time[:40],
        )
        if made not in self.adaptations:
            self.adaptations.append(made)

    def _undo(self, step: int) -> None:
        """What came after a step was taken back and will be done again."""
        kept = [made for made in self.adaptations if made.step <= step]
        self.adaptations = deque(kept, maxlen=ADAPTATIONS_SHOWN)

    def _tell(self, entry: JournalEntry, reason: str, message: str, *, warning: bool = False) -> None:
        self.notices.append(Notice(f"{entry.sequence}-{entry.digest[:8]}", reason, message, warning))

    def _count_parameters(self, start: int | None, now: int | None) -> None:
        if now is None:
            return
        if start is None and self.parameters is not None:
            start = self.parameters.start
        known = RunParameters(start=start, now=now)
        summary = f"{short_count(now)}" if start is None else f"{short_count(start)}>{short_count(now)}"
        self.parameters = known.model_copy(update={"summary": summary})


_ENDS = (SeedStage.CULLED, SeedStage.EXCISED, SeedStage.FOSSILIZED)


def seeds_summary(seeds: dict[str, int]) -> str:
    """Seeds by stage in a few characters, in the order of their life: ``1 Training, 2 Fossilized``."""
    order = {stage.value: index for index, stage in enumerate(_ORDER)}
    named = sorted((stage for stage, count in seeds.items() if count), key=lambda name: order.get(name, 99))
    return ", ".join(f"{seeds[stage]} {stage}" for stage in named)[:128]


def short_count(number: int) -> str:
    """A number of parameters in at most five characters: 950, 12.3k, 4.56M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def duration(seconds: int) -> str:
    """Seconds as people write them: 45s, 12m, 3h20m, 2d4h."""
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 120:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60}m" if hours < 48 else f"{hours // 24}d{hours % 24}h"


def _short(text: str | None) -> str | None:
    return None if text is None else text[:128]
