"""Replay: a run is trained anew from its journal, which is obeyed where a controller would be asked.

Decisions, locks, barred batches and failed kernels come at the steps at which they are recorded. Nothing is
tried, and a fault that the journal does not know of ends the replay: it would be another history.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper_runtime.artifact import KeyRing, esper_home
from esper_runtime.contracts import (
    Blueprint,
    Checkpointing,
    Decision,
    InputError,
    KernelsArrived,
    MorphogeneticRun,
    Output,
    RunBudget,
    RunFailedError,
    SeedChanged,
    SystemState,
    UsableKernel,
    parse_run,
)
from esper_runtime.kasmina import KernelCache, Stock
from esper_runtime.nissa import BEFORE_START, Recording
from esper_runtime.tamiyo import Lesson
from esper_runtime.tolaria.checkpoint import CheckpointStore
from esper_runtime.tolaria.governor import Fault
from esper_runtime.tolaria.journal import JournalWriter
from esper_runtime.tolaria.loop import Loop
from esper_runtime.tolaria.opening import Opening
from esper_runtime.tolaria.parts import Parts
from esper_runtime.tolaria.result import Observer
from esper_runtime.tolaria.steering import Steering
from esper_runtime.tolaria.supply import Supply
from esper_runtime.tolaria.tasks import Batch, Task
from esper_runtime.tolaria.trainer import Trainer
from esper_runtime.tolaria.twins import Twins, TwinSource
from esper_runtime.urza import Shelf

NEVER = 100_000_000


class ReplayController:
    """Gives the recorded decisions at their steps; depends on nothing that it is shown.

    Args:
        recording: of the run.
    """

    def __init__(self, recording: Recording) -> None:
        self._decisions = recording.decisions
        self._said = ""
        names = [decided.controller for decided in recording.decisions.values()]
        self.name = names[0] if names else "Replay"
        """The recorded controller's."""

    def decide(self, state: SystemState) -> Decision:
        """What was decided at this step, never with a probe."""
        decided = self._decisions.get(state.step)
        if decided is None:
            return Decision(explanation=self._said)
        self._said = decided.explanation
        return Decision(directives=decided.directives, explanation=decided.explanation)

    def state(self) -> dict[str, Any]:
        """Nothing: the journal holds it."""
        return {}

    def restore(self, data: dict[str, Any]) -> None:
        """Nothing to go on from."""

    def lesson(self, lesson: Lesson) -> None:
        """The recorded controller has learned it already."""


class ReplayLoop(Loop):
    """A loop to which the recorded incidents happen at their steps, and no others.

    Args:
        recording: of the run.
        parts: model, data, optimizer and the rest.
        journal: of the replay.
        store: takes the replay's checkpoints.
        observer: is told of steps and events.
        supply: the recorded kernels.
    """

    def __init__(
        self,
        recording: Recording,
        parts: Parts,
        journal: JournalWriter,
        store: CheckpointStore,
        observer: Observer,
        supply: Supply,
    ) -> None:
        steered = sorted(recording.entries, key=lambda entry: entry.step)
        self._recording = recording
        super().__init__(parts, journal, store, observer, Steering(None, steered), supply)
        parts.model.loaded_at = recording.loaded
        self._lessons = list(recording.lessons)
        self._bar(BEFORE_START)

    def _new_twins(self) -> Twins | None:
        """The recorded ones, of the kernels on this machine's shelf; None where none ran."""
        if not self._recording.twins:
            return None
        home = esper_home()
        cache = KernelCache(Shelf(home), KeyRing(home).trust)
        source = TwinSource(cache, lambda spec: None, batch=1)
        return Twins(self.parts.model, source, self.record, self._recording.twins)

    def between_steps(self) -> Fault | None:
        """As in a run; seeds that the journal knows to have failed in the last step fail in it."""
        for seed, why in self._recording.failures.get(self.step, {}).items():
            if seed in self.parts.model.living:
                self.parts.model.seed(seed).failure = why
        return super().between_steps()

    def learn_what_is_due(self) -> None:
        """Also bar batches, prepare recorded failures of the next step, and stop where the recording ends."""
        super().learn_what_is_due()
        self._bar(self.step)
        for seed in self._recording.failures.get(self.step + 1, {}):
            if seed in self.parts.model.living:
                self.parts.model.seed(seed).body.register_forward_hook(_spoil)
        if self._recording.finished is None and self.step >= self._recording.until:
            self.stop = f"the recording ends at step {self._recording.until}"

    def _bar(self, step: int) -> None:
        self.parts.feed.barred.update(self._recording.bars.get(step, ()))

    def _roll_back(self, fault: Fault, batch: Batch) -> None:
        raise RunFailedError(f"step {self.step}: {fault.what}; the recorded run had no such fault there")


