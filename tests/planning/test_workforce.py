"""How many workers there should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.contracts import Role
from esper_runtime.planning import IDLE_SECONDS, Depth, workers_wanted

T, U, K = Role.TEZZERET, Role.URABRASK, Role.KARN


def wanted(compiles: Depth, tests: Depth, limit: int, running: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    found = workers_wanted({T: compiles, U: tests, K: Depth(0)}, {T: running[0], U: running[1]}, limit)
    assert found[K] == 0
    return found[T], found[U]


@pytest.mark.parametrize(
    ("compiles", "tests", "limit", "expected"),
    [
        (0, 0, 4, (0, 0)),
        (5, 0, 4, (3, 1)),
        (2, 0, 4, (2, 1)),
        (0, 5, 4, (0, 4)),
        (5, 5, 4, (2, 2)),
        (9, 1, 4, (3, 1)),
        (1, 9, 4, (1, 3)),
        (5, 5, 1, (1, 1)),
        (5, 5, 0, (0, 0)),
        (5, 5, 3, (1, 2)),
    ],
)
def test_workers_follow_the_depth_of_the_queues(
    compiles: int, tests: int, limit: int, expected: tuple[int, int]
) -> None:
    assert wanted(Depth(compiles), Depth(tests), limit) == expected


def test_an_unknown_depth_changes_nothing() -> None:
    assert wanted(Depth(None), Depth(None), 4, running=(2, 1)) == (2, 1)
    assert wanted(Depth(None), Depth(9), 4, running=(2, 0)) == (2, 2)
    assert workers_wanted({}, {T: 1, U: 1}, 4) == {T: 1, U: 1, K: 0}


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_where_blueprints_are_to_be_invented_one_worker_does_it_beside_the_others(limit: int) -> None:
    busy = {T: Depth(9), U: Depth(9), K: Depth(1)}
    found = workers_wanted(busy, {}, limit)
    assert found[K] == 1
    assert min(found.values()) == 1
    assert sum(found.values()) == max(limit, 3)
    assert workers_wanted({**busy, K: Depth(0)}, {}, limit)[K] == 0


def test_idle_workers_stay_for_a_while_and_make_room_where_others_need_it() -> None:
    assert wanted(Depth(0, 1.0), Depth(0, 1.0), 2, running=(1, 1)) == (1, 1)
    assert wanted(Depth(0, IDLE_SECONDS), Depth(0, 1.0), 2, running=(1, 1)) == (0, 1)
    assert wanted(Depth(0, 1.0), Depth(9), 2, running=(1, 1)) == (0, 2)
    assert wanted(Depth(0, 1.0), Depth(9), 1, running=(1, 1)) == (1, 1)


depths = st.builds(Depth, st.none() | st.integers(0, 50), st.floats(0, 200))


@given(depths, depths, st.integers(1, 8), st.integers(0, 4), st.integers(0, 4))
def test_there_are_never_more_than_allowed_and_work_is_never_left_without_a_worker(
    compiles: Depth, tests: Depth, limit: int, tezzerets: int, urabrasks: int
) -> None:
    found = workers_wanted({T: compiles, U: tests}, {T: tezzerets, U: urabrasks}, limit)
    for role, depth, running in ((T, compiles, tezzerets), (U, tests, urabrasks)):
        if depth.items is None:
            assert found[role] == running
        elif depth.items > 0:
            assert 1 <= found[role] <= max(depth.items, 1)
        else:
            assert found[role] <= max(running, role is U and bool(compiles.items))
    if compiles.items is not None and tests.items is not None:
        assert sum(found.values()) <= max(limit, 2)
