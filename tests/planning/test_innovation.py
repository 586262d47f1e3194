"""When Karn is asked, with which parents, and which of its proposals are entered."""

from dataclasses import replace

import pytest

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    CompileWork,
    DeadWork,
    FieldReport,
    GenerateWork,
    InnovationWish,
    Interface,
    KernelInterface,
    KernelRecord,
    KernelSpec,
    KernelState,
    Origin,
    Pipeline,
    Proposal,
    Provenance,
    Target,
)
from esper_runtime.planning import (
    EnterProposal,
    Generate,
    InnovationPolicy,
    InnovationState,
    Proposed,
    plan_innovation,
)

TARGET = Target(device="cpu", arch="avx2", torch="2.13.0")
OTHER = Target(device="cuda", arch="sm-90", torch="2.13.0")
SLOTS = KernelInterface.of(Interface(kind="features", width_in=8, width_out=8), exact=True)
WISH = InnovationWish(run="local/one", slots=(SLOTS,), target=TARGET, blueprints=6)
ID = WISH.wish_id
NAMES = ("mlp", "mlp-4", "mlp-8", "low-rank", "mlp-bn", "gated-mlp", "norm-scale", "mlp-16")


def graph(name: str, parents: tuple[str, ...] = ()) -> Blueprint:
    """A graph of the catalogue as if Karn had made it."""
    origin = Origin.MUTATED if parents else Origin.GENERATED
    made = Provenance(origin=origin, parents=parents, generator="test", seed=1)
    return catalogue()[name].model_copy(update={"provenance": made})


def proposed(
    name: str, refused: str | None = None, parents: tuple[str, ...] = (), wish: str = ID
) -> Proposed:
    made = graph(name, parents)
    return Proposed(canonical_id(made), Proposal(wish=wish, graph=made), refused)


def entry(name: str, wish: str | None = None, origin: Origin = Origin.CATALOGUE) -> BlueprintEntry:
    made = graph(name) if wish else catalogue()[name]
    return BlueprintEntry(
        blueprint=canonical_id(made), graph=made, origin=origin.value, entered="now", wish=wish
    )


def entries(*found: BlueprintEntry) -> dict[str, BlueprintEntry]:
    return {each.blueprint: each for each in found}


def record(of: BlueprintEntry, state: KernelState) -> dict[str, KernelRecord]:
    spec = KernelSpec(blueprint=of.blueprint, interface=SLOTS, target=TARGET, pipeline=Pipeline.FAST)
    return {spec.kernel_id: KernelRecord(kernel=spec.kernel_id, spec=spec, state=state)}


def report(of: BlueprintEntry, outcome: str, contribution: float | None = None) -> FieldReport:
    return FieldReport(
        kernel="ck-" + "0" * 12,
        digest="0" * 64,
        blueprint=of.blueprint,
        run="r",
        seed="s",
        slot="x",
        outcome=outcome,
        steps=1,
        contribution=contribution,
        parameters=1,
    )


EMPTY = InnovationState(now=1000.0, wishes={ID: WISH}, depths={})


def asked(state: InnovationState) -> list[GenerateWork]:
    return [one.work for one in plan_innovation(state).actions if isinstance(one, Generate)]


def test_who_wants_nothing_invented_gets_nothing_asked_for() -> None:
    assert plan_innovation(replace(EMPTY, wishes={})).actions == ()


def test_a_wish_is_asked_for_with_its_slots_and_so_many_that_few_wait_to_be_judged() -> None:
    (action,) = plan_innovation(EMPTY).actions
    assert isinstance(action, Generate)
    assert (action.target, action.work.wish, action.work.slots) == (TARGET.name, ID, SLOTS)
    assert action.work.number == InnovationPolicy().ahead
    assert plan_innovation(EMPTY) == plan_innovation(EMPTY)


@pytest.mark.parametrize("depths", [None, {("generate", TARGET.name): 1}])
def test_nothing_is_asked_while_work_is_under_way_or_that_is_not_known(depths: object) -> None:
    assert asked(replace(EMPTY, depths=depths)) == []  # type: ignore[arg-type]


