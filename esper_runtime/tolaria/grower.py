"""Growth for people who own their training loop: one call at the end of each step.

The user's optimizer is left alone; seeds have one of the same kind beside it, with the settings of its first
group.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from esper_runtime.contracts import (
    AbsorbWhen,
    CheckpointError,
    Event,
    Growth,
    InputError,
    RunFailedError,
    Validation,
)
from esper_runtime.kasmina import (
    Changes,
    Growable,
    Move,
    Trial,
    absorb_all,
    cohorts,
    evaluating,
    learn_side_by_side,
    nowhere,
    untouched_random_state,
)
from esper_runtime.tamiyo import Controller, make_controller
from esper_runtime.tolaria.behind import charged, drops_out
from esper_runtime.tolaria.boundary import Boundary, BoundarySettings, limits_of
from esper_runtime.tolaria.ledger import Ledger, Purpose, macs_per_example
from esper_runtime.tolaria.optimizer import clip_gradients, merge_state
from esper_runtime.tolaria.schedule import newborn_factor
from esper_runtime.tolaria.training_state import structure_of
from esper_runtime.tolaria.trials import TrialSettings

Losses = Callable[[Any, Any], Tensor]
"""From the model's output and the target to the loss of each example, [B]."""
RECENT_BATCHES = 16
VALIDATION_BATCH = 500


class SeedOptimizer:
    """An optimizer of the user's kind for the seeds, beside the user's own.

    Its learning rates follow the first group of the user's, whatever schedules that.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._host = optimizer
        self._seeds: torch.optim.Optimizer | None = None
        self._groups: dict[str, tuple[int, float, int]] = {}

    @property
    def groups(self) -> tuple[str, ...]:
        """Ids of the seeds that have a group."""
        return tuple(self._groups)

    def add_group(
        self,
        name: str,
        parameters: Iterable[tuple[str, Parameter]],
        step: int,
        learning_rate_factor: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        """Add a newborn seed's parameters."""
        self.add_param_group({**self._settings(), "params": [parameter for _, parameter in parameters]})
        self._groups[name] = (step, learning_rate_factor, warmup_steps)

    def remove_group(self, name: str) -> None:
        """Drop the parameters of a seed that is gone, and their state."""
        assert self._seeds is not None
        group = self._seeds.param_groups.pop(self.groups.index(name))
        for parameter in group["params"]:
            self._seeds.state.pop(parameter, None)
        del self._groups[name]

    def absorb(self, name: str, moves: Iterable[Move]) -> None:
        """Let the user's state of host parameters follow an absorbed seed, and drop the seed's."""
        assert self._seeds is not None
        betas = self._host.param_groups[0].get("betas")
        held = {parameter for group in self._host.param_groups for parameter in group["params"]}
        for move in moves:
            if move.parameter in held:
                part = {} if move.part is None else self._seeds.state.get(move.part, {})
                own = self._host.state.get(move.parameter, {})
                self._host.state[move.parameter] = merge_state(own, part, move, betas)
        self.remove_group(name)

    def update_seeds(self, step: int) -> None:
        """One update of the seeds that have gradients, for optimizer step ``step`` (0-based)."""
        if self._seeds is None:
            return
        base = self._host.param_groups[0]["lr"]
        for group, (born, factor, warmup) in zip(
            self._seeds.param_groups, self._groups.values(), strict=True
        ):
            group["lr"] = base * factor * newborn_factor(step, born, warmup)
        self._seeds.step()
        self._seeds.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Groups and moments of the seeds; the user's own optimizer is saved by the user."""
        return {
            "groups": {name: list(facts) for name, facts in self._groups.items()},
            "optimizer": None if self._seeds is None else self._seeds.state_dict(),
        }

    def restore(self, data: dict[str, Any], model: Growable) -> None:
        """Take over what `state` gave; the seeds live in ``model``."""
        self._seeds, self._groups = None, {}
        for name, (born, factor, warmup) in data["groups"].items():
            parameters = model.seed(name).body.named_parameters()
            self.add_group(name, parameters, int(born), float(factor), int(warmup))
        if self._seeds is not None and data["optimizer"] is not None:
            self._seeds.load_state_dict(data["optimizer"])

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in self._host.param_groups[0].items() if key != "params"}

    # Both together, as a trial's copy of the model learns

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The user's groups and the seeds'."""
        return self._host.param_groups + ([] if self._seeds is None else self._seeds.param_groups)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of a seed's parameters."""
        if self._seeds is None:
            kind: Any = type(self._host)
            self._seeds = kind([group])
        else:
            self._seeds.add_param_group(group)

    def step(self) -> None:
        """One update of host and seeds."""
        self._host.step()
        if self._seeds is not None:
            self._seeds.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self._host.zero_grad(set_to_none)
        if self._seeds is not None:
            self._seeds.zero_grad(set_to_none)


