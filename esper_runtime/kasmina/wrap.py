"""The front door for people with a model of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from esper_runtime.contracts import Blueprint, HostError
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.limits import Limits
from esper_runtime.kasmina.survey import survey


def wrap(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...] | dict[str, Any],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    blueprints: Mapping[str, Blueprint] | None = None,
    limits: Limits | None = None,
    random_seed: int = 0,
) -> Growable:
    """Find the slots of ``model`` and return it as one that can grow; the model itself is not changed.

    Args:
        model: any module; it stays your own object and may be called directly.
        example_input: what a forward pass is called with: one tensor, a tuple of positional arguments, or a
            dict of keyword arguments. One probe forward reads the interfaces from it.
        include: globs over slot ids that may be used.
        exclude: globs over slot ids that are left out.
        blueprints: blueprints that may be planted, by name; the built-in catalogue where absent.
        limits: what no command may exceed.
        random_seed: of the weights of newborn seeds.

    Raises:
        HostError: the model cannot be probed, or no place in it can take a seed.
    """
    if not isinstance(model, nn.Module):
        raise HostError(f"the host is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, Growable):
        raise HostError("this model is wrapped already; use it as it is, or wrap its `host` anew")
    args, kwargs = call_of(example_input)
    found = survey(model, args, kwargs, include, exclude)
    if not found.places:
        reasons = "; ".join(f"{refusal.place}: {refusal.reason}" for refusal in found.refused)
        raise HostError(
            f"no place in this host can take a seed. {reasons or 'It has no layer of a known kind.'}"
        )
    return Growable(model, found, blueprints=blueprints, limits=limits, random_seed=random_seed)


def call_of(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward pass from an example input."""
    if isinstance(example_input, dict):
        return (), example_input
    if isinstance(example_input, tuple):
        return example_input, {}
    return (example_input,), {}