def test_work_of_other_kinds_and_for_other_targets_is_no_reason_to_wait() -> None:
    depths = {("compile", TARGET.name): 9, ("generate", OTHER.name): 1, ("generate", TARGET.name): 0}
    assert len(asked(replace(EMPTY, depths=depths))) == 1  # type: ignore[arg-type]


def test_what_waits_to_be_judged_is_not_piled_up_and_what_was_judged_makes_room() -> None:
    waiting = [entry(name, ID, Origin.GENERATED) for name in NAMES[:4]]
    full = replace(EMPTY, blueprints=entries(*waiting))
    assert asked(full) == []
    for state in (KernelState.VALIDATED, KernelState.REJECTED, KernelState.QUARANTINED):
        (work,) = asked(replace(full, records=record(waiting[0], state)))
        assert work.number == 1
    assert asked(replace(full, records=record(waiting[0], KernelState.PENDING))) == []
    archived = waiting[0].model_copy(update={"archived": "no"})
    (work,) = asked(replace(full, blueprints=entries(*waiting[1:], archived)))
    assert work.number == 1


def test_a_kernel_that_was_given_up_holds_up_nothing() -> None:
    waiting = [entry(name, ID, Origin.GENERATED) for name in NAMES[:4]]
    (spec,) = (r.spec for r in record(waiting[0], KernelState.PENDING).values())
    item = CompileWork(spec=spec, graph=waiting[0].graph)
    letter = DeadWork(work="compile", target=TARGET.name, item=item, reason="no", deliveries=5, time="now")
    (work,) = asked(replace(EMPTY, blueprints=entries(*waiting), dead=(letter,)))
    assert work.number == 1


def test_no_more_are_asked_for_or_entered_than_the_wish_says() -> None:
    made = [entry(name, ID, Origin.GENERATED) for name in NAMES[:6]]
    judged = {k: r for one in made for k, r in record(one, KernelState.VALIDATED).items()}
    done = replace(EMPTY, blueprints=entries(*made), records=judged)
    assert asked(done) == []
    assert plan_innovation(replace(done, proposals=(proposed("norm-scale"),))).refused == {"enough": 1}
    five = replace(done, blueprints=entries(*made[:5]))
    assert [work.number for work in asked(five)] == [1]
    plan = plan_innovation(replace(five, proposals=(proposed("norm-scale"), proposed("mlp-16"))))
    assert len(plan.actions) == 1
    assert plan.refused == {"enough": 1}


def test_a_dead_letter_ends_the_asking_for_its_wish_alone() -> None:
    (work,) = asked(EMPTY)
    letter = DeadWork(work="generate", target=TARGET.name, item=work, reason="no", deliveries=1, time="now")
    other = WISH.model_copy(update={"run": "local/two"})
    state = replace(EMPTY, wishes={ID: WISH, other.wish_id: other}, dead=(letter,))
    assert [one.wish for one in asked(state)] == [other.wish_id]


def test_wishes_take_turns_those_that_got_least_first_and_each_target_has_its_own() -> None:
    two = WISH.model_copy(update={"run": "local/two"})
    far = WISH.model_copy(update={"run": "local/far", "target": OTHER})
    state = replace(EMPTY, wishes={w.wish_id: w for w in (WISH, two, far)})
    first = {one.wish for one in asked(state)}
    assert far.wish_id in first
    assert len(first) == 2
    (one,) = first - {far.wish_id}
    other = {ID, two.wish_id} - {one}
    got = replace(state, blueprints=entries(entry("mlp", one, Origin.GENERATED)))
    assert {work.wish for work in asked(got)} == {*other, far.wish_id}


def test_the_classes_of_a_wish_take_turns_and_no_draw_is_asked_for_twice() -> None:
    wide = KernelInterface.of(Interface(kind="features", width_in=64, width_out=64), exact=True)
    wish = WISH.model_copy(update={"slots": (SLOTS, wide)})
    (first,) = asked(replace(EMPTY, wishes={ID: wish}))
    (second,) = asked(replace(EMPTY, wishes={ID: wish}, proposals=(proposed("mlp", "fit"),)))
    assert (first.slots, second.slots) == (SLOTS, wide)
    assert first.seed != second.seed


