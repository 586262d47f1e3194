"""Whether a seed can be merged into the host's layers without changing anything, and if not, why.

Merged means: outputs, gradients and updates are those of the model with the seed beside it. What would be
equal only until the next update (blocks of zeros that would begin to learn, two biases in place of one) is
refused like what changes the outputs at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from esper_runtime.blueprint import unabsorbable
from esper_runtime.contracts import HostError, SeedStage, SpanGeometry
from esper_runtime.kasmina.dataflow import Call, Op, Trace, Value
from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.operations import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DROPOUTS,
    LINEAR,
    UNCHANGED,
)
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.survey import Place
from esper_runtime.kasmina.taps import Tap
from esper_runtime.kasmina.widening import tensors_along

_LAYERS = {nn.Linear, nn.Conv1d, nn.Conv2d}
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d}
_SEED_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


@dataclass(frozen=True)
class Match:
    """A seed and the host's layers that can take it.

    ``parts`` holds for each host tensor what it is extended by; those of the host that are not in it get
    zeros.
    """

    producer: str
    consumer: str
    norms: tuple[str, ...]
    units: int
    parts: dict[tuple[str, str], Tensor]
    taps: tuple[Tap, ...]


def examine(model: GraftedModel, seed: Seed, trace: Trace) -> Match:
    """Find the layers that ``seed`` can be merged into; ``trace`` is of the host without its seeds.

    Raises:
        HostError: it cannot be merged exactly; the text names slot, module and reason.
    """
    place = model.place(seed.slot)
    refuse = _Refusal(seed)
    _check_seed(seed, place, refuse)
    layers = _chain(seed.body, refuse)
    producer, consumer = _call(trace, place.read, refuse), _call(trace, place.write, refuse)
    ops, hidden = _way(producer, consumer, trace, refuse)
    norms = _matched(model.host, ops, layers[1:-1], producer, refuse)
    parts = _parts_of_layers(model, place, (producer, consumer), (layers[0], layers[-1]), norms, refuse)
    _check_alone(model, trace, [producer.name, *(op.call.name for op, _ in norms), consumer.name], refuse)
    taps = tuple(tap for call in trace.calls for tap in _taps_on(call, hidden))
    _check_other_seeds(model, seed, place, taps, refuse)
    layer: Any = layers[0]
    return Match(
        producer=producer.name,
        consumer=consumer.name,
        norms=tuple(op.call.name for op, _ in norms),
        units=layer.weight.shape[0],
        parts=parts,
        taps=taps,
    )


class _Refusal:
    """Makes the errors of one seed."""

    def __init__(self, seed: Seed) -> None:
        self._seed = seed

    def __call__(self, reason: str) -> HostError:
        seed = self._seed
        return HostError(
            f"seed {seed.identity} ({seed.blueprint.name}) at {seed.slot} cannot be absorbed: {reason}"
        )


def _check_seed(seed: Seed, place: Place, refuse: _Refusal) -> None:
    if seed.stage is not SeedStage.FOSSILIZED:
        raise refuse(f"it is in stage {seed.stage}; only a Fossilized seed is part of the model for good")
    if seed.failure is not None:
        raise refuse(f"it has failed: {seed.failure}")
    if seed.alpha != 1.0:
        raise refuse(f"its alpha is {seed.alpha:.3g}; it must contribute with its whole output")
    if not place.interface.is_span:
        raise refuse(f"it is a residual adapter at {place.read}; there are no two layers that it could widen")
    if (reason := unabsorbable(seed.blueprint)) is not None:
        raise refuse(reason)


def _chain(body: nn.Module, refuse: _Refusal) -> list[nn.Module]:
    """The seed's modules from first to last, without identities."""
    assert isinstance(body, fx.GraphModule)
    modules = []
    for node in body.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op != "call_module":
            raise refuse(f"its {node.name} is no layer of its own and cannot be merged with the host's")
        module = body.get_submodule(node.target)
        if not isinstance(module, nn.Identity):
            modules.append(module)
    return modules


def _call(trace: Trace, tap: Tap, refuse: _Refusal) -> Call:
    calls = [call for call in trace.calls if call.name == tap.module]
    if len(calls) != 1:
        raise refuse(f"the host calls {tap.module!r} {len(calls)} times; it must be used once")
    kind = type(calls[0].module)
    if kind not in _LAYERS:
        raise refuse(
            f"{tap.module!r} is a {kind.__name__}; only plain Linear, Conv1d and Conv2d can be widened"
        )
    return calls[0]


