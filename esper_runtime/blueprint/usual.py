"""The class of slots that a blueprint is made ready for where no run has said which it has."""

from esper_runtime.blueprint.samples import sample_slots
from esper_runtime.contracts import Blueprint, InterfaceKind, KernelInterface, SpanGeometry, width_band

_WIDTHS = (64, 256, 1024, 16)
"""Widths that are tried in turn: the second band first, then wider ones, then narrow ones."""
_AXES = {
    InterfaceKind.SEQUENCE: 1,
    InterfaceKind.IMAGE: 2,
    InterfaceKind.TOKENS: 1,
    InterfaceKind.FEATURES: 0,
}


def usual_class(blueprint: Blueprint, *, exact: bool = False) -> KernelInterface | None:
    """A class of slots with equal widths and stride 1 that a valid blueprint fits; None where it fits none.

    A widening is taken to lie between two layers of kernel 3 (linear ones for features and tokens) with a
    relu between them, which is how most hosts are built.

    Args:
        blueprint: a valid one.
        exact: for pipelines that fix the widths.
    """
    for width in _WIDTHS:
        least, most = (width, width) if exact else width_band(width)
        slots = KernelInterface(
            kind=blueprint.interface,
            least_in=least,
            most_in=most,
            least_out=least,
            most_out=most,
            stride=(1,) * _AXES[blueprint.interface],
            causal=blueprint.causal,
            **(_sides(blueprint.interface) if blueprint.span else {}),
        )
        if sample_slots(blueprint, slots):
            return slots
    return None


def _sides(kind: InterfaceKind) -> dict[str, SpanGeometry | str]:
    axes = 0 if kind is InterfaceKind.TOKENS else _AXES[kind]
    ones = (1,) * axes
    layer = SpanGeometry(kernel=(3,) * axes, stride=ones, padding=ones, dilation=ones, groups=1)
    return {"producer": layer, "consumer": layer, "activation": "relu"}
