"""What a step boundary changed, and how the journal is told of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from esper_runtime.contracts import Blueprint, Directive, Event, SeedChanged, SeedStage
from esper_runtime.kasmina.seed import Seed

Journal = Callable[[Event], None]


@dataclass
class Changes:
    """What a boundary changed: seeds that began to learn, seeds that are gone, directives not obeyed."""

    born: list[Seed] = field(default_factory=list)
    gone: list[Seed] = field(default_factory=list)
    refused: list[tuple[Directive, str]] = field(default_factory=list)
    moved: int = 0

    @property
    def structural(self) -> bool:
        """True when parameters came or went."""
        return bool(self.born or self.gone)


def nowhere(_: Event) -> None:
    """A journal that keeps nothing, for people who own their loop and keep their own records."""


def seed_changed(
    seed: Seed, before: SeedStage | None, after: SeedStage, reason: str, graph: Blueprint | None = None
) -> SeedChanged:
    """The journal's words of a seed's new stage."""
    return SeedChanged(
        seed=seed.identity,
        slot=seed.slot,
        blueprint=seed.blueprint_id,
        name=seed.blueprint.name,
        before=before,
        after=after,
        parameters=seed.price.parameters,
        alpha=seed.alpha,
        reason=reason,
        contribution=seed.contribution,
        isolated_gain=seed.isolated_gain,
        failure=seed.failure if after is SeedStage.CULLED else None,
        graph=graph,
        kernel=seed.kernel,
        digest=seed.digest,
    )
