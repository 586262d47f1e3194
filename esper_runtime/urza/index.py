"""Which kernels a slot could use: an index of the validated ones, and how they are ranked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappush, heapreplace
from operator import attrgetter

from esper_runtime.contracts import (
    KernelInterface,
    KernelQuery,
    KernelRecord,
    KernelState,
    Target,
    ValidationReport,
)

LATENCY, MEMORY, PARAMETERS, SPEEDUP = "forward_us", "peak_bytes", "parameters", "speedup"
"""Names in a report of what the limits of a query are about, and of how much faster than eager it is."""

TAG_WEIGHT = 2.0
"""What all preferred tags together are worth; a kernel with half of them gets half."""

_Class = tuple[object, ...]
_Widths = tuple[int, int, int, int]
_Entry = tuple[float, int, int, float, float, float, float, KernelRecord]
"""Merit, the id as a negative number, the tags as bits, latency, memory, parameters, risk (infinite where
they were not measured): what a query looks at, laid out so that thousands pass in a few milliseconds."""

_CLASS = attrgetter("kind", "stride", "dtype", "causal", "producer", "consumer", "activation")
_WIDTHS = attrgetter("least_in", "most_in", "least_out", "most_out")


@dataclass(frozen=True)
class Ranked:
    """A kernel that answers a query: the higher the score the better; the reasons say what it is made of."""

    record: KernelRecord
    score: float
    reasons: tuple[str, ...]


class KernelIndex:
    """Validated kernels by target and class of slots, best first within each.

    The score of a kernel is its merit (`merit`) and what its preferred tags add (`TAG_WEIGHT`). A query goes
    down its class from the highest merit and ends where no kernel below can reach the best any more.
    """

    def __init__(self, records: Iterable[KernelRecord] = ()) -> None:
        self._classes: dict[_Class, dict[_Widths, list[_Entry]]] = {}
        self._places: dict[str, tuple[_Class, _Widths]] = {}
        self._unsorted: set[tuple[_Class, _Widths]] = set()
        self._bits: dict[str, int] = {}
        for record in records:
            self.put(record)

    def __len__(self) -> int:
        """How many kernels there are to choose from."""
        return len(self._places)

    def put(self, record: KernelRecord) -> None:
        """Enter a record in the place of an earlier one; one that is not Validated only goes out."""
        self.remove(record.kernel)
        if record.state is not KernelState.VALIDATED or record.report is None:
            return
        place = _class(record.spec.interface, record.spec.target), _WIDTHS(record.spec.interface)
        self._classes.setdefault(place[0], {}).setdefault(place[1], []).append(self._entry(record))
        self._places[record.kernel] = place
        self._unsorted.add(place)

    def remove(self, kernel: str) -> None:
        """Take a kernel out, if it is there."""
        place = self._places.pop(kernel, None)
        if place is None:
            return
        lists = self._classes[place[0]]
        number = _number(kernel)
        lists[place[1]] = [entry for entry in lists[place[1]] if entry[1] != number]

    def best(self, query: KernelQuery) -> list[Ranked]:
        """The best kernels for ``query``, best first; of equal scores the higher merit, then the smaller id.

        A quantity that a query limits and that was not measured lets a kernel down, as does an unknown risk.
        """
        wanted = KernelInterface.of(query.interface, exact=True)
        class_ = _class(wanted, query.target)
        required, excluded, preferred = map(self._mask, (query.required, query.excluded, query.preferred))
        each = TAG_WEIGHT / len(query.preferred) if query.preferred else 0.0
        latency, memory, parameters, risk = _limits(query)
        narrow = query.pipelines is not None or query.blueprints is not None
        found: list[tuple[float, float, int, KernelRecord]] = []
        for widths in self._classes.get(class_, {}):
            if not _holds(widths, wanted.least_in, wanted.least_out):
                continue
            for (
                worth,
                number,
                tags,
                its_latency,
                its_memory,
                its_parameters,
                its_risk,
                record,
            ) in self._sorted(class_, widths):
                full = len(found) == query.best
                if full and (worth + TAG_WEIGHT * bool(each), worth, number) < found[0][:3]:
                    break
                if (
                    tags & required != required
                    or tags & excluded
                    or its_latency > latency
                    or its_memory > memory
                    or its_parameters > parameters
                    or its_risk > risk
                    or (narrow and not _is_named(query, record))
                ):
                    continue
                score = worth + each * (tags & preferred).bit_count() if each else worth
                item = (score, worth, number, record)
                if not full:
                    heappush(found, item)
                elif item[:3] > found[0][:3]:
                    heapreplace(found, item)
        found.sort(key=lambda item: item[:3], reverse=True)
        return [Ranked(record, score, _reasons(record, query)) for score, _, _, record in found]

    def _entry(self, record: KernelRecord) -> _Entry:
        report = record.report
        assert report is not None
        tags = 0
        for tag in report.tags:
            tags |= self._bits.setdefault(tag, 1 << len(self._bits))
        measured = report.measurements.get(LATENCY)
        return (
            merit(report),
            _number(record.kernel),
            tags,
            math.inf if measured is None else measured.median,
            report.numbers.get(MEMORY, math.inf),
            report.numbers.get(PARAMETERS, math.inf),
            math.inf if report.risk is None else report.risk,
            record,
        )

    def _mask(self, tags: Iterable[str]) -> int:
        """The tags as bits; one that no kernel ever had gets a bit that none has."""
        mask = 0
        for tag in tags:
            mask |= self._bits.get(tag) or 1 << len(self._bits)
        return mask

    def _sorted(self, class_: _Class, widths: _Widths) -> list[_Entry]:
        entries = self._classes[class_][widths]
        if (class_, widths) in self._unsorted:
            entries.sort(key=lambda entry: (-entry[0], -entry[1]))
            self._unsorted.discard((class_, widths))
        return entries


def merit(report: ValidationReport) -> float:
    """What a kernel is worth whoever asks: how safe it is (1 - risk; an unknown risk counts as 1), and which
    share of eager time it saves (1 - 1 / speedup; negative where it is slower, 0 where that is unknown)."""
    safety = 0.0 if report.risk is None else 1.0 - report.risk
    return safety + _saved(report.numbers)


def _saved(numbers: Mapping[str, float]) -> float:
    speedup = numbers.get(SPEEDUP)
    return 0.0 if speedup is None or speedup <= 0 else 1.0 - 1.0 / speedup


def _number(kernel: str) -> int:
    """A kernel's id as a number that is the higher, the smaller the id."""
    return -int(kernel[3:], 16)


