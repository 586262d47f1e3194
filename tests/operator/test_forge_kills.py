"""The operator killed at every call for blueprints, kernels and workers; calls that fail, answers lost.

Each time: it converges, each blueprint is entered once, no limit is passed, nothing is written twice.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from esper_operator.kube import BLUEPRINT, EVENT, JOB, KERNEL, POD
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import KernelState
from tests.operator.forge_world import MLP, ForgeWorld, blueprint
from tests.operator.memory import Fault, Killed, lost

ID = canonical_id(MLP)
Deed = Callable[[ForgeWorld], None]


def is_applied(world: ForgeWorld) -> None:
    world.apply(blueprint())


def is_refused(world: ForgeWorld) -> None:
    body = blueprint()
    body["spec"]["graph"]["nodes"][0]["op"] = "nothing"
    world.apply(body)


def is_deleted(world: ForgeWorld) -> None:
    world.cluster.remove(BLUEPRINT, "team", "mine")


def is_made_again(world: ForgeWorld) -> None:
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.apply(blueprint())


def is_archived(world: ForgeWorld) -> None:
    world.library.entries[ID] = world.library.entries[ID].model_copy(update={"archived": "of no use"})


def is_wiped(world: ForgeWorld) -> None:
    world.library.lose_everything()


def is_quarantined(world: ForgeWorld) -> None:
    (kernel,) = world.library.kernels
    world.library.settle(kernel, KernelState.QUARANTINED, "it failed")


DEEDS: dict[str, tuple[Deed, bool, str | None, int]] = {
    # deed, whether a blueprint is there and validated before, the phase at the end, kernels shown at the end
    "applied": (is_applied, False, "Validated", 1),
    "refused": (is_refused, False, "Invalid", 0),
    "deleted": (is_deleted, True, None, 0),
    "made again": (is_made_again, True, "Validated", 1),
    "archived": (is_archived, True, "Validated", 0),
    "wiped": (is_wiped, True, "Validated", 1),
    "quarantined": (is_quarantined, True, "Quarantined", 1),
}


def play(name: str, arm: Callable[[ForgeWorld], None]) -> ForgeWorld:
    """A world after a deed, with what ``arm`` does to it, driven until it comes to rest."""
    deed, there, _, _ = DEEDS[name]
    world = ForgeWorld()
    if there:
        world.apply(blueprint())
        world.settle()
    deed(world)
    world.cluster.calls.clear()
    arm(world)
    for _ in range(7):
        world.look()
        assert going(world, "tezzeret") <= 1
        assert going(world, "urabrask") <= 1
        world.cluster.collect()
        world.work()
    return world


def going(world: ForgeWorld, role: str) -> int:
    jobs = [job for job in world.cluster.of(JOB) if not job.get("status", {}).get("conditions")]
    return sum(job["metadata"]["labels"]["app.kubernetes.io/component"] == role for job in jobs)


def check(name: str, world: ForgeWorld, what: str, *, killed: bool = False) -> None:
    _, _, phase, kernels = DEEDS[name]
    if name == "deleted":
        archived = world.library.entries[ID].archived
        if killed and archived is None:  # the one who saw the deletion is dead, and absence orders nothing
            return
        assert archived is not None, what
    else:
        assert world.status().get("phase") == phase, what
    assert len(world.kernels()) == kernels, what
    assert set(world.library.entered.values()) <= {1, 2 if name == "wiped" else 1}, what
    reasons = Counter((event["involvedObject"]["uid"], event["reason"]) for event in world.cluster.of(EVENT))
    assert max(reasons.values(), default=0) <= (2 if name == "wiped" else 1), what
    assert world.jobs() in ([], ["esper-target-cpu-1"]), what
    before = len(world.cluster.calls)
    world.begin()
    world.look()
    assert [call for call in world.cluster.calls[before:] if call.writes] == [], what


def calls_of(name: str) -> int:
    return len(play(name, lambda world: None).cluster.calls)


@pytest.mark.parametrize("name", DEEDS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_it_converges(name: str, after: bool) -> None:
    calls = calls_of(name)
    assert calls >= 1
    for number in range(1, calls + 1):
        fault = Fault(Killed(), after)
        world = play(name, lambda world, n=number, f=fault: world.cluster.faults.update({n: f}))
        check(name, world, f"killed {'after' if after else 'before'} call {number} of {calls}", killed=True)


@pytest.mark.parametrize("name", DEEDS)
@pytest.mark.parametrize("after", [False, True], ids=["error", "answer lost"])
def test_a_call_that_fails_or_whose_answer_is_lost_is_made_up_for(name: str, after: bool) -> None:
    calls = calls_of(name)
    for number in range(1, calls + 1):
        fault = Fault(lost(), after)
        world = play(name, lambda world, n=number, f=fault: world.cluster.faults.update({n: f}))
        check(name, world, f"call {number} of {calls}")


def test_events_that_are_dropped_are_made_up_for_by_the_relist() -> None:
    world = ForgeWorld()
    world.deaf = True
    world.apply(blueprint())
    for _ in range(7):
        world.relist()
        world.look()
        world.cluster.collect()
        world.work()
    world.relist()
    world.look()
    check("applied", world, "events dropped")


def test_an_old_view_makes_no_second_worker() -> None:
    """What is known may lag behind: the workers' Jobs are there and not seen."""
    world = ForgeWorld()
    world.apply(blueprint())
    world.look()
    world.work()
    world.look()
    before = world.jobs()
    assert "esper-tezzeret-cpu-1" in before
    for kind in (JOB, POD):
        world.forge.objects._known[kind].clear()
    world.look()
    assert world.jobs() == before


def test_kernels_stay_whatever_is_lost_but_the_record() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    shown = world.kernels()
    world.library.ready = False
    world.library.lose_everything()
    world.begin()
    world.look()
    assert world.kernels() == shown
    assert world.cluster.of(KERNEL)[0]["status"]["phase"] == "Validated"
