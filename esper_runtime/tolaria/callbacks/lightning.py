"""Growth in a Lightning trainer."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from esper_runtime.contracts import Event, Growth, InputError
from esper_runtime.kasmina import nowhere
from esper_runtime.tamiyo import Controller
from esper_runtime.tolaria.callbacks.growing import Growing, GrowthSettings
from esper_runtime.tolaria.grower import Losses

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def lightning_callback(
    losses: Losses,
    validation: tuple[Any, Any],
    *,
    net: str | None = None,
    batch: Callable[[Any], tuple[Any, Any]] = tuple,
    growth: Growth | None = None,
    controller: Controller | None = None,
    clip_norm: float | None = None,
    journal: Callable[[Event], None] = nowhere,
    random_seed: int = 0,
    package: str | None = None,
) -> Any:
    """A callback that lets a network grow while Lightning trains it::

        callback = lightning_callback(losses, (x_val, y_val), net="net")
        Trainer(max_steps=1000, callbacks=[callback]).fit(module, data)

    The module's first optimizer must hold the network; seeds have one of the same kind and follow its
    learning rate. What has grown is in the trainer's checkpoints; ``callback.grower.model`` is the grown
    network.

    Args:
        losses: loss of each example, [B], from the network's output and the target.
        validation: inputs and targets that growth is judged on; never trained on.
        net: attribute of the module that holds the network; the module itself by default.
        batch: from the loader's batch to the network's inputs and the target.
        growth: when, where and what may grow.
        controller: decides instead of the one that ``growth`` names.
        clip_norm: largest gradient norm of seeds that learn behind the host.
        journal: is given each event before what it announces happens.
        random_seed: of the weights of newborn seeds.
        package: ``lightning.pytorch`` or ``pytorch_lightning``; by default the one that is imported already.

    Raises:
        InputError: Lightning is not installed.
    """
    loaded = [name for name in PACKAGES if name in sys.modules]
    installed = [name for name in PACKAGES if find_spec(name.split(".")[0]) is not None]
    if not installed:
        raise InputError("Lightning is not installed here: pip install 'esper[lightning]'")
    base = import_module(package or (loaded or installed)[0]).Callback
    kind = type("EsperCallback", (_Hooks, base), {})
    settings = GrowthSettings(losses, validation, growth, controller, clip_norm, journal, random_seed)
    return kind(settings, net, batch)


class _Hooks(Growing):
    """The hooks of Lightning that growth needs."""

    def __init__(
        self, settings: GrowthSettings, net: str | None, batch: Callable[[Any], tuple[Any, Any]]
    ) -> None:
        super().__init__(settings)
        self._net, self._batch = net, batch
        self._done = 0

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return "EsperCallback"

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """The trainer has restored model and optimizer."""
        net = module if self._net is None else getattr(module, self._net, None)
        if not isinstance(net, nn.Module):
            raise InputError(
                f"{type(module).__name__} has no module {self._net!r}; give its attribute as net"
            )
        if trainer.world_size > 1:
            raise InputError(f"growth in Lightning works in one process; there are {trainer.world_size}")
        steps = trainer.estimated_stepping_batches
        optimizers = trainer.optimizers
        if len(optimizers) != 1 or not module.automatic_optimization:
            raise InputError("growth in Lightning needs one optimizer and automatic optimization")
        optimizer: torch.optim.Optimizer = optimizers[0]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._done = trainer.global_step
        self.begin(net, optimizer, int(steps) if steps != float("inf") else 0, scaler, self._done)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done; where it completed an optimizer step, a boundary follows."""
        inputs, target = self._batch(batch)
        self.collect(inputs, target)
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.step()

    def state_dict(self) -> dict[str, Any]:
        """Saved with the trainer's checkpoints."""
        return self.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restored from a checkpoint; takes effect when training begins."""
        self.keep(state_dict)
