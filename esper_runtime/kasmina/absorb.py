"""Absorption: a fossilized widening becomes part of the two host layers that it lies beside.

Afterwards these are plain wider layers; the seed, its module and its hooks are gone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from esper_runtime.contracts import Absorbed, Event, HostError, SeedStage
from esper_runtime.kasmina.absorbable import Match, examine
from esper_runtime.kasmina.changes import Journal, nowhere
from esper_runtime.kasmina.dataflow import Trace, tensors_in
from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.measure import evaluating
from esper_runtime.kasmina.probe import copy_host, fresh, record, run
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.widening import Absorption, Move, narrow, tensors_along, widen

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest change of the output, over its scale, at which the layers are taken for the same; else 0.1."""


@dataclass(frozen=True)
class Merged:
    """An absorbed seed, and how its parameters went into the host's: what an optimizer must follow."""

    absorption: Absorption
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Report:
    """What `absorb_all` did: seeds absorbed, and those that stay, by id with the reason."""

    merged: tuple[Merged, ...]
    refused: dict[str, str]


def absorb(
    model: GraftedModel,
    identity: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    journal: Journal = nowhere,
) -> Merged:
    """Merge a fossilized widening into the host's layers.

    Outputs and gradients stay what they were, up to rounding. The host's parameters stay the same objects,
    with larger data and no gradient; an optimizer that holds them must follow (`GroupedOptimizer.absorb`).

    Args:
        model: the grown model.
        identity: id of the seed.
        args: an example to trace the host with: what it is called with.
        kwargs: the same, by keyword.
        journal: is given the event before anything changes.

    Raises:
        HostError: it cannot be done exactly; the text names slot, module and reason, and nothing has changed.
    """
    seed, kwargs = model.seed(identity), kwargs or {}
    match = examine(model, seed, _trace(model, args, kwargs))
    absorption = _absorption(model.host, seed, match)
    with evaluating(model):
        _try(model, seed, absorption, match, (args, kwargs))
    journal(_event(seed, absorption))
    moves = _moves(model.host, absorption, match)
    widen(model.host, absorption, match.parts)
    model.discard(seed)
    model.note_absorbed(absorption)
    return Merged(absorption, moves)


def absorb_all(
    model: GraftedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    journal: Journal = nowhere,
) -> Report:
    """Absorb every fossilized seed that can be, in the order of germination; the others stay as they are.

    ``journal`` is given an event for each, also for those that stay, with the reason.
    """
    merged: list[Merged] = []
    refused: dict[str, str] = {}
    for seed in list(model.seeds):
        if seed.stage is not SeedStage.FOSSILIZED:
            continue
        try:
            merged.append(absorb(model, seed.identity, args, kwargs, journal))
        except HostError as error:
            refused[seed.identity] = str(error)
            journal(_event(seed, None, str(error)))
    return Report(tuple(merged), refused)


def _trace(model: GraftedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    with model.bare():
        return record(model.host, args, kwargs)


def _absorption(host: nn.Module, seed: Seed, match: Match) -> Absorption:
    parameters = sum(
        part.numel() for (module, name), part in match.parts.items() if _is_parameter(host, module, name)
    )
    producer: Any = host.get_submodule(match.producer)
    if producer.bias is not None and (match.producer, "bias") not in match.parts:
        parameters += match.units
    return Absorption(
        seed=seed.identity,
        slot=seed.slot,
        name=seed.blueprint.name,
        blueprint=seed.blueprint_id,
        producer=match.producer,
        consumer=match.consumer,
        norms=match.norms,
        units=match.units,
        taps=tuple(map(str, match.taps)),
        parameters=parameters,
        macs=seed.price.macs,
    )


def _is_parameter(host: nn.Module, module: str, name: str) -> bool:
    return name in host.get_submodule(module)._parameters


def _moves(host: nn.Module, absorption: Absorption, match: Match) -> tuple[Move, ...]:
    moves = []
    for module, name, axis in tensors_along(absorption.producer, absorption.norms, absorption.consumer):
        parameter = getattr(host.get_submodule(module), name, None)
        if isinstance(parameter, Parameter):
            part = match.parts.get((module, name))
            moves.append(Move(parameter, axis, part if isinstance(part, Parameter) else None))
    return tuple(moves)


def _try(
    model: GraftedModel,
    seed: Seed,
    absorption: Absorption,
    match: Match,
    example: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    """Raise `HostError` where the wider layers give another output on the example; all is as it was.

    What a host does in Python (branches on widths, code that counts channels) no trace shows.
    """
    before = _outputs(model.host, *example)
    kept = {
        id(parameter): (parameter, parameter.data, parameter.grad) for parameter in model.host.parameters()
    }
    buffers = dict(model.host.named_buffers())
    alpha, seed.alpha = seed.alpha, 0.0
    widen(model.host, absorption, match.parts)
    try:
        problem = _problem(before, _outputs(model.host, *example))
    except HostError as error:
        problem = str(error)
    finally:
        narrow(model.host, absorption)
        seed.alpha = alpha
        for parameter, data, gradient in kept.values():
            parameter.data = data
            parameter.grad = gradient
        for name, buffer in buffers.items():
            path, _, own = name.rpartition(".")
            setattr(model.host.get_submodule(path), own, buffer)
    if problem is not None:
        raise HostError(
            f"seed {seed.identity} ({seed.blueprint.name}) at {seed.slot} cannot be absorbed: with "
            f"{absorption.producer!r} and {absorption.consumer!r} wider, {problem}"
        )


def _outputs(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return list(tensors_in(run(copy_host(host), *fresh(args, kwargs))))


def _problem(before: list[Tensor], after: list[Tensor]) -> str | None:
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return "the host's output has another shape"
    for one, other in zip(before, after, strict=True):
        if not one.is_floating_point() or not one.numel():
            continue
        gap = float((one - other).abs().max())
        scale = max(1.0, float(one.abs().max()))
        if not gap <= TOLERANCE.get(one.dtype, 0.1) * scale:
            return f"the host's output differs by {gap:.3g}"
    return None


def _event(seed: Seed, absorption: Absorption | None, refused: str | None = None) -> Event:
    return Absorbed(
        seed=seed.identity,
        slot=seed.slot,
        name=seed.blueprint.name,
        producer=absorption and absorption.producer,
        consumer=absorption and absorption.consumer,
        units=0 if absorption is None else absorption.units,
        parameters=0 if absorption is None else absorption.parameters,
        refused=refused,
    )
