"""The tensors of one name in many equal modules as one tensor, of which each module's own is a slice.

A module keeps its own parameter and buffer objects; what changes is where their numbers lie. So whoever
changes one, in place or through the optimizer, has changed the stack; nothing is copied from step to step.
"""

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: a slice begins as a tensor of its own would, so that kernels treat both alike."""

_gradient_of, _learns = attrgetter("grad"), attrgetter("requires_grad")


class Stack:
    """One parameter, or one buffer, of each of many modules.

    Args:
        held: the modules' dicts of parameters or buffers; what is in them at the moment counts, also inside
            `functional_call`.
        name: its key in them.
    """

    def __init__(self, held: Sequence[dict[str, Any]], name: str) -> None:
        self._held = held
        self._value = itemgetter(name)
        self._members: list[Tensor] = []
        self._pointers: list[int] = []
        self._whole = torch.empty(0)
        self._gradient: Tensor | None = None
        self._slices: Sequence[Tensor] = ()

    def values(self) -> list[Tensor]:
        """The tensors of the moment."""
        return list(map(self._value, self._held))

    def copied(self) -> Tensor:
        """The tensors as a new one ``[K, ...]``, which autograd sees as made of them."""
        return torch.stack(self.values())

    def shared(self) -> Tensor:
        """The tensors as one ``[K, ...]``, without a gradient, that shares their memory where that can be.

        At the first call, and where a tensor was given other memory since (by ``.to()``, for example), they
        are moved into the memory of a new stack.
        """
        return self._share(self.values())

    def leaf(self) -> Tensor:
        """`shared` as a leaf that hands its gradient on to each parameter's ``grad``, or adds it there.

        What a parameter is given is overwritten in the first pass after its ``grad`` was dropped.
        """
        values = self.values()
        shared = self._share(values)
        if not torch.is_grad_enabled() or not any(map(_learns, values)):
            return shared
        if shared is not self._whole and not all(value.is_leaf for value in values):
            return torch.stack(values)
        leaf = shared.detach().requires_grad_(True)
        leaf.register_post_accumulate_grad_hook(partial(self._hand_on, values))  # type: ignore[no-untyped-call]
        return leaf

    def write(self, new: Tensor) -> None:
        """Give the tensors the values ``new`` ``[K, ...]``."""
        values = self.values()
        with torch.no_grad():
            if self._holds(values):
                self._whole.copy_(new)
            else:
                torch._foreach_copy_(values, list(new.unbind()))

    def _share(self, values: list[Tensor]) -> Tensor:
        if self._holds(values) or self._take_in(values):
            return self._whole
        return torch.stack(values).detach()

    def _holds(self, values: list[Tensor]) -> bool:
        """Whether these are the slices of the stack: the same objects, and nobody gave them other memory."""
        return all(map(is_, values, self._members)) and list(map(Tensor.data_ptr, values)) == self._pointers

    def _take_in(self, values: list[Tensor]) -> bool:
        """Move the tensors into one stack, unless they lie on several devices or in an order of their own."""
        first = values[0]
        like = (first.shape, first.dtype, first.device)
        if any(
            (v.shape, v.dtype, v.device) != like or not v.is_contiguous() or not v.is_leaf for v in values
        ):
            return False
        item = first.element_size()
        apart = -(-first.numel() * item // ALIGNMENT) * ALIGNMENT // item
        room = torch.zeros((len(values), apart), dtype=first.dtype, device=first.device)
        self._whole = room.as_strided((len(values), *first.shape), (apart, *first.stride()))
        with torch.no_grad():
            torch._foreach_copy_(list(self._whole.unbind()), values)
            for value, part in zip(values, self._whole.unbind(), strict=True):
                value.data = part
        self._members, self._pointers = values, list(map(Tensor.data_ptr, values))
        self._gradient, self._slices = None, ()
        return True

    def _hand_on(self, values: list[Tensor], leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        there = list(map(_gradient_of, values))
        if not all(map(_learns, values)):
            _add_each(values, gradient)
        elif all(map(is_, there, repeat(None))):
            if self._gradient is None or self._gradient.shape != gradient.shape:
                self._gradient = torch.empty_like(gradient)
                self._slices = self._gradient.unbind()
            self._gradient.copy_(gradient)
            for value, part in zip(values, self._slices, strict=True):
                value.grad = part
        elif self._gradient is not None and all(map(is_, there, self._slices)):
            self._gradient += gradient
        else:
            _add_each(values, gradient)


def stacks(modules: Sequence[nn.Module], kind: str) -> dict[str, Stack]:
    """Stacks of all tensors of equal modules, by name; ``kind`` is ``_parameters`` or ``_buffers``."""
    found: dict[str, Stack] = {}
    for path, _ in modules[0].named_modules():
        held = [getattr(one.get_submodule(path), kind) for one in modules]
        for name, tensor in held[0].items():
            if tensor is not None:
                found[f"{path}.{name}" if path else name] = Stack(held, name)
    return found


def _add_each(values: list[Tensor], gradient: Tensor) -> None:
    for value, part in zip(values, gradient.unbind(), strict=True):
        if value.requires_grad:
            value.grad = part if value.grad is None else value.grad.add_(part)
