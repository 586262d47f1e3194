"""What a random blueprint may be made of at one class of slots: operators, widths, attributes.

Operators, their interface kinds, their attributes and what is causal come from the registry of blueprints;
here is only which values are drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

from esper_runtime.blueprint import ACTIVATIONS, OPERATORS, canonical_id
from esper_runtime.contracts import (
    Attribute,
    Blueprint,
    InterfaceKind,
    KernelInterface,
    Node,
    Origin,
    Provenance,
)

GENERATOR = "karn-grammar-1"
"""Raised whenever the same seed gives another blueprint."""

Width = int | str

RESIDUAL_WIDTHS: tuple[Width, ...] = ("Cin/4", "Cin/2", "Cin", "Cin", "2 Cin", "4 Cin", 4, 8, 16, 32)
SPAN_WIDTHS: tuple[Width, ...] = ("Cout/4", "Cout/2", "Cout", "Cout", "2 Cout", 6, 12, 24)
VALUES: Mapping[str, tuple[Attribute, ...]] = {
    "bias": (True, True, False),
    "affine": (True, True, False),
    "kernel": (3, 3, 5, 7),
    "dilation": (1, 1, 1, 2),
    "stride": (1,),
    "rank": ("Cin/8", "Cin/4", "Cin/2", 2, 4),
    "inner": ("Cin/4", "Cin/2", "Cin", 8, 16),
    "heads": (1, 1, 2, 4),
    "groups": (1, 1, 1, 2, 4),
    "rate": (0.1, 0.2, 0.5),
    "parts": (2,),
}
"""Values that are drawn for attributes, those that are often right more than once."""

NORMS = ("layer_norm", "rms_norm", "batch_norm", "group_norm")
_NORM_GROUPS = (2, 4, 8)
_SIDES = ("kernel", "stride", "padding", "dilation")


@dataclass(frozen=True)
class Grammar:
    """What may stand in a graph for a class of slots.

    Attributes:
        slots: the class.
    """

    slots: KernelInterface

    @property
    def is_span(self) -> bool:
        """Whether the slots lie around a producer and its consumer."""
        return self.slots.consumer is not None

    @property
    def has_positions(self) -> bool:
        """Whether the interface has positions, over which operators may look."""
        return self.slots.kind is not InterfaceKind.FEATURES

    @property
    def is_convolved(self) -> bool:
        """Whether the two host layers of a span are convolutions, whose geometry the graph has to repeat."""
        return self.is_span and self.slots.kind in (InterfaceKind.SEQUENCE, InterfaceKind.IMAGE)

    @cached_property
    def widths(self) -> tuple[Width, ...]:
        """Widths of hidden channels."""
        return SPAN_WIDTHS if self.is_span else RESIDUAL_WIDTHS

    @cached_property
    def final_widths(self) -> tuple[Width, ...]:
        """Expressions of the output's width."""
        ranges = self.slots
        square = (ranges.least_in, ranges.most_in) == (ranges.least_out, ranges.most_out)
        return ("Cout", "Cin") if square and not self.is_span else ("Cout",)

    @cached_property
    def activations(self) -> tuple[str, ...]:
        """Elementwise functions; the span's own first, where it has one."""
        own = ("span_activation",) if self.is_span and self.slots.activation in ACTIVATIONS else ()
        return (*own, *(name for name in ACTIVATIONS if name != "identity"))

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Normalisations."""
        return tuple(name for name in NORMS if self.allows(name))

    @cached_property
    def mixers(self) -> tuple[str, ...]:
        """Operators whose weights read across channels or positions."""
        return tuple(name for name, one in OPERATORS.items() if one.mixes and self.allows(name))

    @property
    def at_a_point(self) -> str:
        """The matrix product on a single position."""
        return "linear" if self.slots.kind is InterfaceKind.TOKENS else "pointwise_conv"

    def allows(self, op: str) -> bool:
        """Whether an operator may stand here, with attributes as they are drawn."""
        operator = OPERATORS[op]
        if self.slots.kind not in operator.kinds:
            return False
        if not self.slots.causal:
            return True
        return operator.looks_ahead(self.attributes(op, Random(0), width="Cin")) is None

    def attributes(self, op: str, random: Random, width: Width | None = None) -> dict[str, Attribute]:
        """All attributes of an operator, drawn; ``width`` is for those that have one."""
        return {name: self.value(op, name, random, width) for name in OPERATORS[op].fields}

    def value(self, op: str, name: str, random: Random, width: Width | None = None) -> Attribute:
        """One attribute of an operator, drawn."""
        match name:
            case "width":
                return width if width is not None else random.choice(self.widths)
            case "causal":
                return self.slots.causal
            case "padding":
                return "causal" if self.slots.causal else "same"
            case "groups" if op == "group_norm":
                return random.choice(_NORM_GROUPS)
        return random.choice(VALUES[name])

    def side(self, side: str) -> dict[str, Attribute]:
        """Geometry of one of the two convolutions of a span."""
        return dict.fromkeys(_SIDES, side)

    def blueprint(self, nodes: list[Node], output: str, made: Provenance, said: str) -> Blueprint:
        """A blueprint that is named by its id.

        Raises:
            BlueprintError: the graph cannot be read.
        """
        parents = made.origin is Origin.MUTATED
        graph = Blueprint(
            name="karn",
            interface=self.slots.kind,
            nodes=tuple(nodes),
            output=output,
            causal=self.slots.causal,
            span=self.is_span,
            description=(said if parents else f"drawn: {said}")[:300],
            provenance=made,
        )
        return graph.model_copy(update={"name": f"karn-{canonical_id(graph).removeprefix('bp-')}"})