def _way(producer: Call, consumer: Call, trace: Trace, refuse: _Refusal) -> tuple[list[Op], set[Value]]:
    """The operations from producer to consumer in order, and the values between them."""
    value, ops, hidden = consumer.input, list[Op](), set[Value]()
    reader = next((op for op in trace.ops if op.call is consumer), None)
    while value is not None:
        hidden.add(value)
        others = [op for op in value.consumers if op is not reader]
        if others or value in trace.outputs:
            where = f"{others[0].name} in {others[0].call.name!r}" if others else "what the host returns"
            raise refuse(f"the activation between {producer.name!r} and {consumer.name!r} is used by {where}")
        reader = value.producer
        if value is producer.output:
            return list(reversed(ops)), hidden
        if reader is None or len(reader.data) != 1:
            break
        if reader.name in LINEAR | CONVOLUTIONS:
            raise refuse(
                f"{reader.call.name!r} lies between {producer.name!r} and {consumer.name!r}: the merged "
                "layers of a chain would need blocks of zeros, which would begin to learn"
            )
        ops.append(reader)
        value = reader.data[0]
    raise refuse(f"no single path leads from {producer.name!r} to {consumer.name!r}")


def _matched(
    host: nn.Module, ops: list[Op], layers: list[nn.Module], producer: Call, refuse: _Refusal
) -> list[tuple[Op, nn.Module]]:
    """Pairs of a norm of the host and one of the seed; refused where what lies between differs."""
    between = [op for op in ops if op.name not in UNCHANGED and not _inactive_dropout(op)]
    for op in between:
        if op.name in DROPOUTS:
            raise refuse(f"dropout in {op.call.name!r} would drop the seed's units too")
        if op.name not in ACTIVATIONS | {"batch_norm", "group_norm"}:
            raise refuse(f"{op.name} in {op.call.name!r} does not treat each channel or group by itself")
    ours, theirs = [_kind(layer) for layer in layers], [op.name for op in between]
    if ours != theirs:
        raise refuse(
            f"between its layers lies {', '.join(ours) or 'nothing'}, between {producer.name!r} and its "
            f"consumer {', '.join(theirs) or 'nothing'}"
        )
    norms = []
    for op, layer in zip(between, layers, strict=True):
        if op.name in ACTIVATIONS:
            _check_activation(op, layer, refuse)
        else:
            _check_norm(op, host.get_submodule(op.call.name), layer, producer, refuse)
            norms.append((op, layer))
    return norms


def _inactive_dropout(op: Op) -> bool:
    return op.name in DROPOUTS and getattr(op.call.module, "p", None) == 0.0


def _kind(layer: nn.Module) -> str:
    if type(layer) in _BATCH_NORMS:
        return "batch_norm"
    if type(layer) is nn.GroupNorm:
        return "group_norm"
    return _SEED_ACTIVATIONS.get(type(layer), type(layer).__name__)


def _check_activation(op: Op, layer: nn.Module, refuse: _Refusal) -> None:
    (given,) = op.data
    if given.changed_later:
        return
    with torch.no_grad():
        if not torch.equal(layer(given.tensor), op.outputs[0].tensor):
            raise refuse(f"{op.name} in {op.call.name!r} is not the seed's {layer}")