class Grower:
    """Lets a wrapped model grow while the user's loop trains it::

        model = wrap(net, x[:1])
        grower = Grower(model, optimizer, losses, validation=(x_val, y_val), total_steps=1000)
        for x, y in batches:
            optimizer.zero_grad()
            losses(model(x), y).mean().backward()
            optimizer.step()
            grower.step(x, y)

    ``optimizer`` holds the parameters of ``net``; those of seeds are updated by `step`.

    Raises:
        InputError: an argument cannot work; the text says which and what is expected.

    Args:
        model: from `wrap`.
        optimizer: the loop's.
        losses: loss of each example, [B], from the model's output and the target.
        validation: inputs and targets that growth is judged on; never trained on.
        total_steps: length of the loop in optimizer steps.
        growth: when, where and what may grow; `Growth()` by default.
        controller: decides instead of the one that ``growth`` names.
        clip_norm: largest gradient norm of seeds that learn behind the host.
        journal: is given each event before what it announces happens.
    """

    def __init__(
        self,
        model: Growable,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        validation: tuple[Any, Any],
        total_steps: int,
        *,
        growth: Growth | None = None,
        controller: Controller | None = None,
        clip_norm: float | None = None,
        journal: Callable[[Event], None] = nowhere,
    ) -> None:
        growth = growth or Growth()
        _check_arguments(model, optimizer, validation, total_steps)
        self.model = model
        self.steps = 0
        self.ledger = Ledger()
        self._optimizer = SeedOptimizer(optimizer)
        self._losses = losses
        self._journal = journal
        self._clip_norm = clip_norm
        self._recent: deque[Trial] = deque(maxlen=RECENT_BATCHES)
        limit = growth.gates.validation_examples
        self._judging = [
            self._trial(*part) for part in _parts(*validation, size=VALIDATION_BATCH, limit=limit)
        ]
        first = self._judging[0]
        model.host_macs = model.host_macs or macs_per_example(model.host, first.args, first.kwargs)
        model.limits = model.limits.or_else(limits_of(growth, model.host_parameters, model.host_macs))
        newborn = growth.lifecycle
        settings = TrialSettings(
            clip_norm,
            nullcontext,
            newborn.initialisation,
            newborn.learning_rate_factor,
            model.random_seed,
        )
        self._boundary = Boundary(
            model,
            self._optimizer,
            controller or make_controller(growth, total_steps),
            BoundarySettings(growth, total_steps, higher_is_better=False, trials=settings),
            self,
            journal,
            self.ledger,
        )

    @property
    def total_steps(self) -> int:
        """Length of the loop."""
        return self._boundary.settings.total_steps

    def step(self, inputs: Any, target: Any) -> Changes:
        """Call after ``optimizer.step()`` with the batch of that step, before gradients are dropped.

        Args:
            inputs: what the model was called with: a tensor, a tuple of positional arguments, or a dict.
            target: what ``losses`` takes beside the output.

        Returns:
            What changed: seeds born, seeds gone.

        Raises:
            InputError: gradients were dropped before, or ``losses`` does not give one loss for each example.
            RunFailedError: the validation loss is not a finite number.
        """
        with torch.enable_grad():
            return self._step(inputs, target)

    def state(self) -> dict[str, Any]:
        """What growth needs to go on, as tensors, numbers and text; save it with model and optimizer.

        The host's own weights are not in it. The last batches are not either: what is tried at a boundary
        after a resumption, is tried on the batches since.
        """
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {
            "version": 1,
            "steps": self.steps,
            "architecture": self.model.architecture(),
            "seeds": {n: t.detach().clone() for n, t in tensors.items() if n.startswith("living.")},
            "optimizer": self._optimizer.state(),
            "boundary": self._boundary.state(),
            "ledger": self.ledger.state(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `state` gave; the host's weights and the user's optimizer are restored before.

        Raises:
            CheckpointError: the state is not a grower's, or belongs to another model.
        """
        if data.get("version") != 1:
            raise CheckpointError("this is not the state of a Grower: it has no version 1")
        self.model.rebuild(data["architecture"])
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("living.")}
        if own.keys() != data["seeds"].keys():
            raise CheckpointError("the seeds' weights do not belong to the saved architecture")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(data["seeds"][name])
        self.steps = data["steps"]
        self._optimizer.restore(data["optimizer"], self.model)
        self._boundary.restore(data["boundary"])
        self.ledger.restore(data["ledger"])

    def _step(self, inputs: Any, target: Any) -> Changes:
        batch = self._trial(inputs, target)
        self._check_gradients()
        self._recent.append(batch)
        self._learn_isolated(batch)
        self._optimizer.update_seeds(self.steps)
        self.steps += 1
        settings = self._boundary.settings
        if self.steps >= settings.total_steps:
            changes = self._boundary.finish(self.steps)
            self._absorb(batch)
            return changes
        changes = self._boundary.apply(self.steps)
        if self.steps % settings.every == 0:
            self._validate()
            asked = self._boundary.ask(self.steps)
            changes = Changes(
                born=changes.born + asked.born,
                gone=changes.gone + asked.gone,
                moved=changes.moved + asked.moved,
            )
        return changes

    def _learn_isolated(self, batch: Trial) -> None:
        def criterion(output: Any) -> Tensor:
            return batch.losses(output).mean()

        for seeds in cohorts(self.model.isolating()):
            losses = charged(
                self.ledger,
                structure_of(self.model),
                seeds,
                1,
                self.model.host_macs,
                partial(learn_side_by_side, self.model, seeds, batch.args, batch.kwargs, criterion),
            )
            for seed, loss in zip(seeds, losses.tolist(), strict=True):
                norm = clip_gradients(seed.body.parameters(), self._clip_norm).item()
                if not drops_out(seed, loss, norm) and not math.isfinite(loss + norm):
                    seed.failure = f"it learned a loss of {loss} with a gradient norm of {norm}"

    def _absorb(self, batch: Trial) -> None:
        """At the end, let the host's layers take up what they can, where ``growth`` wants it."""
        if self._boundary.settings.growth.lifecycle.absorb is AbsorbWhen.AT_END:
            for merged in absorb_all(self.model, batch.args, batch.kwargs, self._journal).merged:
                self._optimizer.absorb(merged.absorption.seed, merged.moves)

    def _check_gradients(self) -> None:
        """Seeds learn from the loop's own backward pass: without its gradients they would silently stay as
        they are."""
        learning = [p for seed in self.model.seeds if seed.alpha > 0 for p in seed.body.parameters()]
        learning = [p for p in learning if p.requires_grad]
        if learning and all(p.grad is None for p in itertools.chain(learning, self.model.host.parameters())):
            raise InputError(
                f"at step {self.steps} neither the host nor its seeds have gradients: call step() after "
                f"backward() and before the gradients of the whole model are dropped"
            )

    def _validate(self) -> None:
        def losses() -> list[Tensor]:
            return [trial.losses(self.model(*trial.args, **trial.kwargs)) for trial in self._judging]

        with untouched_random_state(), evaluating(self.model), torch.no_grad():
            found = self.ledger.measure(Purpose.VALIDATION, structure_of(self.model), 1, losses)
        loss = torch.cat(found).double().mean().item()
        if not math.isfinite(loss):
            raise RunFailedError(
                f"after step {self.steps} the validation loss is {loss}: the model or the validation data is "
                f"bad. A lower learning rate or clipped gradients may help"
            )
        self._boundary.validations.append(Validation(step=self.steps, loss=loss, metric=loss))

    def _trial(self, inputs: Any, target: Any) -> Trial:
        def losses(output: Any) -> Tensor:
            return _per_example(self._losses(output, target))

        if isinstance(inputs, dict):
            return Trial((), inputs, losses)
        return Trial(inputs if isinstance(inputs, tuple) else (inputs,), {}, losses)

    # What the boundary measures on

    def validation_trials(self) -> Sequence[Trial]:
        """The validation batches."""
        return self._judging

    def training_trial(self, index: int) -> Trial:
        """One of the last batches; after all of them it begins again."""
        return self._recent[index % len(self._recent)]

    def optimizer_for_trials(self, step: int) -> SeedOptimizer:
        """The user's optimizer and the seeds' together."""
        return self._optimizer


def _check_arguments(model: Any, optimizer: torch.optim.Optimizer, validation: Any, total_steps: int) -> None:
    if not isinstance(model, Growable):
        raise InputError(
            f"Grower needs a model from wrap(model, example_input), not a bare {type(model).__name__}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("Grower cannot work with LBFGS, whose steps take a closure; give AdamW or SGD")
    if total_steps < 1:
        raise InputError(
            f"total_steps is {total_steps}; give the length of the loop in optimizer steps, at least 1"
        )
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise InputError(
            f"validation is a {type(validation).__name__}; give a tuple (inputs, target) that holds all "
            f"validation examples"
        )
    inputs = [value for value in _flat(validation[0]) if isinstance(value, Tensor)]
    if not inputs or any(tensor.dim() == 0 or len(tensor) == 0 for tensor in inputs[:1]):
        raise InputError(
            "the inputs of validation hold no examples; give a tensor, a tuple of positional arguments or a "
            "dict of keyword arguments, with the examples along the first axis"
        )


def _per_example(losses: Any) -> Tensor:
    if not isinstance(losses, Tensor) or losses.dim() == 0:
        given = "a scalar tensor" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise InputError(
            f"losses gave {given}; it must give the loss of each example, shape [B] (reduction='none')"
        )
    return losses


def _parts(inputs: Any, target: Any, size: int, limit: int) -> Iterable[tuple[Any, Any]]:
    """Successive parts of inputs and targets along their first axis, at most ``limit`` examples."""
    tensors = [v for v in _flat(inputs) if isinstance(v, Tensor)]
    for start in range(0, min(limit, len(tensors[0])), size):
        rows = slice(start, min(start + size, limit))
        yield _cut(inputs, rows), _cut(target, rows)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


def _cut(value: Any, rows: slice) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(item, rows) for item in value)
    return value[rows] if isinstance(value, Tensor) and value.dim() else value
