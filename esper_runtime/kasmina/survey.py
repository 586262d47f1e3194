"""Where seeds can be planted in a host: the places found in a probe forward, and why others are none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from esper_runtime.contracts import HostError, InterfaceKind, ModuleSummary
from esper_runtime.kasmina.causality import Causality, replaced
from esper_runtime.kasmina.dataflow import Trace, Value, irregular, tensors_in
from esper_runtime.kasmina.forms import Forms
from esper_runtime.kasmina.places import Place, Refusal, find_places
from esper_runtime.kasmina.probe import check_supported, observe, record
from esper_runtime.kasmina.taps import Graft, Tap

__all__ = ["Place", "Refusal", "Survey", "survey"]

_ALIASED = "the host uses this tensor through another name as well, so adding here would change its function"


@dataclass(frozen=True)
class Survey:
    """Places of a host in the order of execution, refused candidates, and its modules in call order."""

    places: tuple[Place, ...]
    refused: tuple[Refusal, ...]
    modules: tuple[ModuleSummary, ...]


def survey(
    host: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Survey:
    """Find the places of a host from forward passes on an example.

    The passes run in evaluation mode on copies that share the parameters: the host, its flags, buffers and
    hooks and all random generators are left bit for bit as they were. At every place that is returned, a
    graft that adds zero has been tried and has left the host's output exactly as it was.

    Args:
        host: the model; any `nn.Module` that `copy.deepcopy` can copy.
        args: positional arguments of its forward pass; the first axis of tensors is the batch.
        kwargs: keyword arguments.
        include: globs over place ids; only matching places are returned.
        exclude: globs over place ids that are left out.

    Raises:
        HostError: the host cannot hold seeds as it is (compiled, scripted, quantised, wrapped for parallel
            training, fails on the example ...); a glob of ``include`` matches none of its places, or
            ``exclude`` leaves none.
    """
    check_supported(host)
    trace = record(host, args, kwargs)
    if not trace.outputs:
        raise HostError(f"the host ({type(host).__name__}) returned no tensor; give a host that returns one")
    forms = Forms(trace, *_batch(host, args, kwargs))
    if (name := forms.time_first(trace)) is not None:
        raise HostError(
            f"the host puts time before the batch (module {name!r} has batch_first=False); give a host whose "
            "inputs and layers have the batch first"
        )
    found, refused = find_places(trace, forms)
    for place in _intrusive(host, args, kwargs, list(found)):
        del found[place]
        refused.append(Refusal(place.id, _ALIASED))
    chosen = _chosen(found, refused, include, exclude)
    causal = _causal(host, args, kwargs, trace, forms, chosen)
    places = tuple(
        replace(
            place,
            position=position,
            interface=place.interface.model_copy(update={"causal": place in causal}),
        )
        for position, place in enumerate(chosen)
    )
    return Survey(places, tuple(refused), _modules(trace))


def _batch(
    host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, dict[Tap, tuple[int, ...]]]:
    """Examples in the batch, and the shapes at all taps for twice as many; empty where the host refuses."""
    tensors = list(tensors_in((args, kwargs)))
    first = next((tensor for tensor in tensors if tensor.ndim and not irregular(tensor)), None)
    if first is None:
        raise HostError(
            "the example input holds no tensor with a batch axis; give tensors whose first axis is the batch"
        )
    batch = first.shape[0]
    twice = [torch.cat([t, t]) if t.ndim and not irregular(t) and t.shape[0] == batch else t for t in tensors]
    doubled_args, doubled_kwargs = replaced((args, kwargs), iter(twice))
    shapes: dict[Tap, tuple[int, ...]] = {}

    def see(tap: Tap, tensor: Tensor) -> None:
        shapes[tap] = () if irregular(tensor) else tuple(tensor.shape)

    try:
        observe(host, doubled_args, doubled_kwargs, see)
    except HostError:
        # A host for one number of examples only: the axes are judged by the sizes in the probe.
        return batch, {}
    return batch, shapes


class _Zero:
    """Adds zero."""

    def contribute(self, x: Tensor, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


def _intrusive(
    host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[Place]
) -> list[Place]:
    """Those of ``places`` at which adding zero changes the host's output."""

    def output(grafted: Iterable[Place]) -> list[Tensor]:
        def attach(copied: nn.Module) -> None:
            for place in grafted:
                Graft(place.read, place.write, _Zero().contribute).attach(copied)

        return list(tensors_in(observe(host, args, kwargs, lambda tap, tensor: None, attach)))

    bare = output(())
    # A host that does not repeat itself cannot be compared.
    if not _equal(bare, output(())) or _equal(bare, output(places)):
        return []
    return [place for place in places if not _equal(bare, output([place]))]


def _equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        for one, other in zip(ones, others, strict=True)
    )


def _chosen(
    found: dict[Place, Value], refused: list[Refusal], include: Sequence[str], exclude: Sequence[str]
) -> dict[Place, Value]:
    """Places that the globs choose."""
    if not found:
        return {}
    names = ", ".join(place.id for place in found)
    for glob in include:
        if not any(fnmatchcase(place.id, glob) for place in found):
            reasons = [f"{r.place} is refused: {r.reason}" for r in refused if fnmatchcase(r.place, glob)]
            raise HostError("; ".join([f"no place matches {glob!r}; the host's places: {names}", *reasons]))
    chosen = {
        place: value
        for place, value in found.items()
        if any(fnmatchcase(place.id, glob) for glob in include)
        and not any(fnmatchcase(place.id, glob) for glob in exclude)
    }
    if not chosen:
        raise HostError(f"{', '.join(map(repr, exclude))} excludes every place; the host's places: {names}")
    return chosen


def _causal(
    host: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    trace: Trace,
    forms: Forms,
    places: dict[Place, Value],
) -> set[Place]:
    """The places at which the host is causal, found by trying."""
    kinds = (InterfaceKind.SEQUENCE, InterfaceKind.TOKENS)
    ordered = {place: value for place, value in places.items() if place.interface.kind in kinds}
    if not ordered:
        return set()
    axes = {
        Tap(call.name, "output", call.number): forms.axes[call.output]
        for call in trace.calls
        if call.output is not None and call.output in forms.axes and len(call.output.shape) == 3
    }
    causality = Causality(host, args, kwargs, axes)
    return {place for place, value in ordered.items() if causality.at(value, trace)}


def modules_of(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ModuleSummary, ...]:
    """Every module of a host without seeds that an example calls, in the order of its first call."""
    return _modules(record(host, args, kwargs))


def _modules(trace: Trace) -> tuple[ModuleSummary, ...]:
    """Every module of the host that was called, in the order of its first call."""
    return tuple(
        ModuleSummary(
            name=call.name,
            kind=type(call.module).__name__,
            parameters=sum(parameter.numel() for parameter in call.module.parameters()),
            output_shape=None if call.output is None else call.output.shape,
        )
        for call in trace.calls
        if call.number == 0 and call.parent is not None
    )