def _spoil(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """What makes a seed fail after its body ran and drew the random numbers that it draws."""
    return torch.full_like(output, torch.nan) if isinstance(output, Tensor) else output


class ReplayTrainer(Trainer):
    """Trains a recorded run again, in a folder of its own.

    Args:
        recording: of the run.
        folder: an empty or missing folder for the replay.
        observer: is told of steps and events.
        host: a model instead of the manifest's, where the run was given one.
        task: a task instead of the manifest's, where the run was given one.
        directory: the manifest's folder, for entrypoints and relative paths.

    Raises:
        InputError: what was recorded cannot be done again; the text says why.
    """

    def __init__(
        self,
        recording: Recording,
        folder: Path,
        observer: Observer | None = None,
        host: nn.Module | None = None,
        task: Task | None = None,
        directory: Path | None = None,
    ) -> None:
        run = replayed_manifest(recording)
        super().__init__(run, folder, observer, host, task, ReplayController(recording), directory)
        self._recording = recording

    @contextmanager
    def _stocked(self, parts: Parts, opening: Opening) -> Iterator[Supply]:
        """The kernels that the journal names, built from the graphs that it holds: those that were planted
        had been validated then. Runs from before there were kernels have none."""
        kernels = recorded_kernels(self._recording, parts.model.blueprints)
        if kernels is not None:
            parts.model.stock = Stock()
        entries = sorted(self._recording.entries, key=lambda entry: entry.step)
        yield Supply(kernels, entries if kernels is not None else ())

    def _new_loop(self, parts: Parts, journal: JournalWriter, opening: Opening, supply: Supply) -> Loop:
        if parts.total_steps != self._recording.started.total_steps:
            raise InputError(
                f"the recorded run had {self._recording.started.total_steps} steps, the manifest and the "
                f"data here give {parts.total_steps}: the task's data has changed"
            )
        return ReplayLoop(self._recording, parts, journal, opening.store, self._observer, supply)


def recorded_kernels(
    recording: Recording, blueprints: Mapping[str, Blueprint]
) -> dict[str, UsableKernel] | None:
    """The kernels of a recorded run whose graphs are known, by id; None where it had no kernels at all.

    Args:
        recording: of the run.
        blueprints: graphs by blueprint id, beside those of the seeds that were planted.
    """
    arrived = [e.event for e in recording.entries if isinstance(e.event, KernelsArrived)]
    if not arrived:
        return None
    graphs = dict(blueprints)
    for entry in recording.entries:
        if isinstance(entry.event, SeedChanged) and entry.event.graph is not None:
            graphs[entry.event.blueprint] = entry.event.graph
    return {
        kernel.kernel: UsableKernel(**dict(kernel), graph=graphs[kernel.blueprint])
        for event in arrived
        for kernel in event.kernels
        if kernel.blueprint in graphs
    }


def replayed_manifest(recording: Recording) -> MorphogeneticRun:
    """The recorded manifest without what changes nothing about the training: places, formats, limits of time.

    Raises:
        InputError: the run was trained by several processes, its manifest was changed on the way, or this
            version of Esper refuses it.
    """
    run = parse_run(recording.started.manifest, "the manifest in the journal")
    spec, workers = run.spec, run.spec.training.workers
    ranks = workers.count * workers.processes_per_worker
    if ranks > 1:
        raise InputError(
            f"the run was trained by {ranks} processes that share each batch, which one process cannot "
            f"repeat bit for bit; only runs of one process can be replayed"
        )
    changed = {path: text for path, text in recording.changed.items() if not path.startswith(_IDLE)}
    if changed:
        listed = "; ".join(f"{path}: {text}" for path, text in changed.items())
        raise InputError(
            f"the manifest was changed when the run was resumed ({listed}), so that one manifest cannot "
            f"repeat it; runs whose manifest stayed as it was can be replayed"
        )
    quiet = spec.model_copy(
        update={
            "checkpoint": Checkpointing(every_steps=NEVER, keep=1),
            "output": Output(),
            "budget": RunBudget(),
        }
    )
    return run.model_copy(update={"spec": quiet})


_IDLE = ("spec.checkpoint.", "spec.output.", "spec.budget.", "spec.growth.controller.patienceSeconds")
