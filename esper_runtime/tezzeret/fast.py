"""The pipeline ``fast``: the eager graph, tried once at sample widths of its class and fixed.

A blueprint is data and its operators are a checked list, so building it runs no code but Esper's own and
PyTorch's: it needs no sandbox. What it does to memory is bounded by the sizes of the samples.
"""

import torch

from esper_runtime.blueprint import sample_slots
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Blueprint, Interface, InterfaceKind, KernelError, KernelInterface

_BATCH = 2


def exercise(blueprint: Blueprint, slots: KernelInterface) -> None:
    """Build the blueprint at sample slots of the class and run it forward and backward once.

    Raises:
        KernelError: it fits no slot of the class, or its pass there fails or yields what it must not.
    """
    samples = sample_slots(blueprint, slots)
    if not samples:
        raise KernelError(
            f"{blueprint.name} fits no slot of the class {slots.model_dump_json(by_alias=True)}"
        )
    for slot in samples:
        _try(blueprint, slot)


def _try(blueprint: Blueprint, slot: Interface) -> None:
    dtype = getattr(torch, slot.dtype)
    body = build(blueprint, slot, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tensor_shape(slot, _BATCH), generator=generator).to(dtype)
    x.requires_grad_()
    with torch.random.fork_rng(devices=[]):
        try:
            y = body(x)
            y.sum().backward()
        except torch.OutOfMemoryError:
            raise  # of the device: another time there may be room
        except (RuntimeError, ValueError) as error:
            raise KernelError(f"{blueprint.name} {_at(slot)} fails: {error}"[:1500]) from None
    if y.shape != tensor_shape(slot, _BATCH, out=True):
        raise KernelError(f"{blueprint.name} {_at(slot)} yields {tuple(y.shape)}")
    if torch.count_nonzero(y):
        raise KernelError(f"{blueprint.name} {_at(slot)} is not zero at birth")
    for name, parameter in body.named_parameters():
        if parameter.grad is None or not torch.isfinite(parameter.grad).all():
            raise KernelError(f"{blueprint.name} {_at(slot)}: {name} gets no finite gradient")


def tensor_shape(slot: Interface, batch: int, *, out: bool = False) -> tuple[int, ...]:
    """Shape of a batch at a slot, at its input or its output."""
    width, spatial = (slot.width_out, slot.spatial_out) if out else (slot.width_in, slot.spatial_in)
    if slot.kind is InterfaceKind.TOKENS:
        return (batch, *spatial, width)
    return (batch, width, *spatial)


def _at(slot: Interface) -> str:
    return f"at widths {slot.width_in} and {slot.width_out} with positions {slot.spatial_in}"
