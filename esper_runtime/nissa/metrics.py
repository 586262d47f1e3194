"""What trainings and workers tell Prometheus of themselves: few series, read when somebody asks.

Nothing is counted twice: a collector reads what its process knows anyway, so that a training step does no
work for a metric, and a scrape of some thirty lines holds the interpreter for a moment only.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from esper_runtime.contracts import (
    Absorbed,
    Checkpointed,
    JournalEntry,
    RolledBack,
    SeedChanged,
    SeedStage,
)
from esper_runtime.nissa.tally import Tally

CHANGES = (SeedStage.GRAFTING, SeedStage.FOSSILIZED, SeedStage.CULLED, SeedStage.EXCISED)
"""Stages whose beginning is counted as a change of the structure."""


class Exposition:
    """The exposition text of some collectors, in a registry of their own."""

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(collector)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self._registry)


class TrainingMetrics(Collector):
    """An observer of a training that Prometheus may ask.

    Args:
        earlier: the journal's entries from before this process.
        bus: says whether the bus is connected and how many samples were dropped; None without a bus.
    """

    def __init__(
        self,
        earlier: Sequence[JournalEntry] = (),
        bus: Callable[[], tuple[bool, int]] | None = None,
    ) -> None:
        self._tally, self._bus = Tally(earlier), bus
        self._step, self._loss = self._tally.step, float("nan")
        self._changes: Counter[SeedStage] = Counter()
        self._rollbacks = self._absorbed = 0
        self._checkpoint: float | None = None
        for entry in self._tally.entries:
            self._count(entry)

    def on_step(self, step: int, loss: float) -> None:
        """An optimizer step is done."""
        self._step, self._loss = step, loss

    def on_event(self, entry: JournalEntry) -> None:
        """An entry was added to the journal."""
        self._tally.add(entry)
        self._step = entry.step
        self._count(entry)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing is told before the run begins."""

    def _count(self, entry: JournalEntry) -> None:
        match entry.event:
            case SeedChanged(after=after) if after in CHANGES:
                self._changes[after] += 1
            case RolledBack():
                self._rollbacks += 1
            case Absorbed(refused=None):
                self._absorbed += 1
            case Checkpointed():
                self._checkpoint = datetime.fromisoformat(entry.time).timestamp()

    def collect(self) -> Iterable[Metric]:
        """How the training stands now; what is not known yet is left out."""
        started, validated, seeds = self._tally.started, self._tally.validated, self._tally.seeds
        yield _gauge("step", "Optimizer steps done.", self._step)
        if started is not None:
            yield _gauge("steps_planned", "Optimizer steps in all.", started.total_steps)
            yield _gauge("host_parameters", "Parameters of the host.", started.parameters)
            now = validated.parameters if validated else started.parameters
            yield _gauge("parameters", "Parameters of the model, with the seeds that contribute.", now)
        yield _gauge("train_loss", "Mean training loss of the last batch.", self._loss)
        if validated is not None:
            yield _gauge("validation_loss", "Loss of the last validation.", validated.loss)
            yield _gauge("validation_metric", "Metric of the last validation.", validated.metric)
        family = GaugeMetricFamily("esper_training_seeds", "Seeds in a stage.", labels=["stage"])
        for stage in SeedStage:
            family.add_metric([stage.value], seeds.get(stage, 0))
        yield family
        changes = CounterMetricFamily(
            "esper_training_structural_changes", "Changes of the structure.", labels=["change"]
        )
        for stage in CHANGES:
            changes.add_metric([stage.value], self._changes[stage])
        changes.add_metric(["Absorbed"], self._absorbed)
        yield changes
        yield CounterMetricFamily("esper_training_rollbacks", "Rollbacks after faults.", self._rollbacks)
        if self._checkpoint is not None:
            text = "Unix time of the last complete checkpoint."
            yield _gauge("last_checkpoint_timestamp_seconds", text, self._checkpoint)
        if self._bus is not None:
            connected, dropped = self._bus()
            yield _gauge("bus_connected", "1 while the bus is connected, else 0.", float(connected))
            text = "Telemetry samples dropped while the bus was away."
            yield CounterMetricFamily("esper_training_telemetry_dropped", text, dropped)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"esper_training_{name}", text, value)


class WorkerMetrics(Collector):
    """Items that a worker of the forge has taken, by what became of them.

    Args:
        role: tezzeret or urabrask.
        outcomes: how many, by outcome.
    """

    def __init__(self, role: str, outcomes: Callable[[], Mapping[str, int]]) -> None:
        self._role, self._outcomes = role, outcomes

    def collect(self) -> Iterable[Metric]:
        """What it has done so far."""
        family = CounterMetricFamily(
            "esper_worker_items", "Items of work, by what became of them.", labels=["role", "outcome"]
        )
        for outcome, number in self._outcomes().items():
            family.add_metric([self._role, outcome], number)
        yield family
