"""What a loop of one's own gives to a `Grower`: checked, and cut into parts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from esper_runtime.contracts import (
    BlueprintSelector,
    Growth,
    InputError,
    Placement,
    SlotSelector,
    TwinChoice,
)
from esper_runtime.kasmina import Growable


def check_growth(growth: Growth) -> None:
    """Refuse settings that have no effect outside of `esper run`; the text says what to do instead."""
    if growth.slots != SlotSelector() or growth.blueprints != BlueprintSelector():
        raise InputError(
            "growth.slots and growth.blueprints are for manifests and callbacks; in a loop of your own give "
            "include, exclude and blueprints to wrap(...)"
        )
    if growth.controller.placement is not Placement.EMBEDDED:
        raise InputError(
            f"growth.controller.placement is {growth.controller.placement}, which needs the bus of "
            f"`esper run`; choose Embedded"
        )
    if growth.kernels.twins is not TwinChoice.NEVER:
        raise InputError(
            f"growth.kernels.twins is {growth.kernels.twins}, which needs the library of `esper run`; "
            f"choose Never"
        )


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer beside which seeds cannot have one of the same kind."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("Grower cannot work with LBFGS, whose steps take a closure; give AdamW or SGD")


def check_arguments(model: Any, optimizer: torch.optim.Optimizer, validation: Any, total_steps: int) -> None:
    """Refuse what a `Grower` cannot work with; the text says what it takes."""
    if not isinstance(model, Growable):
        raise InputError(
            f"Grower needs a model from wrap(model, example_input), not a bare {type(model).__name__}"
        )
    check_optimizer(optimizer)
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


def per_example(losses: Any) -> Tensor:
    """The losses as they are, where there is one for each example."""
    if not isinstance(losses, Tensor) or losses.dim() == 0:
        given = "a scalar tensor" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise InputError(
            f"losses gave {given}; it must give the loss of each example, shape [B] (reduction='none')"
        )
    return losses


def parts_of(inputs: Any, target: Any, size: int, limit: int) -> Iterable[tuple[Any, Any]]:
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
