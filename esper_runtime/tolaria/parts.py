"""The parts that a run is made of, put together from its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import (
    Blueprint,
    BlueprintSelector,
    ControllerKind,
    InputError,
    MorphogeneticRun,
    Precision,
)
from esper_runtime.kasmina import Growable, Limits, Survey, Trial, survey
from esper_runtime.tamiyo import Controller, make_controller
from esper_runtime.tolaria.batches import BatchOrder, to_device
from esper_runtime.tolaria.boundary import BoundarySettings, limits_of
from esper_runtime.tolaria.evaluate import autocast, evaluate, trial_of, trials_in
from esper_runtime.tolaria.feed import Feed
from esper_runtime.tolaria.group import Alone, Group
from esper_runtime.tolaria.hosts import (
    build_host,
    check_smallest_batch,
    enable_gradient_checkpointing,
    load_initial_weights,
)
from esper_runtime.tolaria.learning import Learner
from esper_runtime.tolaria.ledger import Ledger, Purpose, macs_per_example
from esper_runtime.tolaria.optimizer import GroupedOptimizer
from esper_runtime.tolaria.tasks import Batch, Task, load_task
from esper_runtime.tolaria.training_state import structure_of
from esper_runtime.tolaria.trials import TrialOptimizer, TrialSettings

DEFAULT_VALIDATION_BATCH = 500
TRIAL_LOSS_SCALE = 2.0**12
"""Of Float16 losses in trials: lower than a run's own, since trials are too short to find a scale."""


def chosen_blueprints(wanted: BlueprintSelector) -> dict[str, Blueprint]:
    """The catalogue's blueprints that are allowed, by name.

    Raises:
        InputError: there are none.
    """
    chosen = {name: blueprint for name, blueprint in catalogue().items() if wanted.allows(name)}
    if not chosen:
        raise InputError(
            f"spec.growth.blueprints: no blueprint matches include {list(wanted.include)} without exclude "
            f"{list(wanted.exclude)}; there are {', '.join(catalogue())}"
        )
    return chosen


@dataclass
class Parts:
    """Everything that is the same for a start and a resumption; nothing has been trained yet."""

    run: MorphogeneticRun
    device: torch.device
    task: Task
    survey: Survey
    model: Growable
    optimizer: GroupedOptimizer
    ledger: Ledger
    feed: Feed
    learner: Learner
    controller: Controller
    total_steps: int
    group: Group

    @property
    def settings(self) -> BoundarySettings:
        """What the run fixes about its boundaries."""
        training, growth = self.run.spec.training, self.run.spec.growth
        return BoundarySettings(
            growth=growth,
            total_steps=self.total_steps,
            higher_is_better=self.task.higher_is_better,
            trials=TrialSettings(
                clip_norm=training.clip_norm,
                autocast=partial(autocast, training.precision, self.device),
                initialisation=growth.lifecycle.initialisation,
                learning_rate_factor=growth.lifecycle.learning_rate_factor,
                random_seed=training.random_seed,
                loss_scale=TRIAL_LOSS_SCALE if training.precision is Precision.FLOAT16 else 1.0,
            ),
        )

    @property
    def validation_batch(self) -> int:
        """Examples in a batch of a validation."""
        return self.run.spec.training.validation.batch_size or DEFAULT_VALIDATION_BATCH

    @cached_property
    def _judging(self) -> list[Trial]:
        limit = self.run.spec.growth.gates.validation_examples
        data = self.task.validation
        return list(trials_in(self.task, data, self.validation_batch, self.device, limit))

    def validation_trials(self) -> Sequence[Trial]:
        """Validation batches to judge a seed on, the same each time."""
        return self._judging

    def training_trial(self, index: int) -> Trial:
        """The ``index``-th of the batches that the run will learn from next."""
        return trial_of(self.task, self.feed.coming(index))

    def optimizer_for_trials(self, step: int) -> TrialOptimizer:
        """The run's optimizer with the learning rates of optimizer step ``step``, to be copied."""
        self.optimizer.set_learning_rates(step)
        optimizer = self.optimizer.torch_optimizer
        assert optimizer is not None
        return optimizer

    def evaluate(self, data: Batch, purpose: Purpose) -> tuple[float, float]:
        """Mean loss and metric over ``data``, counted."""
        precision = self.run.spec.training.precision
        return self.ledger.measure(
            purpose,
            structure_of(self.model),
            1,
            lambda: evaluate(self.model, self.task, data, self.validation_batch, self.device, precision),
        )


