"""Plain models of a wanted size: the built-in hosts made wider or deeper."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from esper_runtime.contracts import InputError, Source
from esper_runtime.tolaria import Cnn, Mlp, Task, Transformer, build_host, parameters_of

Arguments = dict[str, Any]
Shape = Callable[[float, int], Arguments]

LARGEST_FACTOR = 16.0
MOST_EXTRA_LAYERS = 3
ROUNDS = 14
CLOSE = 0.05


@dataclass(frozen=True)
class StaticModel:
    """A model that does not grow: its name in comparisons, what it is, and how it is built."""

    arm: str
    description: str
    source: Source
    parameters: int


@dataclass(frozen=True)
class _Found:
    arguments: Arguments
    parameters: int
    factor: float
    extra: int


def static_models(
    source: Source, task: Task, parameters: int, random_seed: int, directory: Path
) -> list[StaticModel]:
    """The host of ``source`` made wider, and made deeper, each as near to ``parameters`` as widths allow.

    Wider: all widths times one factor. Deeper: one to three more layers, then all widths times the factor
    that meets the size; of these the one whose widths stay nearest to the host's. Empty for a host given by
    an entrypoint or of transformers: what is wider or deeper there, only its author knows.
    """
    if source.builtin is None or source.builtin == "huggingface":
        return []
    shape = _shape(build_host(source, task, random_seed, directory), source.args)

    def size(arguments: Arguments) -> int | None:
        candidate = Source(builtin=source.builtin, args=arguments)
        try:
            return parameters_of(build_host(candidate, task, random_seed, directory))
        except InputError:
            return None

    found = [_search(size, shape, extra, parameters) for extra in range(MOST_EXTRA_LAYERS + 1)]
    models = []
    wider, deeper = found[0], [each for each in found[1:] if each is not None]
    if wider is not None:
        models.append(_named("static wider", "the host made wider", source.builtin, wider))
    if deeper:
        near = [each for each in deeper if abs(each.parameters - parameters) <= CLOSE * parameters]
        best = (
            min(near, key=lambda each: abs(math.log(each.factor)))
            if near
            else min(deeper, key=lambda each: abs(each.parameters - parameters))
        )
        models.append(_named("static deeper", "the host made deeper", source.builtin, best))
    return models


def _search(
    size: Callable[[Arguments], int | None], shape: Shape, extra: int, parameters: int
) -> _Found | None:
    """Bisection over the factor on all widths; the size grows with it."""
    low, high = 1 / LARGEST_FACTOR, LARGEST_FACTOR
    best: _Found | None = None
    known: dict[str, int | None] = {}
    for _ in range(ROUNDS):
        factor = math.sqrt(low * high)
        arguments = shape(factor, extra)
        if (key := repr(arguments)) not in known:
            known[key] = size(arguments)
        found = known[key]
        if found is None:
            return best
        if best is None or abs(found - parameters) < abs(best.parameters - parameters):
            best = _Found(arguments, found, factor, extra)
        if found == parameters:
            break
        low, high = (factor, high) if found < parameters else (low, factor)
    return best


def _shape(host: nn.Module, arguments: Arguments) -> Shape:
    """How a built-in host's arguments follow from a factor on its widths and a number of extra layers."""
    if isinstance(host, Mlp):
        return lambda factor, extra: _mlp(host, arguments, factor, extra)
    if isinstance(host, Cnn):
        return lambda factor, extra: _cnn(host, arguments, factor, extra)
    assert isinstance(host, Transformer)
    return lambda factor, extra: _transformer(host, arguments, factor, extra)


def _mlp(host: Mlp, arguments: Arguments, factor: float, extra: int) -> Arguments:
    layers: list[Any] = list(host.layers)
    widths = [layer.linear.out_features for layer in layers]
    return {**arguments, "hidden": _scaled([*widths, *[widths[-1]] * extra], factor)}


def _cnn(host: Cnn, arguments: Arguments, factor: float, extra: int) -> Arguments:
    layers: list[Any] = list(host.layers)
    convs = [layer.conv for layer in layers]
    channels = [conv.out_channels for conv in convs]
    kernels = [conv.kernel_size[0] for conv in convs]
    strides = [conv.stride[0] for conv in convs]
    kept = {name: value for name, value in arguments.items() if name not in ("width", "depth")}
    return {
        **kept,
        "channels": _scaled([*channels, *[channels[-1]] * extra], factor),
        "kernel": [*kernels, *[kernels[-1]] * extra],
        "stride": [*strides, *[1] * extra],
    }


def _transformer(host: Transformer, arguments: Arguments, factor: float, extra: int) -> Arguments:
    block: Any = host.layers[0]
    heads, width, inner = block.attention.heads, block.mlp.up.in_features, block.mlp.up.out_features
    kept = {name: value for name, value in arguments.items() if name not in ("feedForward", "feed_forward")}
    return {
        **kept,
        "width": heads * max(1, round(width * factor / heads)),
        "feedForward": max(1, round(inner * factor)),
        "depth": len(host.layers) + extra,
    }


def _scaled(widths: list[int], factor: float) -> list[int]:
    return [max(1, round(width * factor)) for width in widths]


def _named(arm: str, what: str, builtin: str, found: _Found) -> StaticModel:
    shown = {name: found.arguments[name] for name in _SHOWN if name in found.arguments}
    words = ", ".join(f"{name} {value}" for name, value in shown.items())
    return StaticModel(
        arm=arm,
        description=f"{what} ({words})",
        source=Source(builtin=builtin, args=found.arguments),
        parameters=found.parameters,
    )


_SHOWN = ("hidden", "channels", "width", "depth")
