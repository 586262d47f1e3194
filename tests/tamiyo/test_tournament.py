from esper_runtime.contracts import (
    Directive,
    GraftingPlan,
    Growth,
    Operation,
    PlanKind,
    SeedStage,
    SlotState,
)
from esper_runtime.tamiyo import HeuristicController, refuse
from esper_runtime.tamiyo.limits import Limits
from tests.tamiyo.world import World, prospect

TOURNAMENT = {"lifecycle": {"plan": "Tournament"}}


def controller(total: int = 2000, **settings: object) -> HeuristicController:
    return HeuristicController(Growth.model_validate({**TOURNAMENT, **settings}), total)


def four(*gains: float | None, parameters: int = 400, **world: object) -> World:
    """Four kinds in slot a; one kind in slot b. ``gains`` behind the host, and in it."""
    names = ("relu", "gated", "wide", "deep")
    prospects = [
        prospect("a", name, parameters - index, contribution=gain)
        for index, (name, gain) in enumerate(zip(names, gains, strict=True))
    ]
    return World([*prospects, prospect("b", "relu", 300)], **world)  # type: ignore[arg-type]


def test_the_best_of_four_kinds_in_one_slot_is_let_in_and_the_others_learn_why_not() -> None:
    world = four(0.1, 0.3, -0.2, 0.05).run(controller())
    first = [
        d for at, d in world.commands(Operation.GERMINATE) if at == world.commands(Operation.GERMINATE)[0][0]
    ]
    assert [(d.slot, d.blueprint) for d in first] == [("a", n) for n in ("relu", "gated", "wide", "deep")]
    assert all(d.plan is not None and d.plan.kind is PlanKind.TOURNAMENT for d in first)
    assert "against 'gated', 'wide', 'deep'" in first[0].explanation
    assert world.probes == [], "isolation selects, not trials"
    (at, graft), *_ = world.commands(Operation.GRAFT)
    assert graft.seed == "s2"
    assert "it wins against seed s1 'relu' (0.1)" in graft.explanation
    culled = {d.seed: d for when, d in world.commands(Operation.CULL) if when == at}
    assert sorted(culled) == ["s1", "s3", "s4"]
    for directive in culled.values():
        assert "loses the tournament to seed s2 'gated'" in directive.explanation
        assert "0.3 +-" in directive.explanation
        assert directive.evidence["winner"] == "s2"
    assert "0.1 +-" in culled["s1"].explanation
    kept = [s.prospect.key for s in world.seeds if s.stage is SeedStage.FOSSILIZED]
    assert ("a", "gated") in kept


def test_where_none_surely_gains_its_price_all_are_culled_and_the_slot_rests() -> None:
    world = four(-0.1, 0.0001, -0.2, 0.0)
    world.prospects = world.prospects[:4]
    told = controller()
    while not world.commands(Operation.CULL):
        world.run(told, until=world.step + world.every)
    assert world.commands(Operation.GRAFT) == []
    reasons = [d.explanation for _, d in world.commands(Operation.CULL)]
    assert len(reasons) == 4
    assert all("none of the 4 candidates surely gains its price" in reason for reason in reasons)
    assert world.slots["a"] is SlotState.EMBARGOED
    world.run(told)
    assert world.commands(Operation.GRAFT) == []


def test_the_price_is_taken_off_the_gain() -> None:
    world = World(
        [prospect("a", "big", 900, contribution=0.302), prospect("a", "small", 460, contribution=0.3)]
    )
    world.run(controller(gates={"price": 0.001}))
    assert world.commands(Operation.GRAFT)[0][1].seed == "s2"


def test_a_gain_that_could_not_be_measured_does_not_win() -> None:
    world = four(None, 0.1, None, 0.05).run(controller())
    assert world.commands(Operation.GRAFT)[0][1].seed == "s2"
    culled = {d.seed: d.explanation for _, d in world.commands(Operation.CULL)}
    assert "could not be measured" in culled["s1"]


def test_losers_that_gained_may_enter_again_and_those_that_did_not_may_not() -> None:
    world = four(0.1, 0.3, -0.2, 0.05, parameters=300).run(controller())
    entered = [(d.slot, d.blueprint) for _, d in world.commands(Operation.GERMINATE)]
    assert entered.count(("a", "wide")) == 1
    assert entered.count(("a", "relu")) > 1


def test_candidates_are_as_many_as_the_manifest_and_the_limit_of_living_seeds_allow() -> None:
    world = four(0.1, 0.3, 0.2, 0.05)
    world.run(controller(lifecycle={"plan": "Tournament", "candidates": 3}), until=200)
    assert len(world.commands(Operation.GERMINATE)) == 3
    world = four(0.1, 0.3, 0.2, 0.05, concurrent=2)
    world.run(controller(), until=200)
    assert len(world.commands(Operation.GERMINATE)) == 2


def test_tournaments_are_paid_from_the_compute_for_trials() -> None:
    world = four(0.1, 0.3, 0.2, 0.05).run(controller(controller={"trialShare": 0.05}))
    assert world.commands(Operation.GERMINATE) == []
    assert any("growth.controller.trialShare leaves 100" in decision.explanation for _, decision in world.log)
    world = four(0.1, 0.3, 0.2, 0.05)
    world.run(controller(controller={"trialShare": 0.17}), until=200)
    assert len(world.commands(Operation.GERMINATE)) == 3, "as many as can be paid, two at least"


def test_a_tournament_that_the_run_outlives_not_is_cancelled() -> None:
    world = four(0.1, 0.3, 0.2, 0.05, total=2000)
    told = controller()
    while not world.seeds:
        world.run(told, until=world.step + world.every)
    world.total = world.step + world.every
    decision = world.boundary(told)
    assert [d.operation for d in decision.directives] == [Operation.CANCEL] * 4
    assert "before its tournament could be decided" in decision.directives[0].explanation


def enter(world: World, blueprint: str, kind: PlanKind = PlanKind.TOURNAMENT) -> Directive:
    return Directive(
        operation=Operation.GERMINATE,
        slot="a",
        blueprint=blueprint,
        plan=GraftingPlan(kind=kind),
        effective_step=world.step,
        explanation="test",
    )


def test_a_cohort_is_charged_for_its_dearest_candidate_and_admitted_together() -> None:
    world = four(0.1, 0.3, 0.2, 0.05, limit=1400)
    state = world.state()
    accepted: list[Directive] = []
    for name in ("deep", "relu", "wide", "gated"):
        assert refuse(enter(world, name), state, accepted) is None
        accepted.append(enter(world, name))
    limits = Limits(state)
    for directive in accepted[:2]:
        limits.admit(directive)
    assert limits.parameters_left == 0
    joining = {c.blueprint for c in limits.plantable(state.candidates) if c.slot == "a"}
    assert joining == {"deep", "relu", "wide", "gated"}
    assert limits.plantable([c for c in state.candidates if c.slot == "b"]) == ()
    reason = refuse(enter(world, "gated", PlanKind.ISOLATED), state, accepted[:1])
    assert reason is not None
    assert "one change per region" in reason
    for directive in accepted:
        world.obey(directive)
    after = Limits(world.state())
    assert after.parameters_left == 0
    assert after.seeds_left == 0


def test_nobody_joins_a_cohort_at_a_later_boundary() -> None:
    world = four(0.1, 0.3, 0.2, 0.05)
    world.obey(enter(world, "relu"))
    reason = refuse(enter(world, "gated"), world.state())
    assert reason is not None
    assert "is not judged yet" in reason
