"""What no command can exceed, and what seeds are charged for."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from esper_runtime.blueprint import Cost
from esper_runtime.contracts import SeedStage, TransitionError
from esper_runtime.kasmina.seed import Seed


@dataclass(frozen=True)
class Limits:
    """What no command can exceed: parameters of the whole model, MACs per example, unfossilized seeds."""

    parameters: int | None = None
    macs_per_example: int | None = None
    concurrent_seeds: int | None = None

    def or_else(self, other: "Limits") -> "Limits":
        """These limits, and those of ``other`` where there is none."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(other, **own)

    def check(self, seed: Seed, living: Sequence[Seed], parameters: int, macs: int) -> None:
        """Raise `TransitionError` where the seed may not be planted beside those that live.

        Args:
            seed: the newcomer.
            living: all living seeds.
            parameters: of the host.
            macs: of the host, per example.
        """
        young = [s for s in living if s.stage is not SeedStage.FOSSILIZED]
        if self.concurrent_seeds is not None and len(young) >= self.concurrent_seeds:
            raise TransitionError(
                f"{len(young)} seeds are not fossilized yet; {self.concurrent_seeds} are allowed"
            )
        name, grown = seed.blueprint.name, charged([*living, seed])
        if self.parameters is not None and parameters + grown.parameters > self.parameters:
            raise TransitionError(
                f"{name} at {seed.slot} would bring the model to {parameters + grown.parameters} parameters; "
                f"{self.parameters} are allowed"
            )
        if self.macs_per_example is not None and macs + grown.macs > self.macs_per_example:
            raise TransitionError(
                f"{name} at {seed.slot} would bring a forward pass to {macs + grown.macs} MACs per example; "
                f"{self.macs_per_example} are allowed"
            )


def charged(seeds: Iterable[Seed]) -> Cost:
    """What the seeds may come to cost together: of a tournament's candidates only the dearest counts."""
    parameters = macs = 0
    groups: dict[object, list[Cost]] = {}
    for seed in seeds:
        groups.setdefault(seed.cohort if seed.competes else seed.identity, []).append(seed.price)
    for prices in groups.values():
        parameters += max(price.parameters for price in prices)
        macs += max(price.macs for price in prices)
    return Cost(parameters, macs)
