"""Slots of a class at which a blueprint can be tried: the narrowest, the widest and one in the middle."""

from collections.abc import Iterator
from itertools import chain

from esper_runtime.blueprint.fit import cost, misfit
from esper_runtime.blueprint.graph import Graph, read
from esper_runtime.blueprint.inference import output_shape
from esper_runtime.contracts import Blueprint, BlueprintError, Interface, InterfaceKind, KernelInterface

_SIZES: dict[InterfaceKind, tuple[tuple[int, ...], ...]] = {
    InterfaceKind.FEATURES: ((),),
    InterfaceKind.SEQUENCE: ((24,), (96,), (384,)),
    InterfaceKind.TOKENS: ((12,), (96,), (384,)),
    InterfaceKind.IMAGE: ((12, 10), (36, 40), (96, 80)),
}
"""Positions that are tried in turn until the blueprint's kernels fit into them; multiplied by the stride."""

_STEPS = 16
_MOST_PARAMETERS = 4_000_000
_MOST_MACS = 500_000_000


def sample_slots(blueprint: Blueprint, slots: KernelInterface) -> list[Interface]:
    """One to five slots of the class that the blueprint fits; none where it fits nowhere.

    They are the narrowest, the middle and the widest pair of widths, for spans also a narrow input with a
    wide output and the other way round. Where a pair would cost more than 4 million parameters or 500 million
    MACs an example, the widest that does not is taken in its place.
    """
    graph = read(blueprint)
    fitting = [slot for pair in _pairs(slots) if (slot := _slot(blueprint, graph, slots, pair))]
    if not fitting:
        fitting = _any_fitting(blueprint, graph, slots)
    if not fitting:
        return []
    cheap = [slot for slot in fitting if _affordable(blueprint, slot)] or fitting[:1]
    chosen = [cheap[0], cheap[len(cheap) // 2], cheap[-1]]
    if blueprint.span:
        crossed = ((slots.least_in, slots.most_out), (slots.most_in, slots.least_out))
        found = (_slot(blueprint, graph, slots, pair) for pair in crossed)
        chosen += [slot for slot in found if slot and _affordable(blueprint, slot)]
    return list(dict.fromkeys(chosen))


def _affordable(blueprint: Blueprint, slot: Interface) -> bool:
    price = cost(blueprint, slot)
    return price.parameters <= _MOST_PARAMETERS and price.macs <= _MOST_MACS


def _pairs(slots: KernelInterface) -> Iterator[tuple[int, int]]:
    """Pairs of widths from the least to the most, equal ones where both sides have the same range."""
    ins = _widths(slots.least_in, slots.most_in)
    outs = _widths(slots.least_out, slots.most_out)
    longest = max(len(ins), len(outs))
    for i in range(longest):
        yield ins[i * len(ins) // longest], outs[i * len(outs) // longest]


def _widths(least: int, most: int) -> list[int]:
    step = 1 << max(0, ((most - least) // _STEPS).bit_length() - 1)
    return sorted({least, most, *range(least + -least % step, most + 1, step)})


def _any_fitting(blueprint: Blueprint, graph: Graph, slots: KernelInterface) -> list[Interface]:
    """The first slot that fits where none of the round widths does, e.g. for groups of 9 channels."""
    both = range(max(slots.least_in, slots.least_out), min(slots.most_in, slots.most_out) + 1)
    equal = ((width, width) for width in both)
    ins = ((width, slots.least_out) for width in range(slots.least_in, slots.most_in + 1))
    outs = ((slots.least_in, width) for width in range(slots.least_out, slots.most_out + 1))
    for pair in chain(equal, ins, outs):
        if slot := _slot(blueprint, graph, slots, pair):
            return [slot]
    return []


def _slot(
    blueprint: Blueprint, graph: Graph, slots: KernelInterface, widths: tuple[int, int]
) -> Interface | None:
    """A slot of the class with these widths and as many positions as the blueprint needs, if it fits one."""
    for sizes in _SIZES[slots.kind]:
        stride = slots.stride or (1,) * len(sizes)
        spatial = tuple(n * s for n, s in zip(sizes, stride, strict=True))
        interface = Interface(
            kind=slots.kind,
            width_in=widths[0],
            width_out=widths[1],
            spatial_in=spatial,
            spatial_out=spatial,
            dtype=slots.dtype,
            causal=slots.causal,
            producer=slots.producer,
            consumer=slots.consumer,
            activation=slots.activation,
        )
        try:
            yielded = output_shape(graph, interface)
        except BlueprintError:
            continue
        slot = interface.model_copy(update={"spatial_out": yielded.spatial})
        if min(yielded.spatial, default=1) > 0 and slots.contains(slot) and misfit(blueprint, slot) is None:
            return slot
    return None
