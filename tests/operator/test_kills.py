"""The operator killed at every call of every path, calls that fail or whose answer is lost, events that lack.

Each time: it converges, no run ever has two trainers, each child is made once, and nothing is written then.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from esper_operator.kube import (
    CLAIM,
    EVENT,
    JOB,
    POD,
    RUN,
    SERVICE,
    ConflictError,
    KubeError,
    RefusedError,
)
from tests.operator.memory import Call, Fault, Killed, lost
from tests.operator.world import World

OTHER_HOST = {"builtin": "mlp", "args": {"hidden": [9]}}

Deed = Callable[[World], None]


def apply(**spec: object) -> Deed:
    def deed(world: World) -> None:
        world.apply(**spec)

    return deed


def trains(world: World) -> None:
    world.apply()
    world.settle()


def trains_with(**spec: object) -> Deed:
    def begin(world: World) -> None:
        world.apply(**spec)
        world.settle()

    return begin


def is_suspended(world: World) -> None:
    trains(world)
    world.apply(suspend=True)
    world.settle()


def is_deleted(world: World) -> None:
    world.cluster.remove(RUN, "team", "small")


def is_made_again(world: World) -> None:
    world.cluster.remove(RUN, "team", "small")
    world.apply()


def is_suspended_and_resumed_at_once(world: World) -> None:
    world.apply(suspend=True)
    world.process.one_pass()
    world.apply(suspend=False)


def ends(how: str) -> Deed:
    return lambda world: world.cluster.run_jobs(end=how)


def its_time_is_over(world: World) -> None:
    world.apply(ttlSecondsAfterFinished=60)
    world.settle()
    world.cluster.run_jobs(end="Complete")
    world.settle()
    world.now += 61


def its_deadline_passes(world: World) -> None:
    world.apply(deadlines={"activeSeconds": 600})
    world.settle()
    world.now += 601


def no_pod_is_ready_in_time(world: World) -> None:
    world.apply(deadlines={"pendingSeconds": 30})
    world.process.one_pass()
    world.now += 31


def admitted(world: World) -> None:
    job = world.cluster.one(JOB, "small-1")
    world.cluster.change(JOB, "small-1", spec=job["spec"] | {"suspend": False})


def has_its_name_taken(kind: object, name: str) -> Deed:
    def begin(world: World) -> None:
        world.cluster.add(kind, {"metadata": {"name": name, "namespace": "team"}, "spec": {}})  # type: ignore[arg-type]

    return begin


def waits_for_its_name(world: World) -> None:
    has_its_name_taken(JOB, "small-1")(world)
    world.apply()
    world.process.one_pass()


def changes_and_puts_back(world: World) -> None:
    world.apply(host=OTHER_HOST)
    world.apply()


def frees_the_name(world: World) -> None:
    world.cluster.remove(JOB, "team", "small-1")


def loses_its_service(world: World) -> None:
    world.cluster.remove(SERVICE, "team", "small")


@dataclass(frozen=True)
class Path:
    """A path of the reconcile loop.

    Attributes:
        before: how the world is when it begins.
        deed: what sets it off.
        phase: at the end; None where the run is gone.
        jobs: at the end.
        twice: kinds that may have been made a second time.
        tried: kinds that are tried again, since no event tells when their names are free.
    """

    before: Deed
    deed: Deed
    phase: str | None
    jobs: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


def nothing(world: World) -> None:
    pass


PATHS: dict[str, Path] = {
    "starts": Path(nothing, apply(), "Running", ("small-1",)),
    "starts suspended": Path(nothing, apply(suspend=True), "Suspended"),
    "starts in a queue": Path(nothing, apply(queueName="q"), "Queued", ("small-1",)),
    "admitted": Path(trains_with(queueName="q"), admitted, "Running", ("small-1",)),
    "suspended": Path(trains, apply(suspend=True), "Suspended"),
    "suspended in its queue": Path(
        trains_with(queueName="q"), apply(queueName="q", suspend=True), "Suspended"
    ),
    "resumed": Path(is_suspended, apply(suspend=False), "Running", ("small-2",)),
    "resumed at once": Path(trains, is_suspended_and_resumed_at_once, "Running", ("small-2",)),
    "template": Path(trains, apply(template={"image": "other"}), "Running", ("small-2",)),
    "template while suspended": Path(
        is_suspended, apply(template={"image": "other"}), "Running", ("small-2",)
    ),
    "workers": Path(
        trains,
        apply(training={"steps": 60, "batchSize": 64, "workers": {"count": 2}}),
        "Running",
        ("small-2",),
    ),
    "queue given": Path(trains, apply(queueName="q"), "Queued", ("small-2",)),
    "deleted": Path(trains, is_deleted, None),
    "made again": Path(trains, is_made_again, "Running", ("small-1",)),
    "completes": Path(trains, ends("Complete"), "Succeeded"),
    "fails": Path(trains, ends("Failed"), "Failed"),
    "time is over": Path(its_time_is_over, nothing, None),
    "deadline": Path(its_deadline_passes, nothing, "Failed"),
    "pending deadline": Path(no_pod_is_ready_in_time, nothing, "Failed"),
    "invalid": Path(trains, apply(host={"builtin": "mlp", "entrypoint": "a:b"}), "Rejected"),
    "mended": Path(
        trains_with(host={"builtin": "mlp", "entrypoint": "a:b"}), apply(), "Running", ("small-1",)
    ),
    "identity changed": Path(trains, apply(host=OTHER_HOST), "Running", ("small-1",)),
    "identity changed while suspended": Path(is_suspended, apply(host=OTHER_HOST), "Rejected"),
    "identity put back": Path(trains, changes_and_puts_back, "Running", ("small-1",)),
    "name of its Job taken": Path(
        has_its_name_taken(JOB, "small-1"),
        apply(),
        "Rejected",
        ("small-1",),
        tried=("NetworkPolicy", "Secret", "Job"),
    ),
    "name of its Service taken": Path(
        has_its_name_taken(SERVICE, "small"), apply(), "Rejected", tried=("Service",)
    ),
    "name of its claim taken": Path(
        has_its_name_taken(CLAIM, "small-data"), apply(), "Rejected", tried=(CLAIM.name,)
    ),
    "name free again": Path(waits_for_its_name, frees_the_name, "Running", ("small-1",)),
    "loses its Service": Path(trains, loses_its_service, "Running", ("small-1",), ("Service",)),
}


def begin(name: str) -> World:
    """A world in which a path begins."""
    world = World()
    PATHS[name].before(world)
    PATHS[name].deed(world)
    world.cluster.calls.clear()
    return world


def play(name: str, arm: Callable[[World], None]) -> World:
    """A world on a path, with what ``arm`` does to it, driven until it comes to rest."""
    world = begin(name)
    arm(world)
    for _ in range(12):
        before = len(world.cluster.calls), versions(world)
        for _ in range(4):
            try:
                world.process.one_pass()
            except Killed:
                world.begin()
            except KubeError:
                continue
        world.cluster.collect()
        world.cluster.run_jobs()
        if (len(world.cluster.calls), versions(world)) == before:
            break
    return world


def versions(world: World) -> dict[tuple[str, str, str], str]:
    """By place: the version of each object."""
    return {place: body["metadata"]["resourceVersion"] for place, body in world.cluster.objects.items()}


def check(name: str, world: World, what: str) -> None:
    path, cluster = PATHS[name], world.cluster
    cluster.faults.clear()
    assert world.job_names() == list(path.jobs), what
    assert cluster.most_trainers <= 1, what
    run = cluster.objects.get((RUN.name, "team", "small"))
    assert (None if run is None else run["status"].get("phase")) == path.phase, what
    twice = [place for place, count in Counter(cluster.made).items() if count > 1]
    assert [
        place for place in twice if place[0] not in (EVENT.name, POD.name, RUN.name, *path.twice)
    ] == [], what
    if run is None:
        assert [place for place in cluster.objects if place[0] != EVENT.name] == [], what
    check_owners(world, what)
    before = len(cluster.calls)
    world.begin().one_pass()
    assert [call for call in cluster.calls[before:] if call.writes and call.kind not in path.tried] == [], (
        what
    )


def check_owners(world: World, what: str) -> None:
    """The operator's Jobs are the run's, and their pods are let in."""
    uid = (
        "" if RUN.name not in {kind for kind, _, _ in world.cluster.objects} else world.run["metadata"]["uid"]
    )
    for job in world.cluster.of(JOB):
        owners = [owner["uid"] for owner in job["metadata"].get("ownerReferences", ())]
        if owners:
            assert owners == [uid], what
            assert (uid, int(job["metadata"]["labels"]["esper.dev/attempt"])) in world.cluster.let_in, what


@cache
def calls_of(name: str) -> tuple[Call, ...]:
    """The calls of a path to which nothing happens."""
    return tuple(play(name, lambda world: None).cluster.calls)


def numbers(name: str, verb: str | None = None) -> list[int]:
    """Numbers of a path's calls: of all, or of those with a verb; where it tries for ever, of the first."""
    calls = calls_of(name)[: 12 if PATHS[name].tried else None]
    return [n for n, call in enumerate(calls, 1) if verb in (None, call.verb)]


