"""Host layers made wider and narrower: what absorbing a seed does to the host, and how it is done again.

A widening lies around a producer and its consumer. Once absorbed, its hidden units stand behind the
producer's own: the producer has more outputs, the norms between more channels, the consumer more inputs.
Parameters stay the same objects, so that optimizers and whoever else holds them go on; only their data is
replaced.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from esper_runtime.kasmina.places import Place

Parts = Mapping[tuple[str, str], Tensor]
"""What a tensor is extended by, by module and tensor name."""


@dataclass(frozen=True)
class Absorption:
    """A seed that is part of two host layers.

    Attributes:
        seed: its id.
        slot: where it was.
        name: of its blueprint.
        blueprint: its id.
        producer: module that has ``units`` more outputs.
        consumer: module that has ``units`` more inputs.
        norms: modules between them that have as many channels more.
        units: hidden units or channels of the seed.
        taps: at which the host's activation has ``units`` more channels.
        parameters: by which the host has more.
        macs: per example, by which the host has more.
    """

    seed: str
    slot: str
    name: str
    blueprint: str
    producer: str
    consumer: str
    norms: tuple[str, ...]
    units: int
    taps: tuple[str, ...]
    parameters: int
    macs: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "norms": list(self.norms), "taps": list(self.taps)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Absorption":
        """From `record`."""
        return cls(**{**record, "norms": tuple(record["norms"]), "taps": tuple(record["taps"])})


@dataclass(frozen=True)
class Move:
    """A host parameter that was extended along ``axis`` by a seed's, or by zeros where that is None."""

    parameter: Parameter
    axis: int
    part: Parameter | None


def tensors_along(producer: str, norms: Iterable[str], consumer: str) -> Iterator[tuple[str, str, int]]:
    """Module name, tensor name and axis of all that may carry the hidden units."""
    yield from ((producer, name, 0) for name in ("weight", "bias"))
    for norm in norms:
        yield from ((norm, name, 0) for name in ("weight", "bias", "running_mean", "running_var"))
    yield consumer, "weight", 1


def widen(host: nn.Module, absorption: Absorption, parts: Parts | None = None) -> None:
    """Add the hidden units to the host's layers: weights of ``parts``, zeros where there are none."""
    for path, module, name, axis in _tensors(host, absorption):
        old = getattr(module, name)
        part = (parts or {}).get((path, name))
        if part is None:
            shape = list(old.shape)
            shape[axis] = absorption.units
            part = old.new_zeros(shape)
        _put(module, name, torch.cat([old.detach(), part.detach().to(old)], dim=axis))
    _resize(host, absorption, absorption.units)


def narrow(host: nn.Module, absorption: Absorption) -> None:
    """Take the hidden units out again; they are lost."""
    for _, module, name, axis in _tensors(host, absorption):
        old = getattr(module, name).detach()
        _put(module, name, old.narrow(axis, 0, old.shape[axis] - absorption.units).clone())
    _resize(host, absorption, -absorption.units)


def shifted(place: Place, absorptions: Iterable[Absorption]) -> Place:
    """The place with the widths that its taps have once the seeds are absorbed."""
    interface = place.interface
    for absorption in absorptions:
        widths = {
            "width_in": interface.width_in + absorption.units * (str(place.read) in absorption.taps),
            "width_out": interface.width_out + absorption.units * (str(place.write) in absorption.taps),
        }
        interface = interface.model_copy(update=widths)
    return replace(place, interface=interface)


def _tensors(host: nn.Module, absorption: Absorption) -> Iterator[tuple[str, nn.Module, str, int]]:
    for path, name, axis in tensors_along(absorption.producer, absorption.norms, absorption.consumer):
        module = host.get_submodule(path)
        if getattr(module, name, None) is not None:
            yield path, module, name, axis


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    current = getattr(module, name)
    if isinstance(current, Parameter):
        current.grad = None
        current.data = tensor
    else:
        setattr(module, name, tensor)


def _resize(host: nn.Module, absorption: Absorption, units: int) -> None:
    """Let the modules' own numbers say what their tensors are."""
    producer: Any = host.get_submodule(absorption.producer)
    consumer: Any = host.get_submodule(absorption.consumer)
    if isinstance(producer, nn.Linear):
        producer.out_features += units
        consumer.in_features += units
    else:
        producer.out_channels += units
        consumer.in_channels += units
    for path in absorption.norms:
        norm: Any = host.get_submodule(path)
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups += units * norm.num_groups // norm.num_channels
            norm.num_channels += units
        else:
            norm.num_features += units
