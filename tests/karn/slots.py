"""Classes of slots to generate for, and slots of them to build for."""

from hypothesis import strategies as st

from esper_runtime.contracts import Interface, InterfaceKind, KernelInterface
from tests.blueprint.graphs import KINDS, residual_slot, span_slot

ORDERED = (InterfaceKind.SEQUENCE, InterfaceKind.TOKENS)


@st.composite
def interfaces(draw: st.DrawFn) -> Interface:
    """A slot of any kind: residual, causal where there is an order, or a span with strides."""
    kind = draw(st.sampled_from(KINDS))
    width = draw(st.integers(2, 48))
    if draw(st.booleans()):
        stride = draw(st.sampled_from((1, 2))) if kind in (InterfaceKind.SEQUENCE, InterfaceKind.IMAGE) else 1
        return span_slot(kind, width, draw(st.integers(2, 48)), stride=stride, activation="gelu")
    causal = kind in ORDERED and draw(st.booleans())
    return residual_slot(kind, width, causal=causal)


def class_of(interface: Interface) -> KernelInterface:
    """What a training asks for: its own widths."""
    return KernelInterface.of(interface, exact=True)
