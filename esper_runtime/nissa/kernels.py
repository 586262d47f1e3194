"""The kernels of a run: which ran, what was measured of them before, and what they then did."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from esper_runtime.contracts import (
    FieldReport,
    JournalEntry,
    KernelReported,
    KernelsArrived,
    KernelsGone,
    KernelSummary,
    SeedChanged,
    TwinChanged,
)
from esper_runtime.nissa.words import number


@dataclass(frozen=True)
class KernelUse:
    """A kernel that was planted, with its seeds in order.

    Attributes:
        kernel: its id.
        digest: of its artifact.
        name: its blueprint's.
        tested: what was known of it when it arrived; None where the journal does not say.
        seeds: that were made of it.
        reports: of those seeds that have ended, or lived when the run did.
        twins: seeds for which a compiled twin ran, and how many times as fast it was in place.
        gone: why it may be planted no more.
    """

    kernel: str
    digest: str
    name: str
    tested: KernelSummary | None
    seeds: tuple[str, ...] = ()
    reports: tuple[FieldReport, ...] = ()
    twins: tuple[str, ...] = ()
    gone: str | None = None

    def figure(self, name: str, unit: str = "", factor: float = 1.0) -> str:
        """A figure of its test in words; a dash where it was not measured."""
        value = None if self.tested is None else self.tested.figures.get(name)
        return "–" if value is None else f"{number(value * factor)}{unit}"


@dataclass(frozen=True)
class KernelsOfRun:
    """What the journal says of kernels: how many could be planted, which ran, what was refused and why."""

    offered: int
    used: tuple[KernelUse, ...]
    refused: tuple[tuple[str, str], ...]


def kernels_of(entries: Sequence[JournalEntry]) -> KernelsOfRun:
    """Read a journal; where steps were done again, what they did first counts too, as kernels ran in it."""
    known: dict[str, KernelSummary] = {}
    refused: dict[str, str] = {}
    remade: dict[str, str] = {}
    used: dict[str, KernelUse] = {}
    of_seed: dict[str, str] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, KernelsArrived):
            known |= {kernel.kernel: kernel for kernel in event.kernels}
            refused |= event.refused
            remade |= event.remade
        elif isinstance(event, KernelsGone):
            refused |= event.kernels
        elif isinstance(event, SeedChanged) and event.before is None and event.kernel is not None:
            of_seed[event.seed] = event.kernel
            use = used.get(event.kernel) or KernelUse(
                event.kernel, event.digest or "", event.name, known.get(event.kernel)
            )
            used[event.kernel] = replace(use, seeds=_with(use.seeds, event.seed))
        elif isinstance(event, KernelReported) and event.report.kernel in used:
            use = used[event.report.kernel]
            others = tuple(report for report in use.reports if report.seed != event.report.seed)
            used[use.kernel] = replace(use, reports=(*others, event.report))
        elif isinstance(event, TwinChanged) and event.seed in of_seed and event.speedup is not None:
            use = used[of_seed[event.seed]]
            words = f"{event.seed}: {event.kernel}, {number(event.speedup)} times as fast in place"
            used[use.kernel] = replace(use, twins=_with(use.twins, words))
    for kernel, reason in refused.items():
        if kernel in used:
            used[kernel] = replace(used[kernel], gone=reason)
    told = [*refused.items(), *((kernel, f"made anew: {reason}") for kernel, reason in remade.items())]
    return KernelsOfRun(len(known), tuple(used.values()), tuple(told))


def _with(items: tuple[str, ...], item: str) -> tuple[str, ...]:
    return items if item in items else (*items, item)