def at(number: int, fault: Fault) -> Callable[[World], None]:
    return lambda world: world.cluster.faults.update({number: fault})


def refused() -> KubeError:
    return RefusedError("call", 403, "Forbidden", "an admission hook says no")


def conflict() -> KubeError:
    return ConflictError("call", 409, "Conflict", "it has changed")


@pytest.mark.parametrize("name", PATHS)
def test_every_path_converges_and_a_second_pass_writes_nothing(name: str) -> None:
    world = play(name, lambda world: None)
    check(name, world, "undisturbed")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_it_converges(name: str, after: bool) -> None:
    for number in numbers(name):
        world = play(name, at(number, Fault(Killed(), after)))
        check(name, world, f"killed {'after' if after else 'before'} call {number}")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("error", "after"),
    [(lost, False), (lost, True), (refused, False), (conflict, False)],
    ids=["error", "answer lost", "refused", "conflict"],
)
def test_a_call_that_fails_or_whose_answer_is_lost_is_made_up_for(
    name: str, error: Callable[[], KubeError], after: bool
) -> None:
    for number in numbers(name, "apply_status" if error is conflict else None):
        world = play(name, at(number, Fault(error(), after)))
        check(name, world, f"call {number}")


@pytest.mark.parametrize("name", PATHS)
def test_it_converges_with_two_kills_in_a_row(name: str) -> None:
    for number in numbers(name):

        def arm(world: World, n: int = number) -> None:
            world.cluster.faults.update({n: Fault(Killed(), True), n + 1: Fault(Killed())})

        check(name, play(name, arm), f"killed at calls {number} and {number + 1}")