def test_a_proposal_that_passed_is_entered_once() -> None:
    one = proposed("mlp")
    plan = plan_innovation(replace(EMPTY, proposals=(one, one)))
    assert plan.actions == (EnterProposal(one),)
    assert plan.refused == {"known": 1}
    there = replace(EMPTY, proposals=(one,), blueprints=entries(entry("mlp", ID, Origin.GENERATED)))
    plan = plan_innovation(there)
    assert not any(isinstance(action, EnterProposal) for action in plan.actions)
    assert plan.refused == {}


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (proposed("mlp", refused="zero-tail"), "zero-tail"),
        (proposed("mlp", wish="iw-" + "0" * 12), "unwanted"),
        (proposed("mlp", parents=("bp-" + "0" * 12,)), "parents"),
        (proposed("low-rank"), "known"),
    ],
)
def test_other_proposals_are_refused_with_the_reason(one: Proposed, reason: str) -> None:
    state = replace(EMPTY, proposals=(one,), blueprints=entries(entry("low-rank")), depths=None)
    plan = plan_innovation(state)
    assert plan.actions == ()
    assert plan.refused == {reason: 1}


def test_a_mutation_says_so_and_a_draw_has_no_parents() -> None:
    there = entries(entry("low-rank"))
    child = proposed("mlp", parents=tuple(there))
    assert plan_innovation(replace(EMPTY, proposals=(child,), blueprints=there)).actions == (
        EnterProposal(child),
    )
    made = child.proposal.graph.provenance.model_copy(update={"origin": Origin.CATALOGUE})
    lying = child.proposal.graph.model_copy(update={"provenance": made})
    wrong = Proposed(child.blueprint, Proposal(wish=ID, graph=lying))
    state = replace(EMPTY, proposals=(wrong,), blueprints=there, depths=None)
    assert plan_innovation(state).refused == {"origin": 1}


def test_parents_are_those_that_trainings_kept_most_then_tested_ones_and_never_those_they_culled() -> None:
    best, good, lone, tested, culled, unsuited = (
        entry(name) for name in ("mlp", "mlp-4", "mlp-8", "low-rank", "mlp-bn", "attention")
    )
    reports = [report(best, "Fossilized", 0.3) for _ in range(4)]
    reports += [report(good, "Fossilized", 0.1) for _ in range(4)]
    reports += [report(lone, "Fossilized"), report(lone, "Culled"), report(culled, "Culled")]
    reports += [report(unsuited, "Fossilized") for _ in range(9)]
    state = replace(
        EMPTY,
        blueprints=entries(best, good, lone, tested, culled, unsuited),
        records={k: r for one in (tested, culled) for k, r in record(one, KernelState.VALIDATED).items()},
        reports=tuple(reports),
    )
    (work,) = asked(state)
    assert [parent.name for parent in work.parents] == ["mlp", "mlp-4", "mlp-8", "low-rank"]
    gone = {**state.blueprints, best.blueprint: best.model_copy(update={"archived": "no"})}
    (work,) = asked(replace(state, blueprints=gone))
    assert [parent.name for parent in work.parents] == ["mlp-4", "mlp-8", "low-rank"]


def test_only_widenings_are_parents_for_spans() -> None:
    span = Interface(
        kind="features",
        width_in=8,
        width_out=8,
        producer={"kernel": (), "stride": (), "padding": (), "dilation": (), "groups": 1},
        consumer={"kernel": (), "stride": (), "padding": (), "dilation": (), "groups": 1},
        activation="relu",
    )
    wish = WISH.model_copy(update={"slots": (KernelInterface.of(span, exact=True),)})
    found = [entry("mlp"), entry("widen-linear")]
    records = {k: r for one in found for k, r in record(one, KernelState.VALIDATED).items()}
    (work,) = asked(replace(EMPTY, wishes={ID: wish}, blueprints=entries(*found), records=records))
    assert [parent.name for parent in work.parents] == ["widen-linear"]