def _check_norm(op: Op, norm: Any, other: Any, producer: Call, refuse: _Refusal) -> None:
    where = f"the norm {op.call.name!r}"
    if type(norm) not in _BATCH_NORMS | {nn.GroupNorm}:
        raise refuse(f"{where} is part of a {type(norm).__name__}; only a plain BatchNorm or GroupNorm grows")
    if isinstance(producer.module, nn.Linear) and len(op.data[0].shape) != 2:
        raise refuse(f"{where} does not normalise the units of {producer.name!r}")
    if isinstance(norm, nn.GroupNorm):
        names = ["eps", "affine"]
        ours, theirs = (n.num_channels // n.num_groups for n in (other, norm))
        if ours != theirs:
            raise refuse(f"{where} has groups of {theirs} channels, the seed's of {ours}")
    else:
        names = ["eps", "momentum", "affine", "track_running_stats", "training"]
        if norm.momentum is None:
            raise refuse(f"{where} averages over all batches so far, of which the seed has seen fewer")
    for name in names:
        if getattr(norm, name) != getattr(other, name):
            raise refuse(f"{where} has {name} {getattr(norm, name)}, the seed's {getattr(other, name)}")


def _parts_of_layers(
    model: GraftedModel,
    place: Place,
    calls: tuple[Call, Call],
    layers: tuple[nn.Module, nn.Module],
    norms: list[tuple[Op, nn.Module]],
    refuse: _Refusal,
) -> dict[tuple[str, str], Tensor]:
    """What each host tensor is extended by."""
    wanted = (place.interface.producer, place.interface.consumer)
    pairs = []
    for call, layer, geometry in zip(calls, layers, wanted, strict=True):
        host: Any = model.host.get_submodule(call.name)
        if type(host) is not type(layer):
            raise refuse(f"{call.name!r} is a {type(host).__name__}, the seed's a {type(layer).__name__}")
        if not isinstance(host, nn.Linear) and (host.groups != 1 or _geometry(layer) != geometry):
            raise refuse(f"{call.name!r} is {host}, the seed's layer {layer}")
        pairs.append((call.name, host, layer))
    pairs += [(op.call.name, model.host.get_submodule(op.call.name), layer) for op, layer in norms]
    (first, producer, ours), (last, *_) = pairs[:2]
    shift = _bias(producer, ours, bool(norms) and _kind(norms[0][1]) == "batch_norm", first, refuse)
    own = {name: (host, layer) for name, host, layer in pairs}
    parts: dict[tuple[str, str], Tensor] = {}
    for module, name, _ in tensors_along(first, (op.call.name for op, _ in norms), last):
        host, layer = own[module]
        theirs, part = getattr(host, name, None), getattr(layer, name, None)
        if theirs is None or part is None:
            continue
        if (theirs.dtype, theirs.device) != (part.dtype, part.device):
            raise refuse(f"{module}.{name} is {theirs.dtype} on {theirs.device}, the seed's {part.dtype}")
        if theirs.requires_grad != part.requires_grad:
            both = ("it", repr(module)) if theirs.requires_grad else (repr(module), "it")
            raise refuse(f"{both[0]} is frozen and {both[1]} learns; one tensor cannot do both")
        if shift is not None and norms and (module, name) == (norms[0][0].call.name, "running_mean"):
            part = part - shift
        parts[module, name] = part
    return parts


def _bias(producer: Any, ours: Any, normalised: bool, name: str, refuse: _Refusal) -> Tensor | None:
    """The seed's bias where it has to go into the running mean: behind it batch norm takes it out anyway."""
    if (producer.bias is None) == (ours.bias is None):
        return None
    if not normalised:
        has, lacks = (repr(name), "its own layer") if ours.bias is None else ("its own layer", repr(name))
        raise refuse(f"{has} has a bias, {lacks} has none, and no batch norm follows that takes it out")
    bias: Tensor | None = ours.bias
    return None if bias is None else bias.detach()


def _geometry(layer: Any) -> SpanGeometry:
    return SpanGeometry(
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _check_alone(model: GraftedModel, trace: Trace, names: list[str], refuse: _Refusal) -> None:
    """The layers and norms must be used once, and their parameters nowhere else."""
    uses: dict[int, list[str]] = {}
    for name, parameter in model.host.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    for name in names:
        if sum(call.name == name for call in trace.calls) != 1:
            raise refuse(f"the host calls {name!r} more than once")
        module = model.host.get_submodule(name)
        for parameter in module.parameters():
            if len(uses[id(parameter)]) > 1:
                raise refuse(f"a weight is shared: {' and '.join(uses[id(parameter)])} are one")
            elsewhere = _elsewhere(trace, parameter, name)
            if elsewhere is not None:
                raise refuse(f"the host uses a weight of {name!r} in {elsewhere!r} too")


def _elsewhere(trace: Trace, parameter: Tensor, name: str) -> str | None:
    for op in trace.ops:
        if op.call.name != name and any(value.tensor is parameter for value in op.inputs):
            return op.call.name or "its own forward"
    return None


def _taps_on(call: Call, hidden: set[Value]) -> Iterator[Tap]:
    if call.input in hidden:
        yield Tap(call.name, "input", call.number)
    if call.output in hidden:
        yield Tap(call.name, "output", call.number)


def _check_other_seeds(
    model: GraftedModel, seed: Seed, place: Place, taps: tuple[Tap, ...], refuse: _Refusal
) -> None:
    """No other seed may touch the activation between, or stand between the seed and its taps."""
    later = False
    for other in model.seeds:
        if other is seed:
            later = True
            continue
        its = model.place(other.slot)
        touched = next((tap for tap in (its.read, its.write) if tap in taps), None)
        if touched is not None:
            raise refuse(f"seed {other.identity} is connected at {touched}, inside the layers to be widened")
        if other.contributing and (
            (later and its.write == place.read) or (not later and its.read == place.write)
        ):
            raise refuse(f"seed {other.identity} at {other.slot} comes between it and {place.read}")
