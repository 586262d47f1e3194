"""Activation checkpointing of hosts that offer it."""

from torch import nn

from esper_runtime.contracts import InputError


def enable_gradient_checkpointing(host: nn.Module, what: str) -> None:
    """Have ``host`` compute activations again in the backward pass instead of keeping them.

    Raises:
        InputError: the host has no method ``gradient_checkpointing_enable``, or cannot do it.
    """
    enable = getattr(host, "gradient_checkpointing_enable", None)
    if not callable(enable):
        raise InputError(
            f"training.gradientCheckpointing: {what} has no method gradient_checkpointing_enable(); hosts of "
            "builtin 'huggingface' have it. Give your host one, or set it to false"
        )
    enable()
