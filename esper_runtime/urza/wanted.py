"""What a training wants of the library and what it is given: the lines between it and its `Fetcher`."""

from pathlib import Path

from pydantic import Field

from esper_runtime.contracts import (
    BlueprintSelector,
    ContractModel,
    FieldReport,
    InnovationWish,
    Interface,
    KernelInterface,
    KernelSpec,
    Pipeline,
    RunOnBus,
    Target,
    UsableKernel,
)


class Offer(ContractModel):
    """What was found: verified kernels that are new, and why others may be used no more."""

    arrived: tuple[UsableKernel, ...] = ()
    gone: dict[str, str] = Field(default_factory=dict)
    refused: dict[str, str] = Field(default_factory=dict)
    remade: dict[str, str] = Field(default_factory=dict)
    reason: str = "validated while the run goes on"


class Wanted(ContractModel):
    """What a run can use."""

    specs: dict[str, KernelSpec] = Field(description="Kernels of its own blueprints, by id.")
    slots: tuple[Interface, ...] = Field(default=(), description="Interfaces of its slots.")
    target: Target = Field(description="That kernels are made for.")
    toolchain: dict[str, str] = Field(default_factory=dict, description="What plain graphs are made with.")
    names: BlueprintSelector = Field(default=BlueprintSelector(), description="Blueprints it may plant.")
    named: frozenset[str] = Field(default=frozenset(), description="Other kernels that its journal has.")
    innovation: InnovationWish | None = Field(
        default=None, description="What is to be invented for it; without, it takes up nothing that was."
    )

    def spec(self, blueprint: str, slot: Interface) -> KernelSpec:
        """The plain graph of a blueprint for a slot."""
        return KernelSpec(
            blueprint=blueprint,
            interface=KernelInterface.of(slot, exact=False),
            target=self.target,
            pipeline=Pipeline.FAST,
            toolchain=self.toolchain,
        )


class FetchStart(ContractModel):
    """The first line to a `Fetcher`: whom it serves, with what."""

    home: Path = Field(description="The machine's folder.")
    address: Path = Field(description="File with the address of the library's bus; read at each try.")
    place: RunOnBus
    wanted: Wanted


class FetchOrder(ContractModel):
    """A further line to a `Fetcher`: one more kernel that is wished for, or a report to hand on."""

    wish: KernelSpec | None = None
    report: FieldReport | None = None
    identity: str = Field(default="", description="Of the report: the digest of its journal entry.")


class FetchNews(ContractModel):
    """A line from a `Fetcher`; what is absent did not change."""

    offer: Offer | None = None
    settled: frozenset[str] = Field(
        default=frozenset(),
        description="Kernels of `Wanted` that the library has judged, and that are on the shelf where they "
        "passed; and those of `named` that it does not know.",
    )
    connected: bool | None = None
    level: int = Field(default=0, description="Of what is said, as in `logging`.")
    said: str = ""
