"""Which kernels and blueprints of the library are shown as resources, and what the status of a kernel says.

The library is their source. They are removed by record alone: one that is known and no longer among those
that are shown. What the library does not know any more stays, and says so.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from esper_runtime.contracts import BlueprintEntry, KernelRecord, KernelState, Origin
from esper_runtime.contracts.resources import CompiledKernelStatus, KernelCondition
from esper_runtime.planning.blueprints import SOUND
from esper_runtime.planning.conditions import Verdict, conditions_after

MOST_SHOWN = 200
"""Kernels that are shown besides those in use; blueprints too."""
_EQUIVALENCE = "difference"
_SPEED = "speedup"
_MADE = (Origin.GENERATED.value, Origin.MUTATED.value)
_BEST_FIRST = (
    KernelState.VALIDATED,
    KernelState.BENCHMARKING,
    KernelState.PENDING_BENCHMARK,
    KernelState.QUARANTINED,
    KernelState.REJECTED,
    KernelState.SUPERSEDED,
)


@dataclass(frozen=True)
class Merit:
    """What shown ones are ranked by: what a kernel is worth, and when its blueprint was entered."""

    worth: float = 0.0
    entered: str = ""


def kernels_shown(
    records: Iterable[KernelRecord],
    blueprints: Mapping[str, BlueprintEntry],
    merits: Mapping[str, Merit],
    in_use: Collection[str] = (),
    most: int = MOST_SHOWN,
) -> list[str]:
    """Ids of the kernels that are shown: those of blueprints in use, and the best others.

    A kernel without an artifact is none yet, and those of archived blueprints are no longer offered.

    Args:
        records: of all kernels.
        blueprints: by id.
        merits: by kernel.
        in_use: ids of blueprints that runs which go on have planted.
        most: others that are shown.
    """

    def offered(record: KernelRecord) -> bool:
        entry = blueprints.get(record.spec.blueprint)
        return record.digest is not None and (entry is None or entry.archived is None)

    def rank(record: KernelRecord) -> tuple[int, float, str, str]:
        merit = merits.get(record.kernel, Merit())
        later = "".join(chr(0x10FFFF - ord(letter)) for letter in merit.entered)
        return _BEST_FIRST.index(record.state), -merit.worth, later, record.kernel

    known = [record for record in records if offered(record)]
    used = [r.kernel for r in known if r.spec.blueprint in in_use and r.state in SOUND]
    others = sorted((r for r in known if r.kernel not in set(used)), key=rank)
    return [*sorted(used), *(record.kernel for record in others[:most])]


def blueprints_shown(
    blueprints: Mapping[str, BlueprintEntry],
    merits: Mapping[str, Merit],
    in_use: Collection[str] = (),
    most: int = MOST_SHOWN,
) -> list[str]:
    """Ids of the blueprints that the system has made and that are shown: those in use, and the best others.

    Args:
        blueprints: by id.
        merits: by blueprint.
        in_use: ids of blueprints that runs which go on have planted.
        most: others that are shown.
    """
    made = [entry for entry in blueprints.values() if entry.origin in _MADE and entry.archived is None]
    used = sorted(entry.blueprint for entry in made if entry.blueprint in in_use)
    made.sort(key=lambda entry: entry.blueprint)
    made.sort(key=lambda entry: entry.entered, reverse=True)
    made.sort(key=lambda entry: -merits.get(entry.blueprint, Merit()).worth)
    return [*used, *[entry.blueprint for entry in made if entry.blueprint not in in_use][:most]]


def kernel_status(
    record: KernelRecord | None, before: CompiledKernelStatus, generation: int, now: float
) -> CompiledKernelStatus:
    """The status of a kernel's resource.

    Args:
        record: None where the library, which can be asked, does not know it.
        before: the status that it has.
        generation: of its spec.
        now: seconds since the epoch.
    """
    found: dict[str, Verdict] = {}
    update: dict[str, object] = {"observed_generation": generation}
    if record is None:
        text = (
            "the library has no such kernel: it had lost its storage, and the kernel was not made again yet"
        )
        found[KernelCondition.KEPT] = Verdict("False", "Lost", text)
    else:
        found = _found(record, {condition.type for condition in before.conditions})
        update |= _figures(record)
    update["conditions"] = conditions_after(
        before.conditions, found, KernelCondition, generation=generation, now=now
    )
    return before.model_copy(update=update)


def _found(record: KernelRecord, before: Collection[str]) -> dict[str, Verdict]:
    state = record.state
    found = {KernelCondition.KEPT.value: Verdict("True"), KernelCondition.COMPILED.value: Verdict("True")}
    if record.digest is None:
        text = "the library had lost its storage; the kernel is being made again"
        found[KernelCondition.KEPT] = Verdict("False", "MadeAgain", text)
        found[KernelCondition.COMPILED] = Verdict("False", state.value, record.reason)
    if state in SOUND:
        by = f"superseded by {record.superseded_by}" if record.superseded_by else record.reason
        found[KernelCondition.VALIDATED] = Verdict("True", state.value, by)
    elif state in (KernelState.REJECTED, KernelState.QUARANTINED):
        found[KernelCondition.VALIDATED] = Verdict("False", state.value, record.reason)
    else:
        found[KernelCondition.VALIDATED] = Verdict("Unknown", state.value, "it is to be tested")
    for kind, bad in (
        (KernelCondition.REJECTED, KernelState.REJECTED),
        (KernelCondition.QUARANTINED, KernelState.QUARANTINED),
    ):
        if state is bad:
            found[kind] = Verdict("True", kind.value, record.reason)
        elif kind in before:
            found[kind] = Verdict("False", f"Not{kind.value}")
    return found


def _figures(record: KernelRecord) -> dict[str, object]:
    report = record.report
    if report is None:
        return {"phase": record.state}
    speed = report.numbers.get(_SPEED)
    return {
        "phase": record.state,
        "measurements": dict(report.measurements),
        "numbers": dict(report.numbers),
        "tags": report.tags,
        "risk": report.risk,
        "equivalence": report.numbers.get(_EQUIVALENCE),
        "speed": "" if speed is None else f"{speed:.2f}x",
        "signature": record.verdict.signature if record.verdict is not None else None,
    }
