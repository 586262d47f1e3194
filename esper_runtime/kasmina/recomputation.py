"""Activation checkpointing (`torch.utils.checkpoint`): parts of a host that run again in the backward pass.

The second run must do what the first did, seeds included, or the gradients would be those of another model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

STOP = checkpoint._StopRecomputationError
"""Raised by torch through the modules where all that is needed has been computed again."""
SAMPLED = 64


def backward_pass() -> int:
    """Number of the backward pass that is running in this thread, or -1."""
    tracing = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return -1 if tracing else torch._C._current_graph_task_id()


def fingerprint(tensor: Tensor) -> Tensor:
    """A few elements from all over a tensor, by which it is recognised when it is computed again."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].clone()


def recognisable(tensor: Tensor) -> bool:
    """False for tensors that nobody may keep (of `torch.func`, of traced programs), and for empty ones."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and tensor.numel() > 0


class _Straight:
    """In place of re-entrant checkpointing: just the call."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def without_reentrant() -> Iterator[None]:
    """Inside, re-entrant checkpointing just calls its function.

    It yields no gradients where no input needs one, which is so wherever all parameters of a host are
    detached. Other checkpointing goes on as it is.
    """
    kept = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Straight  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = kept  # type: ignore[misc]