REMADE = [name for name, path in PATHS.items() if path.phase is not None and "taken" not in name]


@pytest.mark.parametrize("name", REMADE)
@pytest.mark.parametrize("killed", [False, True], ids=["lives on", "killed"])
def test_a_run_deleted_and_made_again_at_any_call_has_one_trainer_and_only_its_own_children(
    name: str, killed: bool
) -> None:
    for number in numbers(name):

        def arm(world: World, n: int = number) -> None:
            fault = Fault(Killed() if killed else None, deed=lambda: is_made_again(world))
            world.cluster.faults.update({n: fault})

        world = play(name, arm)
        what = f"made again at call {number}"
        assert (world.status.get("phase"), world.job_names()) == ("Running", ["small-1"]), what
        assert world.cluster.most_trainers <= 1, what
        check_owners(world, what)
        owners = {
            owner["uid"]
            for body in world.cluster.objects.values()
            for owner in body["metadata"].get("ownerReferences", ())
            if owner.get("kind") == RUN.name
        }
        assert owners == {world.run["metadata"]["uid"]}, what
        before = len(world.cluster.calls)
        world.begin().one_pass()
        assert [call for call in world.cluster.calls[before:] if call.writes] == [], what


@pytest.mark.parametrize("name", [name for name in PATHS if name != "resumed at once"])
def test_events_that_are_dropped_are_made_up_for_by_the_relist(name: str) -> None:
    world = World()
    PATHS[name].before(world)
    world.process.deaf = True
    PATHS[name].deed(world)
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


@pytest.mark.parametrize("name", PATHS)
def test_events_that_come_twice_or_late_change_nothing(name: str) -> None:
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
    PATHS[name].before(world)
    PATHS[name].deed(world)
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
