"""A blueprint's module as two programs without weights: its forward pass, and its vector-Jacobian product.

Weights, buffers and inputs are arguments of both; the sizes of the batch and of every axis of positions stay
free. What a module does differently in training than in evaluation (batch statistics, dropout) has no such
program: of a blueprint that has any, only the forward pass of evaluation is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.func import functional_call
from torch.fx.experimental import _config as shape_settings
from torch.fx.experimental.proxy_tensor import make_fx

from esper_runtime.blueprint import sample_slots
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Blueprint, Interface, InterfaceKind, KernelError, KernelInterface
from esper_runtime.kasmina.kernels import arguments
from esper_runtime.tezzeret.fast import tensor_shape

ONLY_EVALUATED = frozenset({"batch_norm", "dropout"})
"""Operators that keep state or draw numbers in training."""

_AXIS = "axis of positions"


@dataclass(frozen=True)
class Program:
    """A program and a set of arguments that it was traced with."""

    graph: ExportedProgram
    arguments: tuple[Tensor, ...]


@dataclass(frozen=True)
class Traced:
    """What there is to compile.

    Attributes:
        forward: from x and the tensors of `arguments` to the output.
        backward: from x, the output's gradient and the tensors to the gradients of x and the parameters;
            None where the blueprint can only be evaluated.
        tensors: shapes of the parameters and buffers by name, in the order of the arguments.
        learned: names of the parameters among them.
        channel: axis of x whose size is fixed.
        least: least size of each other axis, batch first.
    """

    forward: Program
    backward: Program | None
    tensors: dict[str, tuple[int, ...]]
    learned: tuple[str, ...]
    channel: int
    least: tuple[int, ...]


def trace(blueprint: Blueprint, slots: KernelInterface) -> Traced:
    """Trace a blueprint for the exact widths of a class.

    Raises:
        KernelError: the class has a range of widths, the blueprint does not fit it, or it cannot be traced
            with free sizes; the text says why.
    """
    if (slots.least_in, slots.least_out) != (slots.most_in, slots.most_out):
        raise KernelError("compiled kernels are made for exact widths; the class has a range of them")
    samples = sample_slots(blueprint, slots)
    if not samples:
        words = slots.model_dump_json(by_alias=True)
        raise KernelError(f"{blueprint.name} fits no slot of the class {words}")
    trains = not any(node.op in ONLY_EVALUATED for node in blueprint.nodes)
    body = build(blueprint, samples[0], seed=0).to(dtype=getattr(torch, slots.dtype))
    body.eval().requires_grad_(False)
    try:
        return _trace(body, samples[0], trains)
    except KernelError:
        raise
    except Exception as error:  # tracing raises errors of many kinds, none of them ours
        first = str(error).strip().partition("\n")[0]
        raise KernelError(
            f"{blueprint.name} cannot be traced with free sizes: {type(error).__name__}: {first}"[:1500]
        ) from error


def _trace(body: fx.GraphModule, sample: Interface, trains: bool) -> Traced:
    named = arguments(body)
    names, tensors = tuple(named), tuple(named.values())
    parameters = {name for name, _ in body.named_parameters()}
    x = _example(body, sample, tensors)

    def forward(x: Tensor, *tensors: Tensor) -> Tensor:
        result: Tensor = functional_call(body, dict(zip(names, tensors, strict=True)), (x,))
        return result

    with torch.no_grad():
        # Compiled for blocks of memory, which is how a twin passes all tensors.
        gradient = torch.randn_like(forward(x, *tensors), memory_format=torch.contiguous_format)
    first = _exported(forward, (x, *tensors), free=1)
    channel = x.dim() - 1 if sample.kind in (InterfaceKind.FEATURES, InterfaceKind.TOKENS) else 1
    least = _least_sizes(first, channel)
    second = None
    if trains:

        def backward(x: Tensor, gradient: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            x, *given = (tensor.detach() for tensor in (x, *tensors))
            learned = [x, *(t for n, t in zip(names, given, strict=True) if n in parameters)]
            for tensor in learned:
                tensor.requires_grad_()
            return torch.autograd.grad(forward(x, *given), learned, gradient)

        example = (x, gradient, *tensors)
        with shape_settings.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            plain = make_fx(backward, tracing_mode="symbolic")(*example)

        def tied(x: Tensor, gradient: Tensor, *tensors: Tensor) -> Any:
            for given, needed in zip(gradient.shape, forward(x, *tensors).shape, strict=True):
                torch._check(given == needed)  # type: ignore[no-untyped-call]
            return plain(x, gradient, *tensors)

        second = _exported(tied, example, free=2)
        pairs = zip(least, _least_sizes(second, channel), strict=True)
        least = tuple(max(pair) for pair in pairs)
    return Traced(
        forward=Program(first, (x, *tensors)),
        backward=None if second is None else Program(second, (x, gradient, *tensors)),
        tensors={name: tuple(tensor.shape) for name, tensor in named.items()},
        learned=tuple(name for name in names if name in parameters),
        channel=channel,
        least=least,
    )


def _example(body: nn.Module, sample: Interface, tensors: Sequence[Tensor]) -> Tensor:
    """An input whose free sizes differ from one another and from every other size in sight.

    The tracer could take sizes that happen to be equal for one and the same.
    """
    taken = {size for tensor in tensors for size in tensor.shape} | {sample.width_in, sample.width_out}
    fresh = (size for size in count(5) if size not in taken)
    batch = next(fresh)
    spatial = []
    for least, stride in zip(sample.spatial_in, sample.stride, strict=True):
        taken.add(batch)
        size = next(n * stride for n in count(-(-least // stride)) if not {n, n * stride} & taken)
        taken |= {size, size // stride}
        spatial.append(size)
    shape = tensor_shape(sample.model_copy(update={"spatial_in": tuple(spatial)}), batch)
    parameter = next(body.parameters())
    return torch.randn(shape, dtype=parameter.dtype)


class _Calls(nn.Module):
    """A function as a module that owns nothing, as exporting wants it."""

    function: Any

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.__dict__["function"] = function

    def forward(self, *arguments: Tensor) -> Any:
        return self.function(*arguments)


def _exported(function: Any, example: tuple[Tensor, ...], free: int) -> ExportedProgram:
    """``function`` exported; sizes of its first ``free`` arguments may change where the function allows."""
    sizes = tuple(
        dict.fromkeys(range(tensor.dim()), Dim.AUTO) if position < free else None
        for position, tensor in enumerate(example)
    )
    return export(_Calls(function), example, dynamic_shapes=(sizes,), strict=False)


def _least_sizes(program: ExportedProgram, channel: int) -> tuple[int, ...]:
    """The least size of each axis of the first argument but ``channel``: they must be free.

    Raises:
        KernelError: the program has fixed one of them.
    """
    seen = next(node for node in program.graph.nodes if node.op == "placeholder").meta["val"].shape
    least = []
    for axis, size in enumerate(seen):
        if axis == channel:
            continue
        expression = None if isinstance(size, int) else size.node.expr
        if expression is None or not expression.is_Symbol:
            what = "batch" if axis == 0 else f"{_AXIS} {axis}"
            raise KernelError(f"it works for {what} of size {size} only, and would have to work for any")
        bounds = program.range_constraints.get(expression)
        least.append(2 if bounds is None else max(2, int(bounds.lower)))
    return tuple(least)
