"""A traced model as plain PyTorch: a Python module that anyone can read, and its weights beside it."""

import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter as Argument
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path

from esper_runtime.contracts import InputError
from esper_runtime.tolaria import to_bytes

MODULE = "model.py"
PLAIN_WEIGHTS = "weights.safetensors"

_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "_assert_async")
"""Operators that only check; they are left out."""

_HEAD = '''\
"""{title}

Plain PyTorch: this file and `{weights}` are all that is needed (besides torch and safetensors).

    import model

    net = model.load()
    output = net({call})
"""

import math
import operator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

aten = torch.ops.aten
inf, nan = math.inf, math.nan

WEIGHTS: dict[str, tuple[tuple[int, ...], torch.dtype, bool]] = {{
{table}
}}
"""Shape, type and whether it is a parameter (else a buffer) of each tensor."""


class Model(nn.Module):
    """The network as it computes in evaluation mode, for any number of examples along the first axis."""

    def __init__(self) -> None:
        super().__init__()
        for name, (shape, dtype, learned) in WEIGHTS.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            value = torch.empty(shape, dtype=dtype)
            if learned:
                owner.register_parameter(last, nn.Parameter(value, requires_grad=dtype.is_floating_point))
            else:
                owner.register_buffer(last, value)

    def forward(self{arguments}) -> {returns}:
        """{doc}"""
{body}


def load(folder: str | Path | None = None) -> Model:
    """The network with its weights, in evaluation mode; ``folder`` holds them (default: beside this file)."""
    place = Path(__file__).parent if folder is None else Path(folder)
    model = Model()
    model.load_state_dict(load_file(place / "{weights}"))
    return model.eval()
'''


@dataclass(frozen=True)
class _Source:
    """What is written for one input of the graph."""

    expression: str
    weight: str | None = None


def plain_files(
    program: ExportedProgram,
    host: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    title: str,
) -> dict[str, bytes]:
    """The module and its weights, as the contents of files by name.

    Args:
        program: the traced model.
        host: gives the arguments their names.
        args: positional inputs that it was traced with.
        kwargs: inputs by name that it was traced with.
        output: what the model gave for them.
        title: first line of the module's docstring.

    Raises:
        InputError: the graph holds something that cannot be written as plain Python.
    """
    return _Writer(program, host, args, kwargs, output, title).files()


