"""The blueprint graph as data, and the interface of the place it must fit."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from esper_runtime.contracts.base import ContractModel

NodeId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$", max_length=31)]
Width = (
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 /*]{1,24}$")]
    | Annotated[int, Field(ge=1, le=1_048_576)]
)
Attribute = bool | int | float | Annotated[str, StringConstraints(max_length=64)]
Reading = Annotated[str, StringConstraints(max_length=40)]

MAX_NODES = 32


class InterfaceKind(StrEnum):
    """What a tensor's axes mean."""

    FEATURES = "features"  # [B, C]
    SEQUENCE = "sequence"  # [B, C, L]
    IMAGE = "image"  # [B, C, H, W]
    TOKENS = "tokens"  # [B, T, C]


class Origin(StrEnum):
    """Where a blueprint comes from."""

    CATALOGUE = "Catalogue"
    USER = "User"
    GENERATED = "Generated"
    MUTATED = "Mutated"


class Node(ContractModel):
    """One graph operator. Its output feeds the nodes that name it among their inputs."""

    id: NodeId = Field(description="Name that other nodes read it by.")
    op: Annotated[str, StringConstraints(max_length=32)] = Field(
        description="Operator; `esper blueprint validate` lists them."
    )
    inputs: tuple[Reading, ...] = Field(
        default=(),
        max_length=8,
        description="Ids of the nodes it reads, in order; 'input' is the graph's input. "
        "An output of a split is named 'node.0', 'node.1', ...",
    )
    attributes: dict[str, Attribute] = Field(
        default_factory=dict, max_length=16, description="Of the operator: width, kernel, bias, ..."
    )


class Provenance(ContractModel):
    """How the blueprint came about."""

    origin: Origin = Origin.USER
    parents: tuple[Reading, ...] = Field(
        default=(), max_length=8, description="Ids of the blueprints that it was made of."
    )
    generator: str | None = Field(default=None, max_length=64, description="What made it, with its version.")
    seed: int | None = Field(
        default=None, ge=0, le=2**53 - 1, description="Number that the generator's draws began from."
    )


class Blueprint(ContractModel):
    """A directed acyclic graph of typed operators with one input and one output of one interface kind."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,46}[a-z0-9])?$", max_length=48)] = (
        Field(description="What people call it.")
    )
    interface: InterfaceKind
    nodes: tuple[Node, ...] = Field(
        min_length=1, max_length=MAX_NODES, description="Operators, in any order; no cycles."
    )
    output: str = Field(max_length=40, description="Id of the node whose output is the graph's output.")
    causal: bool = Field(
        default=False, description="True when no position sees later ones; needed where the host is causal."
    )
    span: bool = Field(
        default=False,
        description="True for a widening: meant to lie beside a producer and its consumer, using the "
        "symbols of a span.",
    )
    description: str = Field(default="", max_length=300, description="What it does, in words.")
    provenance: Provenance = Provenance()


class BlueprintBudget(ContractModel):
    """Most that a blueprint may cost in a slot."""

    parameters: int | None = Field(default=None, ge=1, description="Trainable numbers; absent: any.")
    macs: int | None = Field(
        default=None, ge=1, description="Multiply-accumulates of a forward pass of one example; absent: any."
    )
    nodes: int = Field(default=MAX_NODES, ge=2, le=MAX_NODES, description="Operators.")


class SpanGeometry(ContractModel):
    """Geometry of one of the two host layers of a span; axes as in the host."""

    kernel: tuple[int, ...] = Field(max_length=2, description="Size of the kernel.")
    stride: tuple[int, ...] = Field(max_length=2, description="Stride.")
    padding: tuple[int, ...] = Field(max_length=2, description="Padding.")
    dilation: tuple[int, ...] = Field(max_length=2, description="Dilation.")
    groups: int = Field(ge=1, description="Groups of channels.")


class Interface(ContractModel):
    """What a seed must accept and yield at one slot, read from a probe forward.

    ``spatial_in`` and ``spatial_out`` are the sizes behind the batch and channel axes seen in the probe
    (L; H, W; T); empty for features. ``producer`` and ``consumer`` are given only for spans.
    """

    kind: InterfaceKind
    width_in: int = Field(ge=1)
    width_out: int = Field(ge=1)
    spatial_in: tuple[int, ...] = Field(default=(), max_length=2)
    spatial_out: tuple[int, ...] = Field(default=(), max_length=2)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    causal: bool = False
    producer: SpanGeometry | None = None
    consumer: SpanGeometry | None = None
    activation: str | None = Field(
        default=None, description="Name of the one activation between producer and consumer, if seen."
    )

    @property
    def is_span(self) -> bool:
        """True when the slot lies around a producer and its consumer."""
        return self.consumer is not None

    @property
    def stride(self) -> tuple[int, ...]:
        """Rounded ratio of spatial sizes between the two taps; empty for features."""
        return tuple(max(1, round(a / b)) for a, b in zip(self.spatial_in, self.spatial_out, strict=True))
