"""How many workers there should be in each pool, and which Jobs are removed."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.contracts import Pipeline, Role, Target, WorkerFacts
from esper_runtime.planning import (
    TARGET,
    CreateWorker,
    DeleteWorker,
    JobEnd,
    PoolSeen,
    WorkerSeen,
    WorkforcePlan,
    WorkforceSeen,
    plan_workforce,
)

NOW = 1_000_000.0
ARCHS = ("avx2", "avx512")


def facts(arch: str) -> WorkerFacts:
    target = Target(device="cpu", arch=arch, torch="2.13.0")
    return WorkerFacts(target=target, toolchains={Pipeline.FAST: {"builder": "1"}})


def pool(name: str = "cpu", tezzeret: int = 1, urabrask: int = 1, device: str = "cpu") -> PoolSeen:
    return PoolSeen(name, device, {Role.TEZZERET: tezzeret, Role.URABRASK: urabrask}, "shape")


def teller(name: str, arch: str) -> WorkerSeen:
    return WorkerSeen(
        f"esper-target-{name}-1",
        f"t-{name}",
        TARGET,
        name,
        1,
        "shape",
        ended=JobEnd.COMPLETE,
        facts=facts(arch),
    )


def plan(pools: list[PoolSeen], workers: list[WorkerSeen], depths: Any, asked: bool = False) -> WorkforcePlan:
    return plan_workforce(WorkforceSeen(pools, workers, depths, asked, NOW))


def created(found: WorkforcePlan) -> list[tuple[str, str, int]]:
    return [(each.role, each.pool, each.number) for each in found.actions if isinstance(each, CreateWorker)]


def test_work_for_a_target_goes_to_the_pool_that_has_told_that_it_is_one() -> None:
    pools = [pool("old"), pool("new")]
    tellers = [teller("old", "avx2"), teller("new", "avx512")]
    depths = {("compile", facts("avx512").target.name): 3}
    found = plan(pools, tellers, depths)
    assert set(created(found)) == {("tezzeret", "new", 1), ("urabrask", "new", 1)}
    assert found.unserved == frozenset()


def test_before_a_pool_has_told_it_works_for_all_of_its_device_and_is_asked() -> None:
    depths = {("compile", "cpu-avx2-torch-2-13-0"): 1, ("compile", "cuda-sm-90-torch-2-13-0"): 1}
    found = plan([pool()], [], depths)
    assert set(created(found)) == {("tezzeret", "cpu", 1), ("urabrask", "cpu", 1), (TARGET, "cpu", 1)}
    assert found.unserved == {"cuda-sm-90-torch-2-13-0"}


def test_karn_works_where_blueprints_are_asked_for_and_the_pool_has_a_place_for_it() -> None:
    depths = {("generate", facts("avx2").target.name): 1}
    with_place = replace(pool(), limits={**pool().limits, Role.KARN: 1})
    found = plan([with_place], [teller("cpu", "avx2")], depths)
    assert created(found) == [("karn", "cpu", 1)]
    assert found.unserved == frozenset()
    without = plan([pool()], [teller("cpu", "avx2")], depths)
    assert created(without) == []
    assert without.unserved == {facts("avx2").target.name}
    assert created(plan([with_place], [teller("cpu", "avx2")], {("generate", "cpu-avx512"): 1})) == []


def test_what_one_pool_takes_at_a_time_is_not_asked_of_the_next_one() -> None:
    depths = {("compile", "cpu-avx2-torch-2-13-0"): 3}
    found = created(plan([pool("a", tezzeret=2), pool("b", tezzeret=2)], [], depths))
    assert [each for each in found if each[0] == "tezzeret"] == [
        ("tezzeret", "a", 1),
        ("tezzeret", "a", 2),
        ("tezzeret", "b", 1),
    ]


def test_much_work_for_one_role_takes_no_places_of_another_one() -> None:
    target = "cpu-avx2-torch-2-13-0"
    found = created(
        plan([pool(tezzeret=1, urabrask=4)], [], {("compile", target): 90, ("evaluate", target): 4})
    )
    assert sum(role == "urabrask" for role, _, _ in found) == 4
    assert sum(role == "tezzeret" for role, _, _ in found) == 1


def test_nothing_is_asked_of_a_pool_that_may_have_no_workers() -> None:
    found = plan([pool(tezzeret=0, urabrask=0)], [], {("compile", "cpu-avx2-torch-2-13-0"): 3}, asked=True)
    assert created(found) == []
    assert found.unserved == {"cpu-avx2-torch-2-13-0"}


def test_a_teller_whose_pool_has_changed_is_removed_and_another_one_asked() -> None:
    pools = [PoolSeen("cpu", "cpu", {Role.TEZZERET: 1, Role.URABRASK: 1}, "other")]
    found = plan(pools, [teller("cpu", "avx2")], {}, asked=True)
    assert found.actions == (DeleteWorker("esper-target-cpu-1", "t-cpu"), CreateWorker(TARGET, "cpu", 2))


WORKER = st.builds(
    lambda role, name, number, ended, deleting, failures, ago, arch: WorkerSeen(
        f"esper-{role}-{name}-{number}",
        f"{role}-{name}-{number}",
        role,
        name,
        number,
        "shape",
        failures,
        deleting,
        ended,
        NOW - ago,
        facts(arch) if role == TARGET and ended is JobEnd.COMPLETE else None,
    ),
    st.sampled_from(["tezzeret", "urabrask", TARGET]),
    st.sampled_from(["a", "b"]),
    st.integers(1, 5),
    st.sampled_from([None, None, JobEnd.COMPLETE, JobEnd.FAILED]),
    st.booleans(),
    st.integers(0, 3),
    st.floats(0, 10_000),
    st.sampled_from(ARCHS),
)
DEPTHS = st.none() | st.dictionaries(
    st.tuples(
        st.sampled_from(["compile", "evaluate"]), st.sampled_from([facts(arch).target.name for arch in ARCHS])
    ),
    st.integers(0, 9),
)


@given(
    st.lists(WORKER, unique_by=lambda worker: worker.name, max_size=9),
    DEPTHS,
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
def test_whatever_is_seen_no_limit_is_passed_no_name_used_twice_and_only_what_ended_removed(
    workers: list[WorkerSeen], depths: Any, tezzeret: int, urabrask: int, asked: bool
) -> None:
    pools = [pool("a", tezzeret, urabrask), pool("b", 1, 1)]
    found = plan(pools, workers, depths, asked)
    names = {worker.name: worker for worker in workers}
    for action in found.actions:
        if isinstance(action, DeleteWorker):
            assert names[action.name].ended is not None
    made = created(found)
    assert not {f"esper-{role}-{name}-{number}" for role, name, number in made} & names.keys()
    if depths is None:
        assert {role for role, _, _ in made} <= {TARGET}
    limits = {(role.value, each.name): limit for each in pools for role, limit in each.limits.items()}
    for place in {(role, name) for role, name, _ in made}:
        going = sum((w.role, w.pool) == place and w.ended is None and not w.deleting for w in workers)
        assert going + sum(each[:2] == place for each in made) <= limits.get(place, 1)
    kept = [worker for worker in workers if worker.facts is not None and not worker.deleting]
    removed = {action.name for action in found.actions if isinstance(action, DeleteWorker)}
    for name in ("a", "b"):
        mine = sorted((w for w in kept if w.pool == name), key=lambda worker: worker.number)
        if mine:
            assert mine[-1].name not in removed, "what a pool has told is kept"
            assert (found.sites or {})[name] == mine[-1].facts
