"""Learning behind the host: a counterfactual pass in which only the isolated seed can change.

The objective is the real one: the loss that the model would have with the seed in it. A straight-through
estimator would be cheaper, but its objective is linear in the seed's output and diverges.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.randomness import untouched_random_state
from esper_runtime.kasmina.recomputation import without_reentrant
from esper_runtime.kasmina.seed import Seed

Criterion = Callable[[Any], Tensor]


@contextmanager
def contributing(model: GraftedModel, seed: Seed) -> Iterator[None]:
    """Inside, an isolated seed adds its whole output to the host's activations."""
    with at_full_strength(seed):
        model.connect(seed)
        try:
            yield
        finally:
            model.disconnect(seed)


@contextmanager
def at_full_strength(seed: Seed) -> Iterator[None]:
    """Inside, the seed's alpha is 1."""
    alpha, seed.alpha = seed.alpha, 1.0
    try:
        yield
    finally:
        seed.alpha = alpha


def detached_state(model: GraftedModel, learning: Sequence[str] = ()) -> dict[str, Tensor]:
    """Parameters detached and buffers copied, by name, but for those of the seeds ``learning``."""
    ours = tuple(f"living.{identity}." for identity in learning)
    state: dict[str, Tensor] = {n: p.detach() for n, p in model.named_parameters() if not n.startswith(ours)}
    state.update({n: b.clone() for n, b in model.named_buffers() if not n.startswith(ours)})
    return state


def detached_call(
    model: GraftedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    learning: str = "",
    then: Callable[[Any], Any] = lambda output: output,
) -> Any:
    """The model's output with all parameters detached and all buffers copied, but for the seed ``learning``.

    Nothing of the host changes: parameters get no gradients, running statistics are kept on copies. ``then``
    is given the output and its result is returned; a backward pass belongs there, so that what a host with
    activation checkpointing computes again is computed with the same detached parameters.
    """
    state = detached_state(model, [learning] if learning else [])
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    with without_reentrant():
        return functional_call(_Then(model, then), named, args, kwargs)


class _Then(nn.Module):
    """The model, and what is done with its output."""

    def __init__(self, model: nn.Module, then: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._then = then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._then(self.model(*args, **kwargs))


def learn_isolated(
    model: GraftedModel, seed: Seed, args: tuple[Any, ...], kwargs: dict[str, Any], criterion: Criterion
) -> Tensor:
    """Leave in the seed's ``grad`` the gradient of the loss with the seed at full strength; return that loss.

    The host's parameters, gradients, buffers and all random generators are afterwards bit for bit what they
    were. Costs one forward pass and the backward pass behind the seed's read tap.
    """
    parameters = [p for p in seed.body.parameters() if p.requires_grad]

    def learn(output: Any) -> Tensor:
        loss = criterion(output)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        return loss.detach()

    with untouched_random_state(), contributing(model, seed), torch.enable_grad():
        loss: Tensor = detached_call(model, args, kwargs, seed.identity, learn)
    return loss
