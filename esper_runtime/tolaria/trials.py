"""Short trials of candidates: copies of the model learn with and without a newborn seed, side by side.

All copies see the same batches, at the learning rates that hold at the boundary. The run itself is not
touched: its parameters, buffers, optimizer state and random generators stay as they are.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Protocol

import torch
from torch import Tensor

from esper_runtime.contracts import (
    Directive,
    EsperError,
    GraftingPlan,
    Initialisation,
    Measured,
    Operation,
    Probe,
)
from esper_runtime.kasmina import (
    Growable,
    Trial,
    graphless,
    initialise_from_gradients,
    untouched_random_state,
)
from esper_runtime.tolaria.ledger import Ledger, Purpose
from esper_runtime.tolaria.optimizer import clip_gradients
from esper_runtime.tolaria.randomness import derived_seed
from esper_runtime.tolaria.training_state import structure_of, tensors_of

STATISTICS_BATCHES = 4
"""Batches that gradient statistics for informed initial weights are taken over."""
MOST_BYTES_KEPT = 2**30
"""Where all copies together are larger, a longer trial begins anew instead of going on."""
BYTES_OF_A_COPY_OVER_ITS_WEIGHTS = 3
"""Weights and two moments."""


class TrialOptimizer(Protocol):
    """The part of a torch optimizer that a trial needs; it can be deep-copied together with its model."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters and settings."""
        ...

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a newborn's parameters."""
        ...

    def step(self) -> Any:
        """One update."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        ...


@dataclass
class _Twin:
    """A copy of model and optimizer, with the loss of each batch that it has learned from."""

    model: Growable
    optimizer: TrialOptimizer
    structure: str
    losses: list[Tensor] = field(default_factory=list)


class TrialsStoppedError(EsperError):
    """The run was told to stop while candidates were tried; the boundary is not complete."""


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a run have in common: clipping, precision, and how newborns begin and learn.

    ``loss_scale`` is what losses are multiplied by for the backward pass (Float16).
    """

    clip_norm: float | None
    autocast: Callable[[], AbstractContextManager[Any]]
    initialisation: Initialisation
    learning_rate_factor: float
    random_seed: int
    loss_scale: float = 1.0


class Trials:
    """The trials of one boundary.

    Copies are kept where memory allows, so that a longer trial goes on where a shorter one ended.

    Args:
        model: the model as it is at the boundary.
        optimizer: its optimizer, with the learning rates that hold now.
        batch: gives the i-th training batch of a trial, the same on each call.
        step: optimizer steps done.
        settings: common to all trials of the run.
        ledger: counts what the trials compute.
        stopping: says whether the run is to stop; asked before each step of a trial, since trials are long.
    """

    def __init__(
        self,
        model: Growable,
        optimizer: TrialOptimizer,
        batch: Callable[[int], Trial],
        step: int,
        settings: TrialSettings,
        ledger: Ledger,
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self._model = model
        self._optimizer = optimizer
        self._batch = batch
        self._step = step
        self._settings = settings
        self._ledger = ledger
        self._without = self._copy()
        self._with: dict[tuple[str, str], _Twin | None] = {}
        tensors = tensors_of(self._without.model).values()
        self._size = BYTES_OF_A_COPY_OVER_ITS_WEIGHTS * sum(t.numel() * t.element_size() for t in tensors)

    def measure(self, probe: Probe) -> dict[tuple[str, str], Measured | None]:
        """Gain of each (slot, blueprint): the loss without the seed minus that with it, batch by batch.

        The mean is over the last half of the trial. None where the seed could not be planted, failed, or a
        loss was not finite. Candidates that ``probe`` does not name are forgotten.

        Raises:
            TrialsStoppedError: the run is to stop.
        """
        with untouched_random_state():
            self._learn(self._without, probe.steps)
            earlier, self._with = self._with, {}
            gains: dict[tuple[str, str], Measured | None] = {}
            for pair in probe.candidates:
                twin = earlier[pair] if pair in earlier else self._plant(*pair)
                gains[pair] = self._gain(twin, probe.steps)
                if self._size * len(probe.candidates) <= MOST_BYTES_KEPT:
                    self._with[pair] = twin
            return gains

    def _copy(self) -> _Twin:
        model, optimizer = copy.deepcopy((self._model, self._optimizer), graphless(self._model))
        if model.stock is not None:
            model.stock = model.stock.built_at_once()
        return _Twin(model, optimizer, structure_of(model))

    def _plant(self, slot: str, blueprint: str) -> _Twin | None:
        twin = self._copy()
        plan = GraftingPlan(initialisation=self._settings.initialisation)
        germinate = Operation.GERMINATE
        twin.model.submit(
            Directive(operation=germinate, slot=slot, blueprint=blueprint, plan=plan, explanation="a trial")
        )
        born = twin.model.boundary(self._step).born
        if not born:
            return None
        (seed,) = born
        twin.structure = structure_of(twin.model)
        if plan.initialisation is Initialisation.GRADIENT:
            batches = [self._batch(index) for index in range(STATISTICS_BATCHES)]
            initialise_from_gradients(twin.model, seed, batches)
        settings = dict(twin.optimizer.param_groups[0])
        settings["lr"] = settings["lr"] * self._settings.learning_rate_factor
        twin.optimizer.add_param_group({**settings, "params": list(seed.body.parameters())})
        return twin

    def _learn(self, twin: _Twin, steps: int) -> None:
        parameters = [p for group in twin.optimizer.param_groups for p in group["params"]]
        scale = self._settings.loss_scale
        for index in range(len(twin.losses), steps):
            if self._stopping():
                raise TrialsStoppedError(f"stopped while candidates were tried at step {self._step}")
            trial = self._batch(index)
            torch.manual_seed(derived_seed("trial", self._settings.random_seed, self._step, index))

            def passes(trial: Trial = trial) -> Tensor:
                with self._settings.autocast():
                    losses = trial.losses(twin.model(*trial.args, **trial.kwargs))
                loss = losses.mean()
                (loss if scale == 1.0 else loss * scale).backward()  # type: ignore[no-untyped-call]
                return losses.detach()

            losses = self._ledger.measure(Purpose.PROBE, twin.structure, 1, passes)
            if scale != 1.0:
                torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1.0 / scale)
            norm = clip_gradients(parameters, self._settings.clip_norm)
            if scale == 1.0 or bool(torch.isfinite(norm)):
                twin.optimizer.step()
            twin.optimizer.zero_grad(set_to_none=True)
            twin.losses.append(losses.mean())

    def _gain(self, twin: _Twin | None, steps: int) -> Measured | None:
        if twin is None:
            return None
        self._learn(twin, steps)
        if any(seed.failure is not None for seed in twin.model.seeds):
            return None
        half = slice(steps // 2, steps)
        without = torch.stack(self._without.losses[half]).tolist()
        gains = [a - b for a, b in zip(without, torch.stack(twin.losses[half]).tolist(), strict=True)]
        if not all(map(math.isfinite, gains)):
            return None
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return Measured(mean=fmean(gains), standard_error=error, count=len(gains))
