"""What both callbacks share: a `Grower` that begins when model and optimizer are there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from esper_runtime.contracts import BlueprintSelector, Event, Growth, InputError, SlotSelector
from esper_runtime.kasmina import nowhere, wrap
from esper_runtime.tamiyo import Controller
from esper_runtime.tolaria.grower import Grower, Losses
from esper_runtime.tolaria.parts import chosen_blueprints

PROBED_EXAMPLES = 2


@dataclass
class GrowthSettings:
    """What `Grower` takes, kept until training begins."""

    losses: Losses
    validation: tuple[Any, Any]
    growth: Growth | None = None
    controller: Controller | None = None
    clip_norm: float | None = None
    journal: Callable[[Event], None] = nowhere
    random_seed: int = 0


class Growing:
    """A grower that begins late and may have a state to go on from.

    Args:
        settings: of the growth.
    """

    def __init__(self, settings: GrowthSettings) -> None:
        self._settings = settings
        self._saved: dict[str, Any] | None = None
        self._earlier: list[tuple[Any, Any]] = []
        self.grower: Grower | None = None
        """Its ``model`` is the grown one; None before training begins."""

    def begin(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
        done: int = 0,
    ) -> None:
        """Wrap the network and begin, or go on: where the network grew before, from there; and from a state
        given before.

        Args:
            net: what grows.
            optimizer: of this training.
            total_steps: length of this training.
            scaler: scales the loss.
            done: steps of this training that are done already.

        Raises:
            InputError: the length of the training is not known, or an argument of the growth cannot work.
            HostError: no place in the network can take a seed.
        """
        if total_steps < 1:
            raise InputError(
                "growth needs the length of the training in steps; give the trainer max_steps or a number of "
                "epochs over data of known length"
            )
        self._earlier.clear()
        if self.grower is None or self.grower.model.host is not net:
            self.grower = self._new(net, optimizer, total_steps, scaler)
        if self._saved is not None:
            self.grower.restore(self._saved)
            self._saved = None
        self.grower.go_on(self.grower.steps + max(0, total_steps - done), optimizer, scaler)

    def _new(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        scaler: torch.amp.GradScaler | None,
    ) -> Grower:
        settings = self._settings
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        validation: tuple[Any, Any] = tree_map(
            lambda value: value.to(device) if isinstance(value, Tensor) else value, settings.validation
        )
        inputs = tree_map(
            lambda value: value[:PROBED_EXAMPLES] if isinstance(value, Tensor) and value.dim() else value,
            validation[0],
        )
        growth = settings.growth or Growth()
        model = wrap(
            net,
            inputs,
            growth.slots.include,
            growth.slots.exclude,
            blueprints=chosen_blueprints(growth.blueprints),
            random_seed=settings.random_seed,
        )
        used = {"slots": SlotSelector(), "blueprints": BlueprintSelector()}
        return Grower(
            model,
            optimizer,
            settings.losses,
            validation,
            total_steps,
            growth=growth.model_copy(update=used),
            controller=settings.controller,
            clip_norm=settings.clip_norm,
            journal=settings.journal,
            scaler=scaler,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint of the trainer must hold beside model and optimizer."""
        return {} if self.grower is None else self.grower.state()

    def keep(self, saved: dict[str, Any]) -> None:
        """Go on from what `state` gave once training begins."""
        self._saved = saved or None

    def collect(self, inputs: Any, target: Any) -> None:
        """Gradients of this micro-batch were added; the optimizer step comes later."""
        self._earlier.append((inputs, target))

    def step(self) -> None:
        """An optimizer step was done with the micro-batches collected; gradients are still there."""
        parts, self._earlier = self._earlier, []
        if self.grower is not None and self.grower.steps < self.grower.total_steps:
            *earlier, (inputs, target) = parts
            self.grower.step(inputs, target, earlier)
