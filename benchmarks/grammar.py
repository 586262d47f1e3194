"""What Karn draws and mutates: how much of it passes, how much of it differs, and what it takes.

``python -m benchmarks.grammar``: for each sort of slots, blueprints drawn at random and mutations of the
catalogue's. Counted are the first tries that pass the static check, distinct ids, and ids that the catalogue
lacks.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from benchmarks.line import bar
from esper_runtime.blueprint import canonical_id, catalogue, sample_slots, screen
from esper_runtime.contracts import (
    Blueprint,
    BlueprintBudget,
    InterfaceKind,
    KernelInterface,
    SpanGeometry,
)
from esper_runtime.karn import draw, mutate
from esper_runtime.karn.draw import first_try

COMMAND = "python -m benchmarks.grammar"
SAMPLES = 300
BUDGET = BlueprintBudget(parameters=1_000_000)


def sorts_of_slots() -> Mapping[str, KernelInterface]:
    """Classes of slots as trainings have them: one width of each kind, spans, and causal ones."""
    positions = {InterfaceKind.SEQUENCE: 1, InterfaceKind.IMAGE: 2, InterfaceKind.TOKENS: 1}

    def slots(kind: InterfaceKind, width_in: int, width_out: int, **more: Any) -> KernelInterface:
        return KernelInterface(
            kind=kind,
            least_in=width_in,
            most_in=width_in,
            least_out=width_out,
            most_out=width_out,
            stride=(1,) * positions.get(kind, 0),
            **more,
        )

    def span(kind: InterfaceKind) -> KernelInterface:
        axes = {InterfaceKind.SEQUENCE: 1, InterfaceKind.IMAGE: 2}.get(kind, 0)

        def layer(kernel: int) -> SpanGeometry:
            ones = (1,) * axes
            return SpanGeometry(
                kernel=(kernel,) * axes, stride=ones, padding=(kernel // 2,) * axes, dilation=ones, groups=1
            )

        return slots(kind, 24, 40, producer=layer(5), consumer=layer(3), activation="relu")

    found = {kind.value: slots(kind, 32, 32) for kind in InterfaceKind}
    found |= {f"{kind.value} span": span(kind) for kind in InterfaceKind}
    found["causal tokens"] = slots(InterfaceKind.TOKENS, 48, 48, causal=True)
    found["causal sequence"] = slots(InterfaceKind.SEQUENCE, 16, 16, causal=True)
    return found


def parents_for(slots: KernelInterface) -> list[Blueprint]:
    """Blueprints of the catalogue that fit."""
    span = slots.consumer is not None
    return [
        blueprint
        for blueprint in catalogue().values()
        if (blueprint.interface, blueprint.span) == (slots.kind, span) and sample_slots(blueprint, slots)
    ]


def drawn(slots: KernelInterface, samples: int) -> Iterator[Blueprint]:
    """So many random ones."""
    for seed in range(samples):
        yield draw(slots, BUDGET, Random(seed))


def mutated(slots: KernelInterface, samples: int) -> Iterator[Blueprint]:
    """So many mutations of the catalogue's."""
    parents = parents_for(slots)
    for seed in range(samples):
        yield mutate(parents[seed % len(parents)], slots, BUDGET, Random(seed))


def measure(slots: KernelInterface, samples: int = SAMPLES) -> dict[str, float]:
    """Shares and milliseconds for one sort of slots."""
    passed = sum(
        screen(first_try(slots, BUDGET, Random(seed)), slots, BUDGET) is None for seed in range(samples)
    )
    known = {canonical_id(blueprint) for blueprint in catalogue().values()}
    figures = {"passed at once": passed / samples}
    for name, make in (("drawn", drawn), ("mutated", mutated)):
        begun = time.process_time()
        ids = [canonical_id(blueprint) for blueprint in make(slots, samples)]
        seconds = time.process_time() - begun
        figures |= {
            f"{name} distinct": len(set(ids)) / samples,
            f"{name} unknown": sum(id_ not in known for id_ in ids) / samples,
            f"{name} ms": 1000 * seconds / samples,
        }
    return {name: round(figure, 3) for name, figure in figures.items()}


def main() -> int:
    """Print the line; returns 1 where the bound is missed."""
    detail = {name: measure(slots) for name, slots in sorts_of_slots().items()}
    least = min(each["passed at once"] for each in detail.values())
    distinct = min(min(each["drawn distinct"], each["mutated distinct"]) for each in detail.values())
    line = bar(
        "grammar",
        command=COMMAND,
        figure={"passed at once": least, "distinct": distinct},
        bound="of each sort of slots, 90 % of first draws pass the static check",
        passed=least >= 0.9,
        detail=detail,
    )
    return 0 if line["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
