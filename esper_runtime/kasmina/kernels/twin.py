"""The compiled twin of an eager body: the same parameters, forward and backward by native code."""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.function import once_differentiable

from esper_runtime.contracts import KernelError
from esper_runtime.kasmina.kernels.compiled import CompiledParts


def arguments(body: nn.Module) -> dict[str, Tensor]:
    """The tensors that compiled parts take after their inputs, by name: parameters, then numeric buffers."""
    buffers = {name: buffer for name, buffer in body.named_buffers() if buffer.is_floating_point()}
    return dict(body.named_parameters()) | buffers


class Twin(nn.Module):
    """A module with the eager body's own submodules, so with its parameters, buffers and names.

    Where the compiled parts do not serve, the eager body runs: for sizes below those that they were made for,
    another dtype or device, mixed precision, under `torch.func`, while it is traced or exported; and, of
    parts without a backward pass, in training mode and where a gradient is needed.

    Attributes:
        eager: the body.
        compiled_calls: how many calls the compiled parts have served.
    """

    eager: nn.Module

    def __init__(self, body: nn.Module, parts: CompiledParts) -> None:
        """Join a body and compiled parts.

        Args:
            body: eager, of the kernel that ``parts`` come from.
            parts: loaded.

        Raises:
            KernelError: the body has other tensors than the parts want.
        """
        super().__init__()
        given = {name: tuple(tensor.shape) for name, tensor in arguments(body).items()}
        wanted = dict(zip(parts.call.tensors, parts.call.shapes, strict=True))
        if list(given.items()) != list(wanted.items()):
            raise KernelError(f"the compiled parts want the tensors {wanted}; the body has {given}")
        for name, child in body.named_children():
            self.add_module(name, child)
        self.training = body.training
        # Not registered: its submodules are here under their own names already.
        self.__dict__["eager"] = body
        self.compiled_calls = 0
        self._parts = parts
        self._places = tuple(_place(body, name) for name in given)
        self._learned = tuple(name in parts.call.learned for name in given)
        self._dtype = next(iter(arguments(body).values())).dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self)(copy.deepcopy(self.eager, memo), self._parts)
        memo[id(self)] = twin
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """What the eager body yields for ``x``."""
        result: Tensor
        tensors = [held[name] for held, name in self._places]
        learns = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors))
        if not self._serves(x, tensors, learns):
            result = self.eager(x)
        else:
            self.compiled_calls += 1
            x = _aligned(x)
            if learns:
                result = _Joined.apply(self._parts, self._learned, x, *tensors)  # type: ignore[no-untyped-call]
            else:
                result = self._parts.forward(x, tensors)
        return result

    def _serves(self, x: Tensor, tensors: list[Tensor], learns: bool) -> bool:
        parts = self._parts
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            return False  # whoever looks at each operation would see none of the compiled parts'
        if type(x) is not Tensor or any(map(is_functorch_wrapped_tensor, (x, *tensors))):
            return False
        if x.dtype != self._dtype or x.device.type != "cpu" or not parts.call.serves(x.shape):
            return False
        if (self.training or learns) and not parts.trains:
            return False
        if torch.is_autocast_enabled(x.device.type):
            return False
        return all(
            t.shape == shape and t.dtype == self._dtype and t.device == x.device and t.is_contiguous()
            for t, shape in zip(tensors, parts.call.shapes, strict=True)
        )


def _place(body: nn.Module, name: str) -> tuple[dict[str, Tensor], str]:
    """Where a tensor is looked up at each call, so that one put in its place is seen."""
    path, _, last = name.rpartition(".")
    owner: Any = body.get_submodule(path)
    return (owner._parameters if last in owner._parameters else owner._buffers), last


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, and at an address that vector instructions may assume."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


class _Joined(torch.autograd.Function):
    """Forward by one part; backward by the other, which computes the forward pass it needs again."""

    @staticmethod
    def forward(
        ctx: Any, parts: CompiledParts, learned: tuple[bool, ...], x: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.parts, ctx.learned = parts, learned
        return parts.forward(x, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        first, *rest = ctx.parts.backward(x, _aligned(gradient), tensors)
        of_learned = iter(rest)
        of_tensors = (next(of_learned) if learns else None for learns in ctx.learned)
        return (None, None, first, *of_tensors)
