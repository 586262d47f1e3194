"""Interleaved timing: A, B and A again in turn, so that drift of the machine falls on all alike."""

import gc
import statistics
import time
from collections.abc import Callable


def interleaved(
    steps: dict[str, Callable[[], object]], rounds: int, warmup: int = 10, again: int = 0
) -> dict[str, list[float]]:
    """Seconds of each call of each named step, taken in turn; the order changes from round to round.

    With ``again``, each has so many calls more in a row, and the first is left out: it finds the caches full
    of another's data.
    """
    names = list(steps)
    for _ in range(warmup):
        for name in names:
            steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.disable()
    try:
        for turn in range(rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order:
                for call in range(1 + again):
                    start = time.perf_counter()
                    steps[name]()
                    if call or not again:
                        seconds[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


def ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Median of the pairwise ratios a/b with the 95 % interval of that median (order statistics)."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    n = len(ratios)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half) + 1)
    return statistics.median(ratios), ratios[low], ratios[high]


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
