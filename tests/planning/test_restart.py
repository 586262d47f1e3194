"""What follows when a process of a run has ended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.planning import (
    Done,
    GiveUp,
    Restart,
    RestartPolicy,
    group_outcome,
    how_it_ended,
    plan_helper,
    plan_trainer,
    pod_exit,
)

POLICY = RestartPolicy(most_attempts=4, first_seconds=0.5, longest_seconds=3.0)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130])
def test_a_trainer_that_said_how_it_ended_is_not_started_again(code: int) -> None:
    assert plan_trainer(code, 1, False, POLICY) == Done(code)


@pytest.mark.parametrize("code", [-9, -11, -15, 76])
def test_a_trainer_that_was_killed_or_lost_a_peer_is_started_again_ever_later(code: int) -> None:
    waits = [plan_trainer(code, fruitless, False, POLICY) for fruitless in (1, 2, 3)]
    assert [step.seconds for step in waits if isinstance(step, Restart)] == [0.5, 1.0, 2.0]


def test_a_trainer_without_progress_is_given_up_with_a_reason_to_act_on() -> None:
    step = plan_trainer(-9, 4, False, POLICY)
    assert isinstance(step, GiveUp)
    assert step.code == 1
    assert "4 times in a row without a new checkpoint, last: killed by SIGKILL" in step.why
    assert "the same command goes on" in step.why


@pytest.mark.parametrize("code", [-9, -15, 76])
def test_a_run_that_was_told_to_stop_is_not_started_again_however_it_ended(code: int) -> None:
    assert plan_trainer(code, 1, True, POLICY) == Done(75)


def test_the_training_outlives_a_bus_that_does_not_stay() -> None:
    assert plan_helper("killed by SIGKILL", 1, POLICY) == Restart(0.5, "killed by SIGKILL")
    last = plan_helper("exit code 1", 4, POLICY)
    assert isinstance(last, GiveUp)
    assert "4 times in a row soon after its start, last: exit code 1" in last.why


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([0, 0], 0),
        ([76, -9], -9),
        ([76, 1], 1),
        ([75, 76], 75),
        ([0, 76], 76),
        ([2, -15], 2),
        ([1, 130], 130),
        ([3, 0], 3),
    ],
)
def test_a_group_ended_as_the_rank_that_was_the_cause(codes: list[int], outcome: int) -> None:
    assert group_outcome(codes) == outcome


@given(st.integers(1, 200))
def test_the_wait_grows_and_is_bounded(fruitless: int) -> None:
    policy = RestartPolicy()
    assert policy.first_seconds <= policy.wait(fruitless) <= policy.wait(fruitless + 1)
    assert policy.wait(fruitless + 1) <= policy.longest_seconds


def test_signals_are_named() -> None:
    assert how_it_ended(-11) == "killed by SIGSEGV"
    assert how_it_ended(-99) == "killed by signal 99"
    assert how_it_ended(76) == "exit code 76: a peer died"


@pytest.mark.parametrize(
    ("code", "stopping", "expected"),
    [
        (0, False, 0),
        (75, True, 75),
        (76, False, 76),
        (76, True, 76),
        (77, False, 77),
        (2, False, 2),
        (1, True, 1),
        (-9, False, 137),
        (-11, False, 1),
        (-9, True, 75),
        (-15, True, 75),
        (130, True, 75),
        (130, False, 1),
        (3, False, 1),
    ],
)
def test_a_pod_ends_with_a_code_that_a_job_can_act_on(code: int, stopping: bool, expected: int) -> None:
    assert pod_exit(code, stopping) == expected


def test_a_used_up_budget_of_one_rank_counts_before_the_others_that_stopped_with_it() -> None:
    assert group_outcome([75, 77, 75]) == 77
    assert group_outcome([77, 1]) == 1
