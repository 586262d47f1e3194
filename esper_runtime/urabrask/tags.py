"""Tags and risk of a kernel, from what was measured and what fields have said."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from esper_runtime.contracts import Blueprint, FieldReport, ValidationReport

ENOUGH: Final = 30
"""Reports about a target from which on percentiles are used."""

ENOUGH_REPORTS: Final = 20
"""Field reports from which on the risk is learned."""

_LOW, _HIGH = 0.25, 0.75
_FASTER: Final = 1.05
_PRIOR: Final = 4.0
"""Weight of the rate over all operators in that of one operator, in reports."""


@dataclass(frozen=True)
class _Scale:
    figure: str
    low: str
    high: str
    least: float
    most: float


_SCALES: Final = (
    _Scale("training_us", "fast", "slow", 200.0, 2_000.0),
    _Scale("parameters", "small", "large", 2_000.0, 100_000.0),
    _Scale("macs", "light", "heavy", 50_000.0, 5_000_000.0),
    _Scale("peak_bytes", "low-memory", "high-memory", 2**20, 2**25),
)


def figures(report: ValidationReport) -> dict[str, float]:
    """Medians of the measurements and the single numbers, by name."""
    return {name: found.median for name, found in report.measurements.items()} | report.numbers


def tags(own: Mapping[str, float], population: Sequence[ValidationReport]) -> tuple[str, ...]:
    """Tags by percentile within the population of the same target; by fixed thresholds until it has 30.

    The quarter with the lowest figures is ``fast``, ``small``, ``light``, ``low-memory``; that with the
    highest ``slow``, ``large``, ``heavy``, ``high-memory``. A compiled kernel is ``forward-`` and
    ``training-faster-than-eager`` from 5 % on, else ``-not-faster-than-eager``.

    Args:
        own: `figures` of the kernel.
        population: reports of kernels that passed on the same target.
    """
    known = [figures(report) for report in population]
    found = []
    for scale in _SCALES:
        value = own.get(scale.figure)
        if value is None:
            continue
        others = sorted(one[scale.figure] for one in known if scale.figure in one)
        if len(others) >= ENOUGH:
            place = bisect_left(others, value) / len(others)
            found += [scale.low] if place < _LOW else [scale.high] if place >= _HIGH else []
        else:
            found += [scale.low] if value <= scale.least else [scale.high] if value >= scale.most else []
    for figure in ("forward_speedup", "training_speedup"):
        if figure in own:
            word = "faster" if own[figure] >= _FASTER else "not-faster"
            found.append(f"{figure.split('_')[0]}-{word}-than-eager")
    return tuple(found)


@dataclass(frozen=True)
class Experience:
    """How many seeds with each operator there were, and how many of them failed.

    A seed failed where its kernel raised, yielded what is not finite, or had to be rolled back.
    """

    seeds: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    all_seeds: int = 0
    all_failures: int = 0

    @classmethod
    def of(cls, reports: Iterable[FieldReport], graphs: Mapping[str, Blueprint]) -> "Experience":
        """From field reports; those of blueprints that are not among ``graphs`` (by id) are left out."""
        seeds: dict[str, int] = {}
        failures: dict[str, int] = {}
        count = failed = 0
        for report in reports:
            graph = graphs.get(report.blueprint)
            if graph is None:
                continue
            bad = report.failure is not None or report.outcome == "RolledBack"
            count, failed = count + 1, failed + bad
            for operator in operators(graph):
                seeds[operator] = seeds.get(operator, 0) + 1
                failures[operator] = failures.get(operator, 0) + bad
        return cls(seeds, failures, count, failed)


def operators(blueprint: Blueprint) -> frozenset[str]:
    """Names of the operators in a blueprint."""
    return frozenset(node.op for node in blueprint.nodes)


def risk(blueprint: Blueprint, own: Mapping[str, float], experience: Experience) -> float | None:
    """How likely a seed of this kernel is to fail, 0 to 1; None where nothing says anything.

    From 20 field reports on: the highest failure rate among its operators, each drawn towards the rate over
    all seeds with the weight of 4 of them; the rate over all is (failures + 1/2) / (seeds + 1). Until then a
    fixed rule: the largest share of its bound that one of its own measurements has used up (gain of output
    and gradient on a logarithmic scale, drift from float64).
    """
    if experience.all_seeds >= ENOUGH_REPORTS:
        base = (experience.all_failures + 0.5) / (experience.all_seeds + 1)
        rates = [
            (experience.failures.get(name, 0) + _PRIOR * base) / (experience.seeds.get(name, 0) + _PRIOR)
            for name in operators(blueprint)
        ]
        return min(1.0, max(rates))
    shares = [own[name] for name in ("gain_share", "drift_share") if math.isfinite(own.get(name, math.nan))]
    return min(1.0, max(shares)) if shares else None
