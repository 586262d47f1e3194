"""Growth for people who own their training loop: one call at the end of each step.

The user's optimizer is left alone; seeds have one of the same kind beside it, with the settings of its first
group.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper_runtime.contracts import (
    AbsorbWhen,
    CheckpointError,
    ControllerKind,
    Event,
    Growth,
    InputError,
    RunFailedError,
    Validation,
)
from esper_runtime.kasmina import (
    Changes,
    Growable,
    Seed,
    Trial,
    absorb_all,
    cohorts,
    evaluating,
    learn_side_by_side,
    nowhere,
    untouched_random_state,
)
from esper_runtime.tamiyo import Controller, make_controller
from esper_runtime.tolaria.behind import charged, drops_out, gathered
from esper_runtime.tolaria.boundary import Boundary, BoundarySettings, limits_of
from esper_runtime.tolaria.ledger import Ledger, Purpose, macs_per_example
from esper_runtime.tolaria.optimizer import clip_gradients
from esper_runtime.tolaria.own_loop import (
    check_arguments,
    check_growth,
    check_optimizer,
    parts_of,
    per_example,
)
from esper_runtime.tolaria.reporting import reports_of
from esper_runtime.tolaria.seed_optimizer import SeedOptimizer
from esper_runtime.tolaria.stocking import stocked
from esper_runtime.tolaria.supply import Supply
from esper_runtime.tolaria.training_state import structure_of
from esper_runtime.tolaria.trials import TrialSettings

log = logging.getLogger(__name__)

Losses = Callable[[Any, Any], Tensor]
"""From the model's output and the target to the loss of each example, [B]."""
RECENT_BATCHES = 16
VALIDATION_BATCH = 500
OWN_LOOP = "own-loop"
"""The run's name in field reports."""


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
        scaler: the loop's `torch.amp.GradScaler`, where it scales the loss.
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
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        growth = growth or Growth()
        check_growth(growth)
        check_arguments(model, optimizer, validation, total_steps)
        model.freeze_fossils = model.freeze_fossils or growth.lifecycle.freeze_fossils
        self.model = model
        self.steps = 0
        self._over = False
        self._own_controller = controller is None
        self.ledger = Ledger()
        self._optimizer = SeedOptimizer(optimizer)
        self._losses = losses
        self._journal = journal
        self._clip_norm = clip_norm
        self._scaler = scaler
        self._scale = 1.0 if scaler is None else scaler.get_scale()
        self._recent: deque[Trial] = deque(maxlen=RECENT_BATCHES)
        limit = growth.gates.validation_examples
        self._judging = [
            self._trial(*part) for part in parts_of(*validation, size=VALIDATION_BATCH, limit=limit)
        ]
        first = self._judging[0]
        model.host_macs = model.host_macs or macs_per_example(model.host, first.args, first.kwargs)
        model.limits = model.limits.or_else(limits_of(growth, model.host_parameters, model.host_macs))
        self._kernels = ExitStack()
        self._supply = Supply()
        self._stocks = model.stock is None
        if self._stocks:
            self._stock(growth)
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

    def go_on(
        self,
        total_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Let the same model grow in a longer loop, also where the present one is over.

        Steps are counted on. What has grown stays; what the end of a loop has taken out is gone.

        Args:
            total_steps: length of the loop from its very beginning.
            optimizer: the loop's from now on, where it is another one; the seeds' moments begin anew then, as
                the host's do.
            scaler: the loop's, where it scales the loss.

        Raises:
            InputError: more steps are done already, or the optimizer cannot work.
        """
        if total_steps < self.steps:
            raise InputError(f"total_steps is {total_steps}, but {self.steps} steps are done already")
        if optimizer is not None:
            check_optimizer(optimizer)
            self._optimizer.follow(optimizer, self.model)
        self._scaler = scaler
        self._scale = 1.0 if scaler is None else scaler.get_scale()
        boundary = self._boundary
        growth = boundary.settings.growth
        if total_steps != self.total_steps:
            boundary.settings = replace(boundary.settings, total_steps=total_steps)
            if self._own_controller:
                memory = boundary.controller.state()
                boundary.controller = make_controller(growth, total_steps)
                boundary.controller.restore(memory)
        if self._over and self._stocks and total_steps > self.steps:
            self._stock(growth)
            boundary.look_for_candidates()
        self._over = False

    def step(self, inputs: Any, target: Any, earlier: Sequence[tuple[Any, Any]] = ()) -> Changes:
        """Call after ``optimizer.step()`` with the batch of that step, before gradients are dropped.

        Args:
            inputs: what the model was called with: a tensor, a tuple of positional arguments, or a dict.
            target: what ``losses`` takes beside the output.
            earlier: inputs and targets of the step's other micro-batches, where gradients are accumulated
                over several.

        Returns:
            What changed: seeds born, seeds gone.

        Raises:
            InputError: gradients were dropped before, or ``losses`` does not give one loss for each example.
            RunFailedError: the validation loss is not a finite number.
        """
        with torch.enable_grad():
            return self._step([self._trial(*part) for part in (*earlier, (inputs, target))])

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

    def _stock(self, growth: Growth) -> None:
        """Give the model validated kernels, until the loop is over."""
        off = self._own_controller and growth.controller.kind is ControllerKind.OFF
        self._supply = self._kernels.enter_context(
            stocked(self.model, grows=not off, told=_told, selector=growth.kernels)
        )
        self._supply.apply(self.steps, self.model, self._journal, lambda: -1, ())

    def _step(self, parts: list[Trial]) -> Changes:
        self._check_gradients()
        self._unscale()
        self._recent.extend(parts)
        self._learn_isolated(parts)
        self._optimizer.update_seeds(self.steps)
        self.steps += 1
        settings = self._boundary.settings
        if self.steps >= settings.total_steps:
            changes = self._boundary.finish(self.steps)
            self._report((*changes.gone, *self.model.seeds))
            self._kernels.close()
            self._over = True
            self._absorb(parts[-1])
            return changes
        if not self._supply.idle:
            new = self._supply.arrived()
            if self._supply.apply(self.steps, self.model, self._journal, lambda: -1, new):
                self._boundary.look_for_candidates()
        changes = self._boundary.apply(self.steps)
        self._report(changes.gone)
        if self.steps % settings.every == 0:
            self._validate()
            asked = self._boundary.ask(self.steps)
            self._report(asked.gone)
            changes = Changes(
                born=changes.born + asked.born,
                gone=changes.gone + asked.gone,
                moved=changes.moved + asked.moved,
            )
        return changes

    def _learn_isolated(self, parts: Sequence[Trial]) -> None:
        for seeds in cohorts(self.model.isolating()):
            losses = gathered(seeds, [partial(self._learn_behind, seeds, part) for part in parts])
            for seed, loss in zip(seeds, losses.tolist(), strict=True):
                norm = clip_gradients(seed.body.parameters(), self._clip_norm).item()
                if not drops_out(seed, loss, norm) and not math.isfinite(loss + norm):
                    seed.failure = f"it learned a loss of {loss} with a gradient norm of {norm}"

    def _learn_behind(self, seeds: list[Seed], part: Trial) -> tuple[Tensor, int]:
        """One pass of seeds that learn together; their losses, and the number of examples."""
        examples = 0

        def criterion(output: Any) -> Tensor:
            nonlocal examples
            losses = part.losses(output)
            examples = len(losses)
            return losses.mean()

        learn = partial(learn_side_by_side, self.model, seeds, part.args, part.kwargs, criterion)
        structure = structure_of(self.model)
        return charged(self.ledger, structure, seeds, 1, self.model.host_macs, learn), examples

    def _report(self, seeds: Iterable[Seed]) -> None:
        for event in reports_of(seeds, OWN_LOOP, self.steps):
            self._journal(event)

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

    def _unscale(self) -> None:
        """Undo in the seeds' gradients what the loop's scaler did to the loss; where the scale was too high,
        seeds have no update in this step, as the host has none."""
        if self._scaler is None:
            return
        seeds = [seed for seed in self.model.seeds if seed.contributing]
        learning = [p for seed in seeds for p in seed.body.parameters() if p.grad is not None]
        gradients = [p.grad for p in learning if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self._scale)
            if not math.isfinite(torch.nn.utils.get_total_norm(gradients).item()):
                for parameter in learning:
                    parameter.grad = None
        self._scale = self._scaler.get_scale()

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
            return per_example(self._losses(output, target))

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


def _told(text: str, done: int, total: int) -> None:
    """The log of a program that may have none of our displays."""
    if done % 10 == 0 or done == total:
        log.info("%s: %d of %d", text, done, total)
