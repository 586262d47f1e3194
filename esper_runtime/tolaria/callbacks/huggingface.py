"""Growth in a Hugging Face Trainer."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper_runtime.contracts import Event, Growth, InputError
from esper_runtime.kasmina import nowhere
from esper_runtime.tamiyo import Controller
from esper_runtime.tolaria.callbacks.growing import Growing, GrowthSettings
from esper_runtime.tolaria.grower import Losses

STATE = "esper.pt"
LABELS = "labels"
OF_THE_LOSS = "num_items_in_batch"
"""What the Trainer gives a model for the loss that it computes from labels."""


def huggingface_callback(
    losses: Losses,
    validation: tuple[dict[str, Any], Tensor],
    *,
    labels: str = LABELS,
    growth: Growth | None = None,
    controller: Controller | None = None,
    clip_norm: float | None = None,
    journal: Callable[[Event], None] = nowhere,
    random_seed: int = 0,
) -> Any:
    """A callback that lets a model grow while `transformers.Trainer` trains it::

        callback = huggingface_callback(losses, ({"input_ids": ids}, labels))
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()

    Each checkpoint folder of the trainer gets a file ``esper.pt`` with what has grown (tensors, numbers and
    text only); ``callback.grower.model`` is the grown model.

    Args:
        losses: loss of each example, [B], from the model's output (made without labels) and the labels.
        validation: inputs by name, and labels, that growth is judged on; never trained on.
        labels: name of the labels among the model's inputs.
        growth: when, where and what may grow.
        controller: decides instead of the one that ``growth`` names.
        clip_norm: largest gradient norm of seeds that learn behind the host.
        journal: is given each event before what it announces happens.
        random_seed: of the weights of newborn seeds.

    Raises:
        InputError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise InputError("transformers is not installed here: pip install 'esper[huggingface]'")
    base = import_module("transformers").TrainerCallback
    kind = type("EsperCallback", (_Hooks, base), {})
    settings = GrowthSettings(losses, validation, growth, controller, clip_norm, journal, random_seed)
    return kind(settings, labels)


class _Hooks(Growing):
    """The hooks of the Hugging Face Trainer that growth needs."""

    def __init__(self, settings: GrowthSettings, labels: str) -> None:
        super().__init__(settings)
        self._labels = labels
        self._eye: RemovableHandle | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """The trainer has restored model and optimizer."""
        if getattr(args, "world_size", 1) > 1:
            raise InputError(f"growth in the Trainer works in one process; there are {args.world_size}")
        if state.global_step:
            self._load(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)
        scaler = getattr(optimizer, "scaler", None)  # accelerate's, where the training is in fp16
        own = getattr(optimizer, "optimizer", optimizer)
        self.begin(model, own, int(state.max_steps), scaler, state.global_step)
        self._look_away()  # where an earlier training broke off
        self._eye = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The training is over."""
        self._look_away()

    def _look_away(self) -> None:
        if self._eye is not None:
            self._eye.remove()
            self._eye = None

    def _load(self, path: Path) -> None:
        if not path.exists():
            raise InputError(
                f"training goes on from step {path.parent.name.split('-')[-1]}, but {path} is missing: the "
                f"checkpoint was made without this callback; start anew, or put the file back"
            )
        self.keep(torch.load(path, weights_only=True))

    def _see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled() and self._labels in kwargs:
            left_out = (self._labels, OF_THE_LOSS)
            inputs = {name: value for name, value in kwargs.items() if name not in left_out}
            self.collect(inputs, kwargs[self._labels])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer's step is done and gradients are still there: a boundary."""
        if not self._earlier:
            raise InputError(
                f"the model was not called with {self._labels!r} in this step; give the name of its labels"
            )
        self.step()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has written a checkpoint folder."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state(), folder / STATE)
