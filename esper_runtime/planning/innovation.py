"""When blueprints are to be invented, of which parents, and what becomes of those that are proposed."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    CompileWork,
    DeadWork,
    EvaluateWork,
    FieldReport,
    GenerateWork,
    InnovationWish,
    KernelInterface,
    KernelRecord,
    KernelState,
    Origin,
    Proposal,
    SeedStage,
    Work,
)
from esper_runtime.planning.rulings import wilson_lower

MOST_AT_ONCE = 16
_JUDGED = frozenset(
    {KernelState.VALIDATED, KernelState.REJECTED, KernelState.SUPERSEDED, KernelState.QUARANTINED}
)


@dataclass(frozen=True)
class InnovationPolicy:
    """How eager the planner is.

    Attributes:
        ahead: blueprints of one wish of which no kernel was judged yet, at most: what nobody tests is not
            piled up.
        parents: good blueprints that go with each piece of work.
    """

    ahead: int = 4
    parents: int = 6


@dataclass(frozen=True)
class Proposed:
    """A proposal whose signature was checked.

    Attributes:
        blueprint: id of its graph; empty where that cannot be read.
        proposal: what was said.
        refused: rule that its graph breaks, or None.
    """

    blueprint: str
    proposal: Proposal
    refused: str | None = None


@dataclass(frozen=True)
class InnovationState:
    """What is observed.

    Attributes:
        now: Unix time.
        wishes: of trainings, by id.
        proposals: in their order; read after the queue was.
        blueprints: by id.
        records: kernels by id.
        reports: of trainings.
        dead: works that were given up.
        depths: items that wait or are worked on, by work and target; None where they could not be read.
    """

    now: float
    wishes: Mapping[str, InnovationWish] = field(default_factory=dict)
    proposals: Sequence[Proposed] = ()
    blueprints: Mapping[str, BlueprintEntry] = field(default_factory=dict)
    records: Mapping[str, KernelRecord] = field(default_factory=dict)
    reports: Sequence[FieldReport] = ()
    dead: Sequence[DeadWork] = ()
    depths: Mapping[tuple[Work, str], int] | None = None


@dataclass(frozen=True)
class Generate:
    """Publish work for Karn."""

    work: GenerateWork
    target: str


@dataclass(frozen=True)
class EnterProposal:
    """Enter a blueprint that was proposed and passed the static check."""

    proposed: Proposed


@dataclass(frozen=True)
class InnovationPlan:
    """What to do now.

    Attributes:
        actions: in this order.
        refused: proposals that are not entered, by reason.
    """

    actions: tuple[EnterProposal | Generate, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)


def plan_innovation(state: InnovationState, policy: InnovationPolicy | None = None) -> InnovationPlan:
    """Decide which proposals are entered, and what more is asked for.

    A proposal is entered where its graph passed, its wish has not got all its blueprints yet, its parents are
    known, and its id is not. More is asked for where no such work of the target's is under way and fewer than
    ``policy.ahead`` blueprints of the wish wait to be judged; not while a dead letter says that it was tried
    in vain.

    Args:
        state: what is observed.
        policy: how eager to be.
    """
    policy = policy or InnovationPolicy()
    refused: Counter[str] = Counter()
    entered = []
    made = Counter(entry.wish for entry in state.blueprints.values() if entry.wish is not None)
    new: set[str] = set()
    for proposed in state.proposals:
        known = state.blueprints.get(proposed.blueprint)
        if known is not None and known.graph == proposed.proposal.graph:
            continue  # it was entered before
        wish = state.wishes.get(proposed.proposal.wish)
        reason = _refusal(proposed, wish, known is not None or proposed.blueprint in new, state.blueprints)
        if reason is None and wish is not None and made[wish.wish_id] >= wish.blueprints:
            reason = "enough"
        if reason is not None:
            refused[reason] += 1
            continue
        made[proposed.proposal.wish] += 1
        new.add(proposed.blueprint)
        entered.append(EnterProposal(proposed))
    asked = () if entered else tuple(_asked(state, made, policy))
    return InnovationPlan((*entered, *asked), dict(refused))


def _refusal(
    proposed: Proposed, wish: InnovationWish | None, known: bool, there: Mapping[str, BlueprintEntry]
) -> str | None:
    """Why a proposal is of no use; one word, or the rule that it breaks."""
    made = proposed.proposal.graph.provenance
    if wish is None:
        return "unwanted"
    if made.origin is not (Origin.MUTATED if made.parents else Origin.GENERATED):
        return "origin"
    if any(parent not in there for parent in made.parents):
        return "parents"
    if proposed.refused is not None:
        return proposed.refused
    return "known" if known else None


def _asked(state: InnovationState, made: Counter[str], policy: InnovationPolicy) -> Iterator[Generate]:
    """For each target with no such work in its queue, the wish that got the fewest blueprints so far."""
    if state.depths is None:
        return
    given_up = {letter.item.wish for letter in state.dead if isinstance(letter.item, GenerateWork)}
    judged = {record.spec.blueprint for record in state.records.values() if record.state in _JUDGED}
    judged |= _without_hope(state)
    waiting = Counter(
        entry.wish
        for id_, entry in state.blueprints.items()
        if entry.wish is not None and entry.archived is None and id_ not in judged
    )
    tried = Counter(one.proposal.wish for one in state.proposals)
    busy = {target for (work, target), items in state.depths.items() if work == "generate" and items}
    for id_, wish in sorted(state.wishes.items(), key=lambda pair: (made[pair[0]], pair[0])):
        number = min(policy.ahead - waiting[id_], wish.blueprints - made[id_], MOST_AT_ONCE)
        if number <= 0 or id_ in given_up or wish.target.name in busy:
            continue
        busy.add(wish.target.name)
        slots = wish.slots[tried[id_] % len(wish.slots)]
        work = GenerateWork(
            wish=id_,
            slots=slots,
            budget=wish.budget,
            parents=tuple(best_parents(slots, state, policy.parents)),
            number=number,
            seed=_seed(f"{id_} {made[id_]} {tried[id_]} {int(1000 * state.now)}"),
        )
        yield Generate(work, wish.target.name)


def best_parents(slots: KernelInterface, state: InnovationState, most: int) -> list[Blueprint]:
    """The blueprints for such slots that trainings have kept most often, then those with a validated kernel.

    The measure is the lower end of Wilson's interval of the share of seeds that were kept (95 %), then their
    mean contribution. A blueprint of which no reported seed was kept is left out.

    Args:
        slots: that children have to fit.
        state: what is observed.
        most: so many.
    """
    suited = {
        id_: entry.graph
        for id_, entry in state.blueprints.items()
        if entry.archived is None
        and entry.graph.interface is slots.kind
        and entry.graph.span is (slots.consumer is not None)
        and (entry.graph.causal or not slots.causal)
    }
    seeds, kept = Counter[str](), Counter[str]()
    gains: dict[str, list[float]] = {}
    for report in state.reports:
        seeds[report.blueprint] += 1
        kept[report.blueprint] += report.outcome == SeedStage.FOSSILIZED.value and report.failure is None
        if report.contribution is not None:
            gains.setdefault(report.blueprint, []).append(report.contribution)

    def rank(id_: str) -> tuple[float, float, str]:
        found = gains.get(id_, [])
        mean = sum(found) / len(found) if found else 0.0
        return -wilson_lower(kept[id_], seeds[id_], 1.96), -mean, id_

    validated = {r.spec.blueprint for r in state.records.values() if r.state is KernelState.VALIDATED}
    reported = sorted((id_ for id_ in suited if kept[id_]), key=rank)
    tested = sorted(id_ for id_ in suited if id_ in validated and not seeds[id_])
    return [suited[id_] for id_ in (*reported, *tested)[:most]]


def _without_hope(state: InnovationState) -> set[str]:
    """Blueprints of kernels that were given up: nobody judges them before a person has them tried again."""
    found = set()
    for letter in state.dead:
        if isinstance(letter.item, CompileWork):
            found.add(letter.item.spec.blueprint)
        elif isinstance(letter.item, EvaluateWork) and letter.item.kernel in state.records:
            found.add(state.records[letter.item.kernel].spec.blueprint)
    return found


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
