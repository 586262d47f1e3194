"""What the planner of the forge does next."""

from dataclasses import replace

import pytest

from esper_runtime.contracts import KernelNote, KernelState, WorkAttempt
from esper_runtime.planning import (
    Compile,
    Evaluate,
    ForgePolicy,
    GiveUpWork,
    Retry,
    plan_forge,
)
from tests.planning.forge_world import (
    World,
    digest,
    entry,
    forgive,
    record,
    spec,
)

PATIENT = ForgePolicy(most_attempts=3, first_seconds=2.0, longest_seconds=5.0)


def carried_out(world: World) -> World:
    for action in world.plan():
        world.carry_out(action)
    return world


def test_a_wish_becomes_one_compile_and_its_artifact_one_evaluation() -> None:
    world = World()
    kernel = world.wish(1)
    [compile_] = world.plan()
    assert isinstance(compile_, Compile)
    assert compile_.attempt == WorkAttempt(number=1)
    world.carry_out(compile_)
    assert world.plan() == ()
    world.finish(1)
    [evaluate] = world.plan()
    assert isinstance(evaluate, Evaluate)
    assert evaluate.digest == digest(7)
    world.carry_out(evaluate)
    assert world.plan() == ()
    world.finish(2)
    assert world.plan() == ()
    assert world.records[kernel].state is KernelState.VALIDATED


@pytest.mark.parametrize(
    "state",
    [KernelState.VALIDATED, KernelState.REJECTED, KernelState.SUPERSEDED, KernelState.QUARANTINED],
)
def test_nothing_is_made_again_that_has_its_verdict(state: KernelState) -> None:
    world = World()
    kernel = world.wish(1)
    world.records[kernel] = record(spec(1), state)
    assert not [action for action in world.plan() if isinstance(action, Compile | Evaluate | Retry)]


def test_what_somebody_else_compiled_is_tested_though_nobody_wishes_it() -> None:
    world = World()
    made = record(spec(4), KernelState.PENDING_BENCHMARK)
    world.records[made.kernel] = made
    assert [type(action) for action in world.plan()] == [Evaluate]


def test_a_blueprint_that_is_archived_or_not_there_makes_no_work() -> None:
    world = World()
    world.wish(1)
    world.wish(2)
    archived = entry(1, archived="no longer wanted")
    world.blueprints = {archived.blueprint: archived}
    assert world.plan() == ()


def test_urgent_wishes_come_first_then_tests_then_compiles_in_the_order_of_the_wishes() -> None:
    world = World()
    for number in (1, 2, 3):
        world.wish(number)
    urgent = world.wish(9, urgent=True)
    tested = world.wish(5)
    world.records[tested] = record(spec(5), KernelState.PENDING_BENCHMARK)
    order = [action.kernel for action in world.plan() if isinstance(action, Compile | Evaluate)]
    assert order == [urgent, tested, *(spec(number).kernel_id for number in (1, 2, 3))]


def test_the_queue_stays_short_except_for_what_is_urgent() -> None:
    world = World()
    for number in range(10):
        world.wish(number)
    policy = ForgePolicy(window=4)
    for action in world.plan(policy):
        world.carry_out(action)
    assert len(world.queue) == 4
    urgent = world.wish(99, urgent=True)
    assert [action.kernel for action in world.plan(policy) if isinstance(action, Compile)] == [urgent]


def test_a_try_that_was_noted_and_not_published_is_published_under_the_same_number() -> None:
    world = World()
    world.wish(1)
    [first] = world.plan()
    world.carry_out(first, dies=True)
    assert not world.queue
    assert world.plan() == (first,)


def test_work_that_left_the_queue_without_a_result_is_tried_again_ever_later_and_then_given_up() -> None:
    world = World()
    kernel = world.wish(1)
    waits = []
    carried_out(world)
    for _ in range(2):
        world.queue.clear()
        plan = plan_forge(world.observe(), PATIENT)
        assert plan.actions == ()
        assert plan.wakes_in is not None
        waits.append(plan.wakes_in)
        world.now += plan.wakes_in
        [again] = world.plan(PATIENT)
        assert isinstance(again, Retry)
        assert "without a result" in again.reason
        world.carry_out(again)
    world.queue.clear()
    [end] = world.plan(PATIENT)
    assert waits == [2.0, 4.0]
    assert isinstance(end, GiveUpWork)
    assert isinstance(end.work, Compile)
    assert (end.work.kernel, end.work.attempt.number) == (kernel, 3)
    assert "3 tries" in end.reason
    world.carry_out(end)
    assert world.plan(PATIENT) == ()


def test_work_that_is_a_dead_letter_stays_one() -> None:
    world = World()
    world.wish(1)
    carried_out(world)
    while world.take(1):
        pass
    assert world.plan() == ()
    world.now += 1e6
    assert world.plan() == ()


def test_a_person_may_have_it_tried_again() -> None:
    world = World()
    kernel = world.wish(1)
    carried_out(world)
    while world.take(1):
        pass
    assert world.plan() == ()
    world.notes[kernel] = forgive(world.notes[kernel], "compile")
    [again] = world.plan()
    assert isinstance(again, Retry)
    assert again.work.attempt == WorkAttempt(number=2, forgiven=1)
    world.carry_out(again)
    assert world.plan() == ()
    world.queue.clear()
    world.now += 1e6
    assert world.plan() == ()  # the loss is seen now; it waits its time
    world.now += 2.0
    [more] = world.plan()
    assert isinstance(more, Retry)  # though the old letter is still there


def test_what_a_person_dropped_is_not_made() -> None:
    world = World()
    kernel = world.wish(1)
    world.notes[kernel] = KernelNote(kernel=kernel, dropped="not wanted")
    assert world.plan() == ()


def test_another_artifact_of_the_kernel_is_evaluated_anew() -> None:
    world = World()
    kernel = world.wish(1)
    world.records[kernel] = record(spec(1), KernelState.PENDING_BENCHMARK)
    carried_out(world)
    world.records[kernel] = world.records[kernel].model_copy(update={"digest": digest(8)})
    [other] = world.plan()
    assert isinstance(other, Evaluate)
    assert (other.digest, other.attempt.number, other.attempt.forgiven) == (digest(8), 2, 1)


def test_an_unknown_queue_makes_no_work() -> None:
    world = World()
    world.wish(1)
    assert plan_forge(replace(world.observe(), queue=None)).actions == ()


def test_two_planners_that_see_the_same_decide_the_same() -> None:
    world = World()
    for number in range(40):
        world.wish(number, urgent=number % 7 == 0)
    assert world.plan() == world.plan()
