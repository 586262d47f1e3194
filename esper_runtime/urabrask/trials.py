"""Which slots a kernel is tried at, with which weights and inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx

from esper_runtime.blueprint import cost, sample_slots
from esper_runtime.blueprint.builder import build, tail_parameters
from esper_runtime.contracts import Blueprint, Interface, InterfaceKind, KernelInterface

SEED: Final = 1
"""Of the weights at birth."""

RANDOM, LARGE, SMALL, CONSTANT, ZEROS = "random", "large", "small", "constant", "zeros"
FACTORS: Final = {LARGE: 1e3, SMALL: 1e-3}
_HALF_LARGE: Final = 30.0
_BATCH: Final = 3
_MOST_WORK: Final = 60_000_000
"""MACs of one batch beyond which a slot is left to the cheaper ones, if there are any."""


@dataclass(frozen=True)
class Trial:
    """One slot with all that is put in.

    Attributes:
        slot: where.
        full: whether every check is made, and measured; otherwise only what widths matter for.
        weights: of the living kernel: those at birth, but for the tail, which is drawn like the others.
        inputs: by name, each [B, ...] as the slot's kind has it.
        gradient: of the output.
    """

    slot: Interface
    full: bool
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    gradient: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, inputs and outputs."""
        return dtype_of(self.slot)


def dtype_of(slot: Interface) -> torch.dtype:
    """The slot's dtype as torch names it."""
    found: torch.dtype = getattr(torch, slot.dtype)
    return found


def trials(blueprint: Blueprint, slots: KernelInterface) -> list[Trial]:
    """Trials at the narrowest, a middle and the widest affordable slots of the class that the blueprint fits.

    One in the middle is full. Empty where the blueprint fits no slot of the class.
    """
    found = sample_slots(blueprint, slots)
    cheap = [slot for slot in found if cost(blueprint, slot).macs * _BATCH <= _MOST_WORK]
    chosen = cheap or found[:1]
    middle = min(1, len(chosen) - 1)
    return [_trial(blueprint, slot, full=number == middle) for number, slot in enumerate(chosen)]


def _trial(blueprint: Blueprint, slot: Interface, *, full: bool) -> Trial:
    generator = torch.Generator().manual_seed(SEED)
    dtype = dtype_of(slot)
    body = build(blueprint, slot, SEED)
    enliven(body, generator)
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in body.state_dict().items()
    }
    x = torch.randn(shape_of(slot, _BATCH), generator=generator).to(dtype)
    inputs = {RANDOM: x, **dict(_others(x, full))}
    gradient = torch.randn(shape_of(slot, _BATCH, out=True), generator=generator).to(dtype)
    return Trial(slot, full, weights, inputs, gradient)


def _others(x: Tensor, full: bool) -> Iterator[tuple[str, Tensor]]:
    for name, factor in FACTORS.items():
        if full or name == LARGE:
            yield name, x * (min(factor, _HALF_LARGE) if x.dtype is torch.float16 else factor)
    if full:
        yield CONSTANT, torch.ones_like(x)
        yield ZEROS, torch.zeros_like(x)


def enliven(body: fx.GraphModule, generator: torch.Generator) -> None:
    """Draw the tail's weights as PyTorch draws those of a layer that is not zero at birth."""
    tails = set(tail_parameters(body))
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if name in tails:
                bound = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.5
                parameter.uniform_(-bound, bound, generator=generator)


def shape_of(slot: Interface, batch: int, *, out: bool = False) -> tuple[int, ...]:
    """Shape of a batch at a slot, at its input or its output."""
    width, spatial = (slot.width_out, slot.spatial_out) if out else (slot.width_in, slot.spatial_in)
    if slot.kind is InterfaceKind.TOKENS:
        return (batch, *spatial, width)
    return (batch, width, *spatial)