class _Writer:
    def __init__(
        self,
        program: ExportedProgram,
        host: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        title: str,
    ) -> None:
        self._program = program.run_decompositions({})
        self._host = host
        self._args, self._kwargs = args, kwargs
        self._output = output
        self._title = title
        self._names: dict[Node, str] = {}
        self._taken: set[str] = {"self", "aten", "torch", "operator", "math", "inf", "nan", "nn", "Path"}
        self._lines: list[str] = []
        self._weights: dict[str, tuple[Tensor, bool]] = {}

    def files(self) -> dict[str, bytes]:
        arguments, leaves = self._arguments()
        self._inputs(leaves)
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op not in ("placeholder", "output"):
                raise InputError(f"the graph holds a {node.op} ({node.target}), which has no plain form")
        self._results()
        table = "\n".join(
            f'    "{name}": ({tuple(tensor.shape)}, {tensor.dtype}, {learned}),'
            for name, (tensor, learned) in self._weights.items()
        )
        returns = "Tensor" if isinstance(self._output, Tensor) else "Any"
        text = _HEAD.format(
            title=self._title,
            weights=PLAIN_WEIGHTS,
            call=", ".join(name if kind == "p" else f"{name}={name}" for name, kind, _ in arguments),
            table=table,
            arguments=_signature(arguments),
            returns=returns,
            doc=_shapes(self._output),
            body="\n".join(f"        {line}" for line in self._lines),
        )
        compile(text, MODULE, "exec")
        tensors = {name: tensor for name, (tensor, _) in self._weights.items()}
        return {MODULE: text.encode(), PLAIN_WEIGHTS: to_bytes(tensors)}

    # Inputs

    def _arguments(self) -> tuple[list[tuple[str, str, str]], list[str]]:
        """Name, kind (p: positional, k: by name) and type of each argument; an expression for each leaf."""
        known = [
            name
            for name, argument in signature(self._host.forward).parameters.items()
            if argument.kind in (Argument.POSITIONAL_ONLY, Argument.POSITIONAL_OR_KEYWORD)
        ]
        names = [known[i] if i < len(known) else f"input{i}" for i in range(len(self._args))]
        arguments = [(n, "p", _type(v)) for n, v in zip(names, self._args, strict=True)]
        arguments += [(name, "k", _type(value)) for name, value in self._kwargs.items()]
        self._taken |= {name for name, _, _ in arguments}
        found, _ = tree_flatten_with_path((self._args, self._kwargs))
        return arguments, [_leaf(path, names) for path, _ in found]

    def _inputs(self, leaves: list[str]) -> None:
        program, given = self._program, iter(leaves)
        nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                expression = next(given)
                if expression.isidentifier():
                    self._names[node] = expression
                elif node.users:
                    self._lines.append(f"{self._name(node)} = {expression}")
                continue
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                raise InputError(f"the graph takes a {spec.kind.name.lower()}, which has no plain form")
            if not node.users and spec.kind is InputKind.CONSTANT_TENSOR:
                continue
            target = spec.target or ""
            name = _weight_name(target)
            learned = spec.kind is InputKind.PARAMETER
            self._weights[name] = (self._tensor(target), learned)
            get = "get_parameter" if learned else "get_buffer"
            self._lines.append(f'{self._name(node, name)} = self.{get}("{name}")')

    def _tensor(self, target: str) -> Tensor:
        for source in (self._program.state_dict, self._program.constants):
            if target in source:
                return torch.as_tensor(source[target]).detach()
        raise InputError(f"the graph reads {target}, which the traced model does not hold")

    def _name(self, node: Node, wanted: str | None = None) -> str:
        """A variable for a node, not yet in use."""
        base = re.sub(r"\W", "_", wanted or node.name)
        base = f"w{base}" if base[:1].isdigit() else base
        name, number = base, 1
        while name in self._taken or keyword.iskeyword(name):
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self._names[node] = name
        return name

    # Operations

    def _call(self, node: Node) -> None:
        target: Any = node.target
        words = str(target)
        if any(check in words for check in _CHECKS):
            return
        given = [self._text(value) for value in node.args]
        given += [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
        self._lines.append(f"{self._name(node)} = {_function(target)}({', '.join(given)})")

    def _text(self, value: Any) -> str:
        """An argument as Python."""
        if isinstance(value, Node):
            return self._names[value]
        if isinstance(value, list | tuple):
            inner = ", ".join(self._text(item) for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
        if isinstance(value, torch.device):
            return f'torch.device("{value}")'
        if isinstance(value, slice):
            return f"slice({self._text(value.start)}, {self._text(value.stop)}, {self._text(value.step)})"
        if value is None or isinstance(
            value, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format
        ):
            return repr(value)
        raise InputError(f"the graph has an argument of type {type(value).__name__}, which has no plain form")

    # Outputs

    def _results(self) -> None:
        (end,) = (node for node in self._program.graph.nodes if node.op == "output")
        results = []
        for value, spec in zip(end.args[0], self._program.graph_signature.output_specs, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                results.append(self._text(value))
            elif spec.kind is OutputKind.BUFFER_MUTATION:
                self._lines.append(
                    f'self.get_buffer("{_weight_name(spec.target or "")}").copy_({self._text(value)})'
                )
            else:
                raise InputError(f"the graph gives a {spec.kind.name.lower()}, which has no plain form")
        given = iter(results)
        self._lines.append(f"return {_structure(self._program.call_spec.out_spec, self._output, given)}")


def _structure(spec: TreeSpec | None, output: Any, given: Any) -> str:
    """The output's nesting in Python; a dataclass becomes a dict of its fields."""
    if spec is None or spec.is_leaf():
        return str(next(given))
    inner = [_structure(child, None, given) for child in spec.children()]
    if spec.type is list:
        return f"[{', '.join(inner)}]"
    if issubclass(spec.type, tuple):
        return f"({', '.join(inner)},)"
    names = _keys(spec)
    return "{" + ", ".join(f"{name!r}: {text}" for name, text in zip(names, inner, strict=True)) + "}"


def _keys(spec: TreeSpec) -> list[Any]:
    context: Any = spec.context
    while isinstance(context, list | tuple) and context and isinstance(context[0], list | tuple):
        context = context[0]
    if isinstance(context, Mapping):
        context = list(context)
    if isinstance(context, list | tuple) and len(context) == spec.num_children:
        return list(context)
    if is_dataclass(spec.type):
        return [field.name for field in fields(spec.type)][: spec.num_children]
    raise InputError(f"the output is a {spec.type.__name__}, which has no plain form")


def _weight_name(target: str) -> str:
    """The host's own names; those of seeds behind ``seeds.``."""
    if target.startswith("host."):
        return target.removeprefix("host.")
    found = re.fullmatch(r"living\.(\w+)\.body\.(.+)", target)
    return f"seeds.{found[1]}.{found[2]}" if found else f"constants.{target.replace('.', '_')}"


def _function(target: Callable[..., Any]) -> str:
    if isinstance(target, torch._ops.OpOverload):
        text = str(target)
        return text if text.startswith("aten.") else f"torch.ops.{text}"
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    if module == "_operator":
        return f"operator.{name}"
    if module in ("math", "torch") or module.startswith("torch.fx.experimental.sym_node"):
        return f"{'math' if module == 'math' else 'torch'}.{name}"
    raise InputError(f"the graph calls {module}.{name or target}, which has no plain form")


def _leaf(path: tuple[Any, ...], names: list[str]) -> str:
    """From the pytree path of an input to a Python expression over the arguments."""
    side, which, *inner = path
    text = names[which.idx] if side.idx == 0 else str(which.key)
    for key in inner:
        match key:
            case SequenceKey(idx):
                text += f"[{idx}]"
            case MappingKey(name):
                text += f"[{name!r}]"
            case GetAttrKey(name):
                text += f".{name}"
            case _:
                raise InputError(f"an input is nested in a {type(key).__name__}, which has no plain form")
    return text


def _type(value: Any) -> str:
    return "Tensor" if isinstance(value, Tensor) else "Any"


def _signature(arguments: list[tuple[str, str, str]]) -> str:
    positional = "".join(f", {name}: {kind}" for name, how, kind in arguments if how == "p")
    named = "".join(f", {name}: {kind}" for name, how, kind in arguments if how == "k")
    return positional + (f", *{named}" if named else "")


def _shapes(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"Returns a tensor [{', '.join(['B', *map(str, output.shape[1:])])}]."
    return "Returns what the network gives; a dataclass comes as a dict of its fields."
