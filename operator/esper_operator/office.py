"""What blueprints, kernels and workers ask of the release's library and queues."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from esper_runtime.contracts import Blueprint, BlueprintEntry, FieldReport, KernelRecord, KernelSpec, Work


class Office(Protocol):
    """The library as it was seen last, and what may be said to it: `esper_operator.library.ForgeOffice`."""

    changed: Callable[[], None]

    @property
    def ready(self) -> bool:
        """Whether the library is there, and what is answered is what it holds."""

    @property
    def incarnation(self) -> str | None:
        """That of the library: another one than before means that its storage was lost."""

    def blueprints(self) -> Mapping[str, BlueprintEntry]:
        """All blueprints by id."""

    def records(self) -> Mapping[str, KernelRecord]:
        """All kernels by id, those that are only wished for among them."""

    def reports(self) -> Sequence[FieldReport]:
        """What trainings have reported."""

    def depths(self) -> Mapping[tuple[Work, str], int] | None:
        """Items by work and target; None where that is not known."""

    async def enter(self, graph: Blueprint, origin: str, *, reinstate: bool = False) -> str:
        """Enter a blueprint. Raises `BusError` while the library is away."""

    async def archive(self, blueprint: str, reason: str) -> None:
        """Offer a blueprint and its kernels no more. Raises `BusError` while the library is away."""

    async def wish(self, spec: KernelSpec, *, urgent: bool = False) -> bool:
        """Have a kernel made and tested. Raises `BusError` while the library is away."""
