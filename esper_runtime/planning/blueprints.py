"""A blueprint as a resource: what is to be done in the library, and what its status says.

A person's blueprint is ruled by its resource: it is entered, and wished for on whatever the pools of the
release have. That it is gone is not decided here, since absence orders nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    FieldReport,
    KernelInterface,
    KernelRecord,
    KernelSpec,
    KernelState,
    Pipeline,
    WorkerFacts,
)
from esper_runtime.contracts.resources import (
    BlueprintCondition,
    BlueprintPhase,
    BlueprintStatus,
    Condition,
    Score,
)
from esper_runtime.planning.conditions import Verdict, conditions_after

DELETED = "its resource was deleted: "
"""How the reason of an archived entry begins that a new resource brings back."""
_NO_POOL = (
    "no pool of the release both makes and tests kernels; give one in the chart's values (pools) a tezzeret "
    "and a urabrask of at least 1"
)
SOUND = frozenset({KernelState.VALIDATED, KernelState.SUPERSEDED})
"""States of kernels that have passed."""


class LibraryState(StrEnum):
    """Whether the library can be asked. Unasked: it does not answer, and that is too new to be told."""

    NONE = "None"
    UNASKED = "Unasked"
    AWAY = "Away"
    THERE = "There"


@dataclass(frozen=True)
class BlueprintSeen:
    """A blueprint's resource.

    Attributes:
        graph: None where the static check refuses it.
        refusal: what is wrong, where, and what to do.
        id: of the graph.
        pipelines: that are wanted.
        slots: the class that kernels are made for where no run asks, by pipeline; without those of which
            the graph fits no usual slots.
        generation: of the spec.
        before: the status that it has.
        mirrored: whether it only shows what the library has.
    """

    graph: Blueprint | None
    refusal: str = ""
    id: str | None = None
    pipelines: tuple[Pipeline, ...] = (Pipeline.FAST,)
    slots: Mapping[Pipeline, KernelInterface] | None = None
    generation: int = 0
    before: BlueprintStatus = field(default_factory=BlueprintStatus)
    mirrored: bool = False


@dataclass(frozen=True)
class Workplaces:
    """Where kernels are made.

    Attributes:
        sites: what the pools make kernels for, as far as they were asked.
        pools: names of the pools that make and test kernels.
        inventing: names of those that invent blueprints too.
        unserved: targets with work that no pool serves.
        trouble: what keeps workers from working, reason and sentence, where it is known.
    """

    sites: tuple[WorkerFacts, ...] = ()
    pools: tuple[str, ...] = ()
    inventing: tuple[str, ...] = ()
    unserved: frozenset[str] = frozenset()
    trouble: tuple[str, str] | None = None


@dataclass(frozen=True)
class LibraryFacts:
    """What the library says of a blueprint.

    Attributes:
        state: whether it can be asked.
        incarnation: of the library; another one than before means that it had lost its storage.
        entry: None where it is not in it.
        kernels: of this blueprint.
        reports: of trainings about these kernels.
    """

    state: LibraryState
    incarnation: str | None = None
    entry: BlueprintEntry | None = None
    kernels: Sequence[KernelRecord] = ()
    reports: Sequence[FieldReport] = ()


@dataclass(frozen=True)
class Enter:
    """Enter the graph in the library; take it out of the archive where a deletion has put it there."""

    id: str
    reinstate: bool = False


@dataclass(frozen=True)
class Wish:
    """Say that a kernel is wanted."""

    spec: KernelSpec


BlueprintAction = Enter | Wish


@dataclass(frozen=True)
class BlueprintPlan:
    """What to do, and the whole status."""

    actions: tuple[BlueprintAction, ...]
    status: BlueprintStatus


def plan_blueprint(
    seen: BlueprintSeen, library: LibraryFacts, places: Workplaces, now: float
) -> BlueprintPlan:
    """Decide about one blueprint.

    Args:
        seen: its resource.
        library: what the library says of it.
        places: where kernels are made.
        now: seconds since the epoch.
    """
    before = seen.before
    there = library.state is LibraryState.THERE
    kernels = library.kernels if there and seen.graph is not None else ()
    found: dict[str, Verdict] = {BlueprintCondition.VALID: _valid(seen)}
    counts = dict(before.kernels)
    summary, score = before.kernels_summary, before.score
    if seen.graph is not None and library.state is not LibraryState.UNASKED:
        found[BlueprintCondition.SERVED] = _offered(library) or _served(seen, kernels, places)
    if there and seen.graph is not None:
        found[BlueprintCondition.COMPILED] = _compiled(seen, library)
        found |= _judged(seen, library)
        counted = Counter(record.state for record in kernels)
        counts = {state.value: counted[state] for state in KernelState if counted[state]}
        summary = f"{sum(counted[state] for state in SOUND)}/{len(kernels)}" if kernels else ""
        score = score_of(library.reports) or score
    conditions = conditions_after(
        before.conditions, found, BlueprintCondition, generation=seen.generation, now=now
    )
    status = before.model_copy(
        update={
            "phase": _phase(conditions, bool(counts)),
            "observed_generation": seen.generation,
            "conditions": conditions,
            "id": seen.id,
            "library": library.incarnation if there and library.entry is not None else before.library,
            "kernels": counts,
            "kernels_summary": summary,
            "score": score,
        }
    )
    return BlueprintPlan(() if seen.mirrored else tuple(_actions(seen, library, places)), status)


def served_runs(places: Workplaces, *, invents: bool = False) -> Verdict:
    """Whether the pools make what a run wants.

    Args:
        places: where kernels are made.
        invents: whether the run wants blueprints invented.
    """
    if not places.pools:
        return Verdict(
            "False", "NoPool", f"{_NO_POOL}; until then runs get the kernels that are there already"
        )
    if places.unserved:
        return Verdict(
            "False",
            "NoPool",
            f"kernels are wanted for {', '.join(sorted(places.unserved))}, which no pool serves (pools are "
            f"{', '.join(places.pools)}); a run on such nodes gets none until a pool for them is in the "
            "chart's values (pools)",
        )
    if invents and not places.inventing:
        return Verdict(
            "False",
            "NoKarn",
            "spec.innovation.enabled is true, and no pool of the release invents blueprints: give one in the "
            "chart's values (pools) a karn of at least 1. Until then the run grows with what the library has",
        )
    return Verdict("True", "Served")


def score_of(reports: Sequence[FieldReport]) -> Score | None:
    """Mean contribution in trainings with its normal 95 % interval; None for fewer than two of them."""
    values = [report.contribution for report in reports if report.contribution is not None]
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = 1.96 * math.sqrt(variance / len(values))
    return Score(mean=mean, low=mean - half, high=mean + half, count=len(values))


def wanted_kernels(seen: BlueprintSeen, sites: Sequence[WorkerFacts]) -> list[KernelSpec]:
    """The kernels that a blueprint is made ready as where no run asks: each pipeline at each site."""
    if seen.id is None:
        return []
    return [
        KernelSpec(
            blueprint=seen.id,
            interface=slots,
            target=site.target,
            pipeline=pipeline,
            toolchain=dict(site.toolchains[pipeline]),
        )
        for site in sites
        for pipeline in dict.fromkeys(seen.pipelines)
        if pipeline in site.toolchains and (slots := (seen.slots or {}).get(pipeline)) is not None
    ]


def _actions(seen: BlueprintSeen, library: LibraryFacts, places: Workplaces) -> list[BlueprintAction]:
    if seen.graph is None or seen.id is None or library.state is not LibraryState.THERE:
        return []
    entry = library.entry
    if entry is None:
        return [Enter(seen.id)]
    if entry.archived is not None:
        return [Enter(seen.id, reinstate=True)] if entry.archived.startswith(DELETED) else []
    known = {record.kernel for record in library.kernels}
    wanted = wanted_kernels(seen, places.sites)
    return [Wish(spec) for spec in wanted if spec.kernel_id not in known]


def _valid(seen: BlueprintSeen) -> Verdict:
    return Verdict("False", "Invalid", seen.refusal) if seen.graph is None else Verdict("True", "Valid")


def _offered(library: LibraryFacts) -> Verdict | None:
    """Why the library does not offer it; None where it does."""
    if library.state is LibraryState.NONE:
        return Verdict(
            "False", "NoBus", "the release has no bus, and so no library; set nats.deploy or nats.url"
        )
    if library.state is LibraryState.AWAY:
        return Verdict(
            "Unknown",
            "LibraryAway",
            "the library cannot be reached at present; what stands here is what was known last, and "
            "everything goes on once it is back",
        )
    if library.entry is None:
        return Verdict("False", "Entering", "it is not in the library yet")
    if library.entry.archived is not None:
        return Verdict("False", "Archived", f"archived: {library.entry.archived}")
    return None


def _served(seen: BlueprintSeen, kernels: Sequence[KernelRecord], places: Workplaces) -> Verdict:
    if not places.pools:
        return Verdict("False", "NoPool", _NO_POOL)
    open_ = {record.spec.target.name for record in kernels if record.state in _OPEN}
    missing = sorted(open_ & places.unserved)
    if missing:
        return Verdict(
            "False",
            "NoPool",
            f"no pool serves {', '.join(missing)}; pools are {', '.join(places.pools)}: add one for nodes of "
            "that kind to the chart's values (pools)",
        )
    if places.trouble is not None and (open_ or not places.sites):
        return Verdict("False", *places.trouble)
    if not places.sites:
        pools = ", ".join(places.pools)
        return Verdict("Unknown", "Asking", f"what the nodes of the pools are is being found out: {pools}")
    offered = {pipeline for site in places.sites for pipeline in site.toolchains}
    lacking = [pipeline.value for pipeline in dict.fromkeys(seen.pipelines) if pipeline not in offered]
    if lacking and not seen.mirrored:
        there = ", ".join(sorted(pipeline.value for pipeline in offered))
        return Verdict(
            "False",
            "NoPipeline",
            f"spec.pipelines: no pool offers {', '.join(lacking)}; offered: {there}",
        )
    names = sorted({site.target.name for site in places.sites})
    return Verdict("True", "Served", f"for {', '.join(names)}")


_OPEN = frozenset(
    {KernelState.PENDING, KernelState.COMPILING, KernelState.PENDING_BENCHMARK, KernelState.BENCHMARKING}
)


def _compiled(seen: BlueprintSeen, library: LibraryFacts) -> Verdict:
    kernels = library.kernels
    made = sum(record.digest is not None for record in kernels)
    if made:
        return Verdict("True", "Compiled", f"{made} of {len(kernels)} kernels")
    last = next((c for c in seen.before.conditions if c.type == BlueprintCondition.COMPILED), None)
    lost = seen.before.library not in (None, library.incarnation)
    if lost or (last is not None and last.reason == "MadeAgain"):
        text = "the library had lost its storage: it is entered again, and its kernels are made again"
        return Verdict("False", "MadeAgain", text)
    failed = next((r for r in kernels if r.state is KernelState.REJECTED), None)
    if failed is not None and not any(record.state in _OPEN for record in kernels):
        return Verdict("False", "Rejected", f"{failed.kernel}: {failed.reason}")
    return Verdict("False", "Compiling", "its kernels are being made") if kernels else _without_kernels(seen)


def _without_kernels(seen: BlueprintSeen) -> Verdict:
    if seen.slots is not None and not seen.slots:
        text = "it fits no slots of usual widths; kernels are made for the runs whose slots it fits"
        return Verdict("Unknown", "NoUsualSlots", text)
    return Verdict("Unknown", "NoKernels", "no kernel of it was asked for yet")


def _judged(seen: BlueprintSeen, library: LibraryFacts) -> dict[str, Verdict]:
    kernels = library.kernels
    counted = Counter(record.state for record in kernels)
    passed = sum(counted[state] for state in SOUND)
    bad = next((r for r in kernels if r.state is KernelState.QUARANTINED), None)
    rejected = next((r for r in kernels if r.state is KernelState.REJECTED), None)
    found: dict[str, Verdict] = {}
    if passed:
        verdict = Verdict("True", "Validated", f"{passed} of {len(kernels)} kernels")
    elif bad is not None and not any(r.state in _OPEN for r in kernels):
        verdict = Verdict("True", "Quarantined", f"{bad.kernel}: {bad.reason}")
    elif rejected is not None and counted[KernelState.REJECTED] == len(kernels):
        tested = any(record.digest is not None for record in kernels)
        verdict = Verdict("True" if tested else "False", "Rejected", f"{rejected.kernel}: {rejected.reason}")
    elif kernels:
        verdict = Verdict("False", "Forging", "its kernels are being made and tested")
    else:
        verdict = _without_kernels(seen)
    found[BlueprintCondition.EVALUATED] = verdict
    before = {condition.type for condition in seen.before.conditions}
    if bad is not None:
        found[BlueprintCondition.QUARANTINED] = Verdict("True", "Quarantined", f"{bad.kernel}: {bad.reason}")
    elif BlueprintCondition.QUARANTINED in before:
        found[BlueprintCondition.QUARANTINED] = Verdict("False", "NotQuarantined")
    return found


def _phase(conditions: Sequence[Condition], has_kernels: bool) -> BlueprintPhase:
    """One word, from the conditions."""
    by_type = {condition.type: condition for condition in conditions}
    valid, evaluated = by_type.get(BlueprintCondition.VALID), by_type.get(BlueprintCondition.EVALUATED)
    if valid is not None and valid.status == "False":
        return BlueprintPhase.INVALID
    phase = _ENDS.get("" if evaluated is None else evaluated.reason)
    if phase is not None:
        return phase
    return BlueprintPhase.FORGING if has_kernels else BlueprintPhase.PENDING


_ENDS = {
    phase.value: phase
    for phase in (BlueprintPhase.VALIDATED, BlueprintPhase.REJECTED, BlueprintPhase.QUARANTINED)
}
"""Phases that are the reason for which a blueprint is Evaluated."""
