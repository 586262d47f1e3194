"""Small real runs for the tests of the trainer: a manifest, a scripted controller, a recording observer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper_runtime.contracts import (
    Decision,
    Directive,
    GraftingPlan,
    JournalEntry,
    MorphogeneticRun,
    Operation,
    PlanKind,
    SeedStage,
    Source,
    SystemState,
    parse_run,
)
from esper_runtime.tamiyo import Lesson
from esper_runtime.tolaria import Task, Trainer, load_task

IMMEDIATE = GraftingPlan(grafting_steps=10, warmup_steps=4)
ISOLATED = GraftingPlan(kind=PlanKind.ISOLATED, training_steps=12, ramp_steps=6, grafting_steps=10)


def manifest(
    steps: int = 120, name: str = "small", host: dict | None = None, **spec: Any
) -> MorphogeneticRun:
    """A run on the digits with a small host; keyword arguments replace parts of the spec."""
    training = {
        "steps": steps,
        "batchSize": 32,
        "optimizer": {"learningRate": 0.01},
        "clipNorm": 5.0,
        "validation": {"everySteps": 20},
        **spec.pop("training", {}),
    }
    data = {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": name},
        "spec": {
            "host": host or {"entrypoint": "tests.tolaria.runs:noisy"},
            "task": {"builtin": "digits"},
            "training": training,
            "growth": {"controller": {"everySteps": 5}, "budget": {"parameters": "4x"}},
            "checkpoint": {"everySteps": 25, "keep": 3},
            **spec,
        },
    }
    return parse_run(data, "the test's manifest")


class Script:
    """Plants by a script of (step, plan) and keeps or culls what can be judged, always in the same way."""

    name = "Script"

    def __init__(self, *plants: tuple[int, GraftingPlan], cull: tuple[str, ...] = ()) -> None:
        self.plants = plants
        self.cull = cull
        self.done = 0
        self.lessons: list[Lesson] = []

    def decide(self, state: SystemState) -> Decision:
        """Command the next stage of each seed, and plant what is due."""
        directives = [d for seed in state.seeds if (d := self._command(seed, state.step)) is not None]
        if self.done < len(self.plants) and state.step >= self.plants[self.done][0]:
            slots = [slot for slot in state.slots if slot.state == "Dormant"]
            slot = slots[self.done % len(slots)]
            fitting = [c for c in state.candidates if c.slot == slot.slot and c.macs_per_example > 0]
            candidate = fitting[self.done % len(fitting)]
            directives.append(
                Directive(
                    operation=Operation.GERMINATE,
                    slot=slot.slot,
                    blueprint=candidate.blueprint,
                    plan=self.plants[self.done][1],
                    explanation="the script says so",
                )
            )
            self.done += 1
        return Decision(directives=tuple(directives), explanation="the script says so")

    def _command(self, seed: Any, step: int) -> Directive | None:
        operation = None
        if seed.stage is SeedStage.TRAINING and seed.ready and seed.isolated_gain is not None:
            operation = Operation.GRAFT
        elif seed.stage is SeedStage.GRAFTING and seed.ready and seed.alpha == 1.0:
            operation = Operation.EVALUATE
        elif seed.stage is SeedStage.EVALUATING and seed.contribution is not None:
            operation = Operation.CULL if seed.seed in self.cull else Operation.FOSSILIZE
        if operation is None:
            return None
        return Directive(operation=operation, seed=seed.seed, explanation=f"the script says so at {step}")

    def state(self) -> dict[str, Any]:
        """Where the script stands."""
        return {"done": self.done, "lessons": [lesson.model_dump(mode="json") for lesson in self.lessons]}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from there."""
        self.done = data["done"]
        self.lessons = [Lesson.model_validate(lesson) for lesson in data["lessons"]]

    def lesson(self, lesson: Lesson) -> None:
        """Take note, once."""
        if lesson not in self.lessons:
            self.lessons.append(lesson)


class Recorder:
    """Keeps every loss by step, and every journal entry; may stop the trainer at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.entries: list[JournalEntry] = []
        self.stop_at = stop_at
        self.trainer: Trainer | None = None

    def on_step(self, step: int, loss: float) -> None:
        """Keep the loss."""
        self.losses[step] = loss
        if step == self.stop_at and self.trainer is not None:
            self.trainer.request_stop(f"the test stops it at step {step}")

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing to keep."""

    def on_event(self, entry: JournalEntry) -> None:
        """Keep the entry."""
        self.entries.append(entry)

    def of(self, kind: type) -> list[Any]:
        """Events of one kind."""
        return [entry.event for entry in self.entries if isinstance(entry.event, kind)]


def noisy() -> nn.Module:
    """A host whose steps draw random numbers and change buffers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(12, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


def train(
    run: MorphogeneticRun,
    folder: Path,
    controller: Script | None = None,
    task: Task | None = None,
    stop_at: int | None = None,
) -> tuple[Recorder, Trainer, Any]:
    """Run a trainer; returns what it recorded, itself, and its result."""
    recorder = Recorder(stop_at)
    trainer = Trainer(run, folder, recorder, task=task, controller=controller)
    recorder.trainer = trainer
    result = trainer.run()
    return recorder, trainer, result


def digits() -> Task:
    """The digits task as a run loads it."""
    return load_task(Source(builtin="digits"), random_seed=0)


class Poisoned:
    """A task whose examples are numbered, so that a test can have chosen batches go wrong.

    ``poison(losses, batch)`` may change the losses [B] of a batch; ``batch["number"]`` names its examples.
    """

    def __init__(self, task: Task, poison: Any) -> None:
        self._task = task
        self.name, self.metric_name = task.name, task.metric_name
        self.higher_is_better, self.shape = task.higher_is_better, task.shape
        self.train, self.validation, self.test = (
            {**split, "number": torch.arange(len(next(iter(split.values()))))}
            for split in (task.train, task.validation, task.test)
        )
        self._poison = poison

    def inputs(self, batch: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of the task."""
        return self._task.inputs(batch)

    def losses(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """The losses of the task, poisoned while gradients are recorded."""
        losses = self._task.losses(output, batch)
        return self._poison(losses, batch) if torch.is_grad_enabled() else losses

    def scores(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """The scores of the task."""
        return self._task.scores(output, batch)
