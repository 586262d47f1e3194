"""Blueprints become modules: a `torch.fx.GraphModule` that is exactly the zero function at birth.

Weights start as PyTorch starts them, uniform within ``1 / sqrt(fan in)``, but drawn from a generator of the
seed's own; those of the tail are zero. Tensors are batch first: ``[B, C]``, ``[B, C, L]``, ``[B, C, H, W]``,
``[B, T, C]``.
"""

import keyword
import math
from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from esper_runtime.blueprint.call import Call
from esper_runtime.blueprint.fit import fitted
from esper_runtime.blueprint.graph import INPUT, Reference
from esper_runtime.blueprint.structure import first_mixers, tails
from esper_runtime.contracts import Blueprint, Interface, InterfaceKind

BUILDER_VERSION = "1"
"""Raised whenever an operator, a default or the drawing of weights comes to mean something else, so that
kernels made for the old meaning are not taken for the new one."""

_META = "esper"


class Scale(nn.Module):
    """A learned factor for each channel; ``axis`` is the channel axis of its input."""

    def __init__(self, width: int, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` by the factors."""
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return x * self.weight.view(shape)

    def extra_repr(self) -> str:
        """Show the width."""
        return f"{self.weight.numel()}"


def build(blueprint: Blueprint, interface: Interface, seed: int) -> fx.GraphModule:
    """Build a blueprint for a slot: float32 parameters on the CPU, training mode.

    The output has the slot's shape and is exactly zero for every finite input. The same blueprint, interface
    and ``seed`` give the same weights; the global random state is neither read nor changed.

    Raises:
        BlueprintError: the blueprint does not fit the slot (rule ``fit``) or is not valid.
    """
    graph, found = fitted(blueprint, interface)
    zero = set(tails(graph))
    first = set(first_mixers(graph))
    assembler = _Assembler(interface.kind, torch.Generator().manual_seed(seed))
    values: dict[Reference, fx.Node] = {Reference(INPUT): assembler.graph.placeholder("x")}
    for node in graph.nodes.values():
        assembler.enter(node.id, is_tail=node.id in zero, is_head=node.id in first)
        inputs = [values[reference] for reference in node.inputs]
        outputs = BUILDERS[node.operator.name](assembler, found[node.id], inputs)
        for port, output in enumerate(outputs):
            values[Reference(node.id, port)] = output
    assembler.graph.output(values[graph.output])
    return assembler.finish(blueprint.name)


def tail_parameters(module: fx.GraphModule) -> list[str]:
    """Names of the zero-initialised parameters that the output ends in; ``module`` comes from `build`."""
    return list(module.meta[_META]["tail"])


def head_parameters(module: fx.GraphModule) -> list[str]:
    """Names of the parameters of the first weighted operators that read the input, tail excepted.

    Normalisations and activations may lie before them. For low-rank linear it is the first factor, for
    attention the joint projection to queries, keys and values.
    """
    return list(module.meta[_META]["head"])


_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())


class _Assembler:
    """Collects submodules and graph nodes for the operator at hand."""

    def __init__(self, kind: InterfaceKind, generator: torch.Generator) -> None:
        self.kind = kind
        self.graph = fx.Graph()
        self.generator = generator
        self.root = nn.Module()
        self.tail: list[str] = []
        self.head: list[str] = []
        self.id = ""
        self.is_tail = self.is_head = False

    def enter(self, id_: str, is_tail: bool, is_head: bool) -> None:
        self.id, self.is_tail, self.is_head = id_, is_tail, is_head

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in this kind's tensors."""
        return -1 if self.kind in (InterfaceKind.FEATURES, InterfaceKind.TOKENS) else 1

    def module(
        self, module: nn.Module, x: fx.Node, part: str = "", first: bool = True, last: bool = True
    ) -> fx.Node:
        """Add a submodule, initialised, and call it; ``part`` tells those of one operator apart.

        ``first`` and ``last`` say which end of the operator it is: only the last is zero in a tail, only the
        first belongs to a head.
        """
        name = self._free_name(self.id + part)
        self.root.add_module(name, module)
        names = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        zero = self.is_tail and last
        _initialise(module, self.generator, zero)
        if zero:
            self.tail += names
        elif self.is_head and first:
            self.head += names
        return self.graph.call_module(name, (x,))

    def function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_method(name, args, kwargs)

    def channels_first(self, x: fx.Node, work: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Do work that wants ``[B, C, ...]``."""
        if self.kind is not InterfaceKind.TOKENS:
            return work(x)
        return self.method("transpose", work(self.method("transpose", x, 1, 2)), 1, 2)

    def channels_last(self, x: fx.Node, work: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Do work that wants ``[B, ..., C]``."""
        if self.channel_axis == -1:
            return work(x)
        return self.method("movedim", work(self.method("movedim", x, 1, -1)), -1, 1)

    def learns_before(self, x: fx.Node) -> bool:
        """Whether parameters lie between the input and a value, so that it has a gradient of its own."""
        left, seen = [x], {x}
        while left:
            node = left.pop()
            if node.op == "call_module":
                module = self.root.get_submodule(str(node.target))
                if next(module.parameters(), None) is not None:
                    return True
            left += [before for before in node.all_input_nodes if before not in seen]
            seen.update(left)
        return False

    def finish(self, name: str) -> fx.GraphModule:
        self.graph.lint()
        class_name = "".join(part.capitalize() for part in name.split("-"))
        module = fx.GraphModule(self.root, self.graph, class_name)
        module.meta[_META] = {"tail": tuple(self.tail), "head": tuple(self.head)}
        return module

    def _free_name(self, wanted: str) -> str:
        """A node id that Python or `nn.Module` has taken gets a trailing ``_``."""
        while keyword.iskeyword(wanted) or hasattr(self.root, wanted) or hasattr(_EMPTY, wanted):
            wanted += "_"
        return wanted


def _initialise(module: nn.Module, generator: torch.Generator, zero: bool) -> None:
    """Fill in the weights of a linear map or convolution; other modules keep theirs, unless zero."""
    with torch.no_grad():
        if zero:
            for parameter in module.parameters():
                parameter.zero_()
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=generator)


def _bare(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A module with memory for its weights but nothing in it, so that the global random state is left alone.

    `torch.nn.utils.skip_init` would do the same in several times the time: on the meta device torch goes
    through Python for each number that it does not draw.
    """
    module = _UNDRAWN[kind](*args, **kwargs)
    module.__class__ = kind
    return module


_UNDRAWN: Mapping[type[nn.Module], type[nn.Module]] = {
    kind: type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
}
"""The same kinds of module, which do not draw their first weights."""


Outputs = list[fx.Node]
OperatorBuilder = Callable[[_Assembler, Call, list[fx.Node]], Outputs]


def _linear(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return [a.module(_bare(nn.Linear, call.inputs[0].width, call.width(), bias=call.flag("bias")), inputs[0])]


def _low_rank_linear(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    rank = call.width("rank")
    down = a.module(
        _bare(nn.Linear, call.inputs[0].width, rank, bias=False), inputs[0], part="_down", last=False
    )
    return [
        a.module(_bare(nn.Linear, rank, call.width(), bias=call.flag("bias")), down, part="_up", first=False)
    ]


def _convolution(a: _Assembler, call: Call, x: fx.Node, width: int, groups: int) -> Outputs:
    g = call.conv_geometry()
    even = g.before == g.after
    conv = _bare(
        nn.Conv2d if len(g.kernel) == 2 else nn.Conv1d,
        call.inputs[0].width,
        width,
        g.kernel,
        stride=g.stride,
        padding=g.before if even else 0,
        dilation=g.dilation,
        groups=groups,
        bias=call.flag("bias"),
    )

    def work(y: fx.Node) -> fx.Node:
        if not even:
            y = a.function(functional.pad, y, (g.before[0], g.after[0]))
        return a.module(conv, y)

    return [a.channels_first(x, work)]


def _conv(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return _convolution(a, call, inputs[0], call.width(), call.integer("groups"))


def _depthwise_conv(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    width = call.inputs[0].width
    return _convolution(a, call, inputs[0], width, width)


def _pointwise_conv(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    conv = nn.Conv2d if len(call.inputs[0].spatial) == 2 else nn.Conv1d
    module = _bare(conv, call.inputs[0].width, call.width(), 1, bias=call.flag("bias"))
    return [a.module(module, inputs[0])]


def _attention(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    inner, heads, bias = call.width("inner"), call.integer("heads"), call.flag("bias")

    def work(x: fx.Node) -> fx.Node:
        joint = a.module(
            _bare(nn.Linear, call.inputs[0].width, 3 * inner, bias=bias), x, part="_qkv", last=False
        )
        parts = a.method("unflatten", joint, -1, (3, heads, inner // heads))
        query, key, value = (a.method("transpose", a.method("select", parts, 2, i), 1, 2) for i in range(3))
        seen = a.function(
            functional.scaled_dot_product_attention, query, key, value, is_causal=call.flag("causal")
        )
        mixed = a.method("flatten", a.method("transpose", seen, 1, 2), 2)
        return a.module(_bare(nn.Linear, inner, call.width(), bias=bias), mixed, part="_out", first=False)

    return [a.channels_last(inputs[0], work)]


def _layer_norm(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    norm = nn.LayerNorm(call.inputs[0].width, elementwise_affine=call.flag("affine"))
    return [a.channels_last(inputs[0], lambda x: a.module(norm, x))]


def _rms_norm(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    norm = nn.RMSNorm(call.inputs[0].width, elementwise_affine=call.flag("affine"))
    return [a.channels_last(inputs[0], lambda x: a.module(norm, x))]


def _group_norm(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    norm = nn.GroupNorm(call.integer("groups"), call.inputs[0].width, affine=call.flag("affine"))
    x = inputs[0]
    if a.kind is InterfaceKind.IMAGE and not a.learns_before(x):
        # Where channels lie last and x needs no gradient, the backward pass of torch 2.13 crashes.
        x = a.method("contiguous", x)
    return [a.channels_first(x, lambda x: a.module(norm, x))]


def _batch_norm(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    norm = nn.BatchNorm2d if len(call.inputs[0].spatial) == 2 else nn.BatchNorm1d
    module = norm(call.inputs[0].width, affine=call.flag("affine"))
    return [a.channels_first(inputs[0], lambda x: a.module(module, x))]


def _activation(kind: Callable[[], nn.Module]) -> OperatorBuilder:
    return lambda a, call, inputs: [a.module(kind(), inputs[0])]


def _span_activation(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return BUILDERS[str(call.interface.activation)](a, call, inputs)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> OperatorBuilder:
    def build_fold(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
        total = inputs[0]
        for other in inputs[1:]:
            total = a.function(function, total, other)
        return [total]

    return build_fold


def _concat(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return [a.function(torch.cat, inputs, dim=a.channel_axis)]


def _split(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    parts = call.integer("parts")
    chunks = a.method("chunk", inputs[0], parts, a.channel_axis)
    return [a.function(getitem, chunks, i) for i in range(parts)]


def _position_axes(a: _Assembler, call: Call) -> list[int]:
    first = 1 if a.channel_axis == -1 else 2
    return [first + i for i in range(len(call.inputs[0].spatial))]


def _global_pool(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return [a.method("mean", inputs[0], _position_axes(a, call), keepdim=True)]


def _broadcast(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    value, like = inputs
    sizes: list[int | fx.Node] = [-1] * (2 + len(call.inputs[0].spatial))
    for axis in _position_axes(a, call):
        sizes[axis] = a.method("size", like, axis)
    return [a.method("expand", value, *sizes)]


def _scale(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return [a.module(Scale(call.inputs[0].width, a.channel_axis), inputs[0])]


def _dropout(a: _Assembler, call: Call, inputs: list[fx.Node]) -> Outputs:
    return [a.module(nn.Dropout(float(call.attributes["rate"])), inputs[0])]


BUILDERS: Mapping[str, OperatorBuilder] = {
    "linear": _linear,
    "low_rank_linear": _low_rank_linear,
    "conv": _conv,
    "depthwise_conv": _depthwise_conv,
    "pointwise_conv": _pointwise_conv,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "relu": _activation(nn.ReLU),
    "gelu": _activation(nn.GELU),
    "silu": _activation(nn.SiLU),
    "tanh": _activation(nn.Tanh),
    "sigmoid": _activation(nn.Sigmoid),
    "identity": _activation(nn.Identity),
    "span_activation": _span_activation,
    "add": _fold(torch.add),
    "multiply": _fold(torch.mul),
    "concat": _concat,
    "split": _split,
    "global_pool": _global_pool,
    "broadcast": _broadcast,
    "scale": _scale,
    "dropout": _dropout,
}
"""How each graph operator becomes nodes of the module's graph, by operator name."""