def build_parts(
    run: MorphogeneticRun,
    device: torch.device,
    host: nn.Module | None = None,
    task: Task | None = None,
    controller: Controller | None = None,
    directory: Path | None = None,
    group: Group | None = None,
) -> Parts:
    """Load the task, build the host and everything around it.

    Args:
        run: the manifest.
        device: to train on.
        host: instead of the manifest's.
        task: instead of the manifest's.
        controller: instead of the manifest's.
        directory: the manifest's folder, for entrypoints and relative paths.
        group: the processes that train together; default: this one alone.

    Raises:
        InputError: something that the manifest names cannot work; the text says what and what would.
    """
    training, growth = run.spec.training, run.spec.growth
    seed = training.random_seed
    task = task or load_task(run.spec.task, seed, directory)
    host = host if host is not None else build_host(run.spec.host, task, seed, directory)
    if training.initial_weights is not None:
        load_initial_weights(host, training.initial_weights, directory)
    if training.gradient_checkpointing:
        enable_gradient_checkpointing(host, f"host {run.spec.host.entrypoint or run.spec.host.builtin!r}")
    host.to(device).train()
    args, kwargs = task.inputs(to_device({name: tensor[:2] for name, tensor in task.train.items()}, device))
    found = survey(host, args, kwargs, growth.slots.include, growth.slots.exclude)
    macs = macs_per_example(host, args, kwargs)
    parameters = sum(parameter.numel() for parameter in host.parameters())
    limits = limits_of(growth, parameters, macs)
    if growth.controller.kind is not ControllerKind.OFF:
        _check_limits(limits, parameters, macs)
    model = Growable(
        host,
        found,
        blueprints=chosen_blueprints(growth.blueprints),
        limits=limits,
        macs_per_example=macs,
        random_seed=seed,
        freeze_fossils=growth.lifecycle.freeze_fossils,
    )
    group = group or Alone()
    smallest = training.batch_size // (training.accumulate * group.size)
    check_smallest_batch(host, task, smallest, f"host {run.spec.host.entrypoint or run.spec.host.builtin!r}")
    order = BatchOrder(_examples(task), training.batch_size, seed)
    total_steps = training.steps or (training.epochs or 0) * order.batches_per_epoch
    trainable = [(f"host.{name}", p) for name, p in host.named_parameters() if p.requires_grad]
    optimizer = GroupedOptimizer(training, total_steps, trainable)
    ledger = Ledger(group.size)
    return Parts(
        run=run,
        device=device,
        task=task,
        survey=found,
        model=model,
        optimizer=optimizer,
        ledger=ledger,
        feed=Feed(task.train, order, device, group.rank, group.size),
        learner=Learner(model, optimizer, task, training, device, ledger, group),
        controller=controller or make_controller(growth, total_steps),
        total_steps=total_steps,
        group=group,
    )


def _check_limits(limits: Limits, parameters: int, macs: int) -> None:
    """Refuse a budget that the ungrown host already breaks."""
    for name, limit, now in (
        ("parameters", limits.parameters, parameters),
        ("macsPerExample", limits.macs_per_example, macs),
    ):
        if limit is not None and limit < now:
            raise InputError(
                f"spec.growth.budget.{name} allows {limit:,}, but the ungrown host has {now:,} already; give "
                f"more, or set spec.growth.controller.kind to Off"
            )


def _examples(task: Task) -> int:
    if not task.train:
        raise InputError(f"task {task.name!r} has no training data")
    return len(next(iter(task.train.values())))
