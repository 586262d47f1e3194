"""The operator killed at every call of every path, calls that fail or whose answer is lost, events that lack.

Each time: it converges, no run ever has two trainers, each child is made once.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from esper_operator.kube import EVENT, JOB, POD, RUN, UnavailableError
from tests.operator.memory import Fault, Killed, lost
from tests.operator.world import World

Deed = Callable[[World], None]


def starts(world: World) -> None:
    world.apply()


def is_suspended(world: World) -> None:
    world.apply(suspend=True)


def is_resumed(world: World) -> None:
    deaf, world.process.deaf = world.process.deaf, False
    world.apply(suspend=True)
    world.settle()
    world.process.deaf = deaf
    world.apply(suspend=False)


def changes_its_template(world: World) -> None:
    world.apply(template={"image": "other"})


def is_deleted_and_made_again(world: World) -> None:
    world.cluster.remove(RUN, "team", "small")
    world.apply()


def completes(world: World) -> None:
    world.cluster.run_jobs(end="Complete")


def fails(world: World) -> None:
    world.cluster.run_jobs(end="Failed")


def is_invalid(world: World) -> None:
    world.apply(host={"builtin": "mlp", "entrypoint": "a:b"})


DEEDS: dict[str, tuple[Deed, bool, str, list[str]]] = {
    # deed, whether the run trains before, the phase at the end, the Jobs at the end
    "starts": (starts, False, "Running", ["small-1"]),
    "suspended": (is_suspended, True, "Suspended", []),
    "resumed": (is_resumed, True, "Running", ["small-2"]),
    "template": (changes_its_template, True, "Running", ["small-2"]),
    "made again": (is_deleted_and_made_again, True, "Running", ["small-1"]),
    "completes": (completes, True, "Succeeded", []),
    "fails": (fails, True, "Failed", []),
    "invalid": (is_invalid, True, "Rejected", []),
}


def play(name: str, arm: Callable[[World], None]) -> World:
    """A world after a deed, with what ``arm`` does to it, driven until it comes to rest."""
    deed, trains, _, _ = DEEDS[name]
    world = World()
    if trains:
        world.apply()
        world.settle()
    deed(world)
    world.cluster.calls.clear()
    arm(world)
    for _ in range(12):
        for _ in range(4):
            try:
                world.process.one_pass()
            except Killed:
                world.begin()
            except UnavailableError:
                continue
        world.cluster.collect()
        world.cluster.run_jobs()
    return world


def check(name: str, world: World, what: str) -> None:
    _, _, phase, jobs = DEEDS[name]
    assert (world.status.get("phase"), world.job_names()) == (phase, jobs), what
    assert world.cluster.most_trainers <= 1, what
    twice = [place for place, count in Counter(world.cluster.made).items() if count > 1]
    assert [place for place in twice if place[0] not in ("Event", "Pod", RUN.name)] == [], what
    owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in world.cluster.of(JOB)}
    assert owners <= {world.run["metadata"]["uid"]}, what
    before = len(world.cluster.calls)
    world.begin().one_pass()
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
        check(name, world, f"killed {'after' if after else 'before'} call {number} of {calls}")


@pytest.mark.parametrize("name", DEEDS)
@pytest.mark.parametrize("after", [False, True], ids=["error", "answer lost"])
def test_a_call_that_fails_or_whose_answer_is_lost_is_made_up_for(name: str, after: bool) -> None:
    calls = calls_of(name)
    for number in range(1, calls + 1):
        fault = Fault(lost(), after)
        world = play(name, lambda world, n=number, f=fault: world.cluster.faults.update({n: f}))
        check(name, world, f"call {number} of {calls}")


@pytest.mark.parametrize("name", DEEDS)
def test_it_converges_with_two_kills_in_a_row(name: str) -> None:
    calls = calls_of(name)
    for number in range(1, calls + 1):

        def arm(world: World, n: int = number) -> None:
            world.cluster.faults.update({n: Fault(Killed(), True), n + 1: Fault(Killed())})

        check(name, play(name, arm), f"killed at calls {number} and {number + 1}")


@pytest.mark.parametrize("name", DEEDS)
def test_events_that_are_dropped_are_made_up_for_by_the_relist(name: str) -> None:
    deed, trains, _, _ = DEEDS[name]
    world = World()
    if trains:
        world.apply()
        world.settle()
    world.process.deaf = True
    deed(world)
    for _ in range(8):
        for _ in range(3):
            world.process.one_pass()  # knows nothing of it, or only what calls answered
        world.process.relist()
        world.process.one_pass()
        world.cluster.collect()
        world.cluster.run_jobs()
        world.process.relist()
    for _ in range(3):
        world.process.one_pass()
    check(name, world, "events dropped")


@pytest.mark.parametrize("name", DEEDS)
def test_events_that_come_twice_or_late_change_nothing(name: str) -> None:
    deed, trains, _, _ = DEEDS[name]
    world = World()
    heard = []
    hear = world.process.hear

    def again(what: str, kind: str, body: dict[str, object]) -> None:
        hear(what, kind, body)
        hear(what, kind, body)
        heard.append((what, kind, body))
        if len(heard) > 2 and heard[-3][0] != "DELETED":
            hear(*heard[-3])  # an older one, once more

    world.cluster.listeners[:] = [again]
    if trains:
        world.apply()
        world.settle()
    deed(world)
    for _ in range(8):
        world.process.one_pass()
        world.process.one_pass()
        world.cluster.collect()
        world.cluster.run_jobs()
    check(name, world, "events doubled")


def test_an_old_view_does_not_make_a_second_trainer() -> None:
    """What is known may lag behind: the record of an attempt is seen, its Job and its pods are not."""
    world = World()
    world.apply()
    world.settle()
    store = world.begin().store
    for kind in (JOB, POD):
        for body in world.cluster.of(kind):
            store._unlist(kind, ("team", body["metadata"]["name"]))
    world.process.one_pass()
    assert world.job_names() == ["small-1"]
    assert world.status["phase"] == "Running"


def test_an_event_is_posted_once_though_its_status_is_written_again() -> None:
    world = World()
    world.apply()
    world.settle()
    reasons = Counter(event["reason"] for event in world.cluster.of(EVENT))
    assert max(reasons.values()) == 1
