"""Pods killed, a node drained: the same weights as undisturbed, nothing doubled or lost."""

import random
import time
from pathlib import Path

import pytest

from tests.cluster.cluster import RUNS, SYSTEM, Cluster, CommandError
from tests.cluster.outcome import Outcome, adaptations, outcome_of, same
from tests.cluster.runs import STEPS, THROTTLED, growing

pytestmark = pytest.mark.cluster
OPERATOR, BUS = "app.kubernetes.io/component=operator", "app.kubernetes.io/component=nats"
KILLS_OF_OPERATOR, KILLS_OF_BUS = 10, 3

_KILL_RANKS = (
    "import os, signal\n"
    "for word in os.listdir('/proc'):\n"
    "    if word.isdigit() and word != '1' and int(word) != os.getpid():\n"
    "        if b'run' in open(f'/proc/{word}/cmdline', 'rb').read().split(b'\\0'):\n"
    "            os.kill(int(word), signal.SIGKILL)\n"
)


def whole(cluster: Cluster, run: str) -> None:
    """The status of a run that has ended holds all of it."""
    status = cluster.status(run)
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    assert len(adaptations(status)) == len(set(adaptations(status))), "each adaptation once"
    assert cluster.pods.most_at_once(RUNS, run) == 1, "never two trainers"