def _class(interface: KernelInterface, target: Target) -> _Class:
    return (target.name, *_CLASS(interface))


def _holds(widths: _Widths, width_in: int, width_out: int) -> bool:
    return widths[0] <= width_in <= widths[1] and widths[2] <= width_out <= widths[3]


def _limits(query: KernelQuery) -> tuple[float, float, float, float]:
    """On latency, memory, parameters and risk; infinite where there is none."""
    limits = (query.most_latency_us, query.most_bytes, query.most_parameters, query.most_risk)
    latency, memory, parameters, risk = (math.inf if limit is None else limit for limit in limits)
    return latency, memory, parameters, risk


def _is_named(query: KernelQuery, record: KernelRecord) -> bool:
    pipelines, blueprints = query.pipelines, query.blueprints
    return (pipelines is None or record.spec.pipeline in pipelines) and (
        blueprints is None or record.spec.blueprint in blueprints
    )


def _reasons(record: KernelRecord, query: KernelQuery) -> tuple[str, ...]:
    report = record.report
    assert report is not None
    reasons = ["risk unknown" if report.risk is None else f"risk {report.risk:.2f}"]
    speedup = report.numbers.get(SPEEDUP)
    if speedup is not None:
        reasons.append(f"{speedup:.2f}x the speed of eager")
    preferred = query.preferred.intersection(report.tags)
    if preferred:
        reasons.append(f"preferred: {', '.join(sorted(preferred))}")
    return tuple(reasons)
