"""Taking times until they agree, or until there is no more time for it."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from esper_runtime.contracts import Measurement

SPREAD: Final = 0.05
"""Interquartile range over median below which a measurement is steady."""

_FEWEST, _MOST = 12, 400


def call(function: Callable[[], Any]) -> Callable[[], int]:
    """A function that calls ``function`` and returns how many nanoseconds it took."""

    def timed() -> int:
        begun = time.perf_counter_ns()
        function()
        return time.perf_counter_ns() - begun

    return timed


def interleaved(subjects: dict[str, Callable[[], int]], seconds: float) -> dict[str, list[int]]:
    """Nanoseconds of each subject's calls, taken in turns, until all are steady or ``seconds`` are over."""
    samples: dict[str, list[int]] = {name: [] for name in subjects}
    for timed in subjects.values():
        timed()
        timed()
    end = time.perf_counter() + seconds
    for count in range(_MOST):
        for name, timed in subjects.items():
            samples[name].append(timed())
        if time.perf_counter() > end:
            break
        if count >= _FEWEST and count % 4 == 0 and all(spread(taken) <= SPREAD for taken in samples.values()):
            break
    return samples


def spread(samples: list[int]) -> float:
    """Interquartile range over median; 1 where there are fewer than four samples."""
    if len(samples) < 4:
        return 1.0
    first, middle, third = statistics.quantiles(samples, n=4)
    return (third - first) / middle if middle else 0.0


def microseconds(samples: list[int]) -> Measurement:
    """Samples in nanoseconds as a measurement in microseconds."""
    ordered = sorted(samples)
    return Measurement(
        median=statistics.median(ordered) / 1e3,
        p99=ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] / 1e3,
        count=len(ordered),
        steady=len(ordered) >= _FEWEST and spread(ordered) <= SPREAD,
    )