@pytest.mark.deadline(900)
def test_a_trainer_that_is_killed_comes_to_the_same_weights(
    cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    cluster.apply(growing("killed"))
    cluster.at_step("killed", STEPS // 6)
    pod = cluster.living_pods("killed")[0]
    cluster.kubectl("exec", pod, f"--namespace={RUNS}", "--", "python", "-c", _KILL_RANKS)
    cluster.until(lambda: pod not in cluster.living_pods("killed"), "the pod has ended", 60)
    cluster.at_step("killed", STEPS // 2)
    cluster.kill(RUNS, "esper.dev/run=killed")
    status = cluster.reaches("killed", "Succeeded", 600)
    assert status["usage"]["attempts"] == 1
    assert status["usage"]["restarts"] >= 2
    assert status["usage"]["retries"] <= 2
    same(outcome_of(cluster, "killed", tmp_path / "run"), undisturbed)
    whole(cluster, "killed")
    assert len(cluster.pods.seen(run="killed")) == 3
    assert 137 in [code for pod in cluster.pods.seen(run="killed") for code in pod.codes]
    cluster.note("trainer killed", f"same weights, usage {status['usage']}")
    cluster.remove("killed")


def running_operator(cluster: Cluster) -> bool:
    """Whether there is an operator whose container runs."""
    pods = cluster.items("pods", SYSTEM, OPERATOR)
    return any(
        pod["metadata"].get("deletionTimestamp") is None
        and any("running" in item["state"] for item in pod["status"].get("containerStatuses") or ())
        for pod in pods
    )


@pytest.mark.deadline(1500)
def test_an_operator_that_is_killed_ten_times_doubles_and_loses_nothing(
    cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    """Killed while it makes children, while nothing happens, while it suspends and while it resumes."""
    draw = random.Random(0)
    killed: list[str] = []

    def kill() -> None:
        cluster.until(lambda: running_operator(cluster), "an operator runs", 120)
        time.sleep(draw.uniform(0, 3))
        killed.append(cluster.kill(SYSTEM, OPERATOR))

    cluster.apply(growing("orphan", template=THROTTLED))
    kill()
    kill()
    cluster.at_step("orphan", 1)
    kill()
    kill()
    cluster.patch("mrun", "orphan", {"spec": {"suspend": True}})
    kill()
    kill()
    cluster.reaches("orphan", "Suspended", 240)
    assert cluster.living_pods("orphan") == []
    cluster.patch("mrun", "orphan", {"spec": {"suspend": False}})
    kill()
    kill()
    cluster.until(lambda: cluster.living_pods("orphan") or None, "it is resumed", 240)
    kill()
    kill()
    assert len(set(killed)) == KILLS_OF_OPERATOR
    status = cluster.reaches("orphan", "Succeeded", 600)
    assert status["usage"]["attempts"] == 2
    assert status["usage"]["retries"] == 0
    same(outcome_of(cluster, "orphan", tmp_path / "run"), undisturbed)
    whole(cluster, "orphan")
    pods = cluster.pods.seen(run="orphan")
    assert sorted(pod.attempt for pod in pods) == ["1", "2"], (
        "each attempt has one pod, and there is no third"
    )
    assert adaptations(status) == [
        (step, seed, stage) for step, seed, _, stage in undisturbed.life[-len(adaptations(status)) :]
    ]
    cluster.note("operator killed", f"{len(killed)} times: same weights, usage {status['usage']}")
    cluster.remove("orphan")


@pytest.mark.deadline(900)
def test_a_bus_that_is_killed_three_times_changes_nothing(
    cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    cluster.apply(growing("cut-off", template=THROTTLED))
    for number in range(1, KILLS_OF_BUS + 1):
        cluster.at_step("cut-off", number * STEPS // 6)
        before = cluster.get("pod", "esper-nats-0", SYSTEM)
        assert before is not None
        cluster.kill(SYSTEM, BUS)

        def back(uid: str = before["metadata"]["uid"]) -> bool:
            pod = cluster.get("pod", "esper-nats-0", SYSTEM)
            conditions = (
                {} if pod is None else {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
            )
            return pod is not None and pod["metadata"]["uid"] != uid and conditions.get("Ready") == "True"

        cluster.until(back, "the bus is back", 180)
    status = cluster.reaches("cut-off", "Succeeded", 600)
    assert status["usage"] | {"wallSeconds": 0, "deviceSeconds": 0} == {
        "attempts": 1,
        "retries": 0,
        "restarts": 0,
        "wallSeconds": 0,
        "deviceSeconds": 0,
    }
    found = outcome_of(cluster, "cut-off", tmp_path / "run")
    same(found, undisturbed)
    whole(cluster, "cut-off")
    assert adaptations(status) == [
        (step, seed, stage) for step, seed, _, stage in found.life[-len(adaptations(status)) :]
    ], "what was done while the bus was away is in the status"
    assert len(cluster.pods.seen(run="cut-off")) == 1
    cluster.note("bus killed", f"{KILLS_OF_BUS} times: same weights")
    cluster.remove("cut-off")


@pytest.mark.deadline(900)
def test_a_drained_node_costs_no_retry(cluster: Cluster, undisturbed: Outcome, tmp_path: Path) -> None:
    cluster.apply(growing("drained"))
    cluster.at_step("drained", STEPS // 4)
    (name,) = cluster.living_pods("drained")
    pod = cluster.get("pod", name)
    assert pod is not None
    node = pod["spec"]["nodeName"]
    try:
        cluster.kubectl(
            *("drain", node, "--pod-selector=esper.dev/run=drained"),
            *("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"),
            seconds=150,
        )
        cluster.until(lambda: name not in cluster.living_pods("drained"), "it is evicted", 60)
    finally:
        cluster.kubectl("uncordon", node)
    status = cluster.reaches("drained", "Succeeded", 600)
    assert status["usage"]["retries"] == 0
    assert status["usage"]["attempts"] == 1
    assert status["usage"]["restarts"] == 1
    first = next(pod for pod in cluster.pods.seen(run="drained") if pod.name == name)
    assert first.codes == [75], "it has left a checkpoint and asks to be resumed"
    same(outcome_of(cluster, "drained", tmp_path / "run"), undisturbed)
    whole(cluster, "drained")
    cluster.note("drained", f"same weights, usage {status['usage']}")
    cluster.remove("drained")


def test_two_trainers_of_one_run_would_be_seen(cluster: Cluster) -> None:
    """The watch that the tests above rely on knows of every pod that the API server knows of."""
    there = {
        pod["metadata"]["name"]
        for pod in cluster.items("pods", SYSTEM, "app.kubernetes.io/name=esper")
        if pod["status"]["phase"] == "Running"
    }
    known = cluster.until(
        lambda: {pod.name for pod in cluster.pods.seen(namespace=SYSTEM)} if there else None, "pods", 10
    )
    assert there <= known
    with pytest.raises(CommandError):
        cluster.kubectl("get", "pod", "there-is-none", f"--namespace={RUNS}")
