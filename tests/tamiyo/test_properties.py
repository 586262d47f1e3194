"""Whatever the world is like, the heuristic controller keeps these promises."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from esper_runtime.contracts import GONE, Growth, Operation, PlanChoice, SeedStage
from esper_runtime.tamiyo import HeuristicController
from tests.tamiyo.world import World, prospect

JUDGED = {SeedStage.FOSSILIZED, *GONE}
gains = st.one_of(st.none(), st.floats(-0.05, 0.2))


@st.composite
def worlds(draw, short=False):
    """A world with up to 6 slots and a manifest that suits it."""
    total = draw(st.integers(20 if short else 200, 600))
    prospects = []
    for slot in "abcdef"[: draw(st.integers(1, 6))]:
        for number in range(draw(st.integers(1, 3))):
            prospects.append(
                prospect(
                    slot,
                    f"b{number}",
                    draw(st.integers(1, 1200)),
                    draw(gains),
                    draw(gains),
                    draw(st.floats(0, 0.05)),
                    draw(st.integers(0, 1500)),
                )
            )
    lifecycle = {
        "plan": draw(st.sampled_from(["Auto", "Immediate", "Isolated", "Tournament"])),
        "stabilizingSteps": draw(st.sampled_from([0, 0, 7])),
        "fineTuningSteps": draw(st.sampled_from([0, 0, 11])),
        "graftingSteps": draw(st.sampled_from([None, None, 0, 13])),
        "embargoSteps": draw(st.sampled_from([None, 0, 5])),
    }
    controller = {"trialShare": draw(st.sampled_from([0.1, 1, 20])), "latest": draw(st.floats(0.3, 1))}
    growth = Growth.model_validate({"controller": controller, "lifecycle": lifecycle})
    world = World(
        prospects,
        total=total,
        every=max(1, total // 100),
        limit=draw(st.integers(1000, 4000)),
        concurrent=draw(st.integers(1, 4)),
        macs_limit=draw(st.sampled_from([None, 2500])),
        overlaps=draw(st.sampled_from([{}, {"a": ("b", "c")}])),
        locked=frozenset(draw(st.sets(st.sampled_from("abcdef"), max_size=2))),
    )
    return world, growth


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_no_limit_is_ever_broken_and_no_command_is_illegal(drawn):
    world, growth = drawn
    world.run(
        HeuristicController(growth, world.total)
    )  # the world refuses whatever breaks a limit or a table
    measured = {p.key for p in world.prospects if p.gain is not None}
    for _, directive in world.commands(Operation.GERMINATE):
        assert directive.slot not in world.locked
        tried = (directive.slot, directive.blueprint) in measured
        assert tried or growth.lifecycle.plan is PlanChoice.TOURNAMENT
    assert world.state().budget.parameters_now <= max(world.limit, world.host)


@settings(max_examples=60, deadline=None)
@given(worlds(short=True))
def test_every_seed_is_judged_before_the_end_of_the_run(drawn):
    world, growth = drawn
    world.run(HeuristicController(growth, world.total))
    assert all(seed.stage in JUDGED for seed in world.seeds)
    planted = len(world.commands(Operation.GERMINATE))
    assert planted == len(world.seeds) + len(world.ended)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.floats(0, 1))
def test_a_controller_restored_in_the_middle_decides_the_same(drawn, share):
    world, growth = drawn
    first = HeuristicController(growth, world.total)
    middle = round(share * world.total)
    world.run(first, until=middle)
    other, second = world.copy(), HeuristicController(growth, world.total)
    second.restore(json.loads(json.dumps(first.state())))
    assert world.run(first).log == other.run(second).log


@settings(max_examples=30, deadline=None)
@given(worlds())
def test_every_decision_is_explained_and_every_directive_too(drawn):
    world, growth = drawn
    world.run(HeuristicController(growth, world.total))
    for _, decision in world.log:
        assert decision.explanation
        assert all(directive.explanation in decision.explanation for directive in decision.directives)


@settings(max_examples=20, deadline=None)
@given(worlds())
def test_trials_stay_within_their_compute(drawn):
    world, growth = drawn
    world.run(HeuristicController(growth, world.total))
    macs = {p.key: p.macs for p in world.prospects}
    least = sum(steps * count * (1000 + min(macs.values())) / 1000 for _, steps, count in world.probes)
    assert least <= growth.controller.trial_share * world.total
