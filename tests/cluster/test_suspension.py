"""Suspended and resumed, by a person and by a queue, with a checkpoint that takes 45 s: the same losses."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import RUNS, Cluster, CommandError, Object
from tests.cluster.outcome import Outcome, outcome_of, same
from tests.cluster.runs import STEPS, STEPS_OF_AN_EPOCH, growing, slow_storage, with_slow_storage

pytestmark = pytest.mark.cluster
CHECKPOINT_SECONDS = 45.0
FILES = 5
"""Of a checkpoint."""
SLOW = CHECKPOINT_SECONDS / FILES
QUEUE = "kueue.x-k8s.io/queue-name"


def suspended(cluster: Cluster, run: str, seconds: float) -> float:
    """Suspend a run, and see that it says Suspended only when no pod is left; returns the seconds it took."""
    cluster.patch("mrun", run, {"spec": {"suspend": True}})
    began = time.monotonic()
    phases: list[str] = []

    def done() -> bool:
        phase = cluster.phase(run)
        left = cluster.living_pods(run)
        if phase not in phases:
            phases.append(phase)
        assert phase != "Suspended" or left == [], f"Suspended, and there is {left}"
        return phase == "Suspended"

    cluster.until(done, f"{run} is suspended", seconds)
    assert phases[-2:] == ["Suspending", "Suspended"], phases
    return time.monotonic() - began


def resume(cluster: Cluster, run: str) -> None:
    cluster.patch("mrun", run, {"spec": {"suspend": False}})


def grafted(cluster: Cluster, run: str, seconds: float = 300) -> int:
    """Wait until a seed contributes; returns the step at which its run is."""

    def holds() -> int | None:
        status = cluster.status(run)
        stages = {item.get("stage") for item in status.get("adaptations") or ()}
        return int(status["progress"]["step"]) if "Grafting" in stages else None

    return cluster.until(holds, f"{run} has grafted", seconds)


def checkpoint_step(cluster: Cluster, run: str) -> int:
    return int(cluster.status(run)["checkpoint"]["step"])


@pytest.mark.deadline(900)
def test_a_run_that_is_suspended_and_resumed_has_the_losses_of_one_that_was_not(
    cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    cluster.apply(growing("pausing"))
    cluster.at_step("pausing", STEPS // 3)
    took = suspended(cluster, "pausing", 120)
    step = checkpoint_step(cluster, "pausing")
    assert 0 < step < STEPS
    resume(cluster, "pausing")
    status = cluster.reaches("pausing", "Succeeded", 600)
    assert status["usage"]["attempts"] == 2
    assert status["usage"]["retries"] == 0
    same(outcome_of(cluster, "pausing", tmp_path / "run"), undisturbed)
    assert sorted(pod.attempt for pod in cluster.pods.seen(run="pausing")) == ["1", "2"]
    assert cluster.pods.most_at_once(RUNS, "pausing") == 1
    cluster.note("suspended", f"at step {step} in {took:.0f} s; same losses")
    cluster.remove("pausing")


@pytest.fixture(scope="module")
def at_once(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run of the tests below, with the same storage when it is quick."""
    installed.deadline = time.monotonic() + 600
    for body in slow_storage():
        installed.apply(body)
    installed.apply(with_slow_storage("at-once", 0.0))
    installed.reaches("at-once", "Succeeded", 600)
    found = outcome_of(installed, "at-once", tmp_path_factory.mktemp("at-once") / "run")
    installed.remove("at-once")
    return found


def in_the_middle(step: int) -> bool:
    """Whether a step is in the middle of an epoch."""
    return step % STEPS_OF_AN_EPOCH != 0


@pytest.mark.deadline(1200)
def test_a_checkpoint_that_takes_45_s_in_the_middle_of_an_epoch_after_a_graft(
    cluster: Cluster, at_once: Outcome, tmp_path: Path
) -> None:
    cluster.apply(with_slow_storage("slow", SLOW))
    for _ in range(3):
        grafted(cluster, "slow")
        took = suspended(cluster, "slow", 240)
        step = checkpoint_step(cluster, "slow")
        resume(cluster, "slow")
        if in_the_middle(step):
            break
        cluster.at_step("slow", step + 1)
    assert in_the_middle(step)
    assert took >= CHECKPOINT_SECONDS
    status = cluster.reaches("slow", "Succeeded", 600)
    assert status["usage"]["retries"] == 0
    same(outcome_of(cluster, "slow", tmp_path / "run"), at_once)
    assert cluster.pods.most_at_once(RUNS, "slow") == 1
    cluster.note("checkpoint of 45 s", f"suspended at step {step} in {took:.1f} s; same losses")
    cluster.remove("slow")


class Queue:
    """Does with Jobs what Kueue does: admits those that wait, and takes the admission back.

    Args:
        cluster: the cluster.
        queue: name of the local queue.
    """

    def __init__(self, cluster: Cluster, queue: str) -> None:
        self._cluster, self._queue = cluster, queue
        self.closed = False
        """Whether nothing is admitted now."""
        self.admitted: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def jobs(self) -> list[Object]:
        """Jobs of the queue that are not being deleted."""
        found = self._cluster.items("jobs", RUNS, f"{QUEUE}={self._queue}")
        return [job for job in found if job["metadata"].get("deletionTimestamp") is None]

    def preempt(self) -> None:
        """Take back all admissions."""
        self.closed = True
        for job in self.jobs():
            self._suspend(job, True)

    def _suspend(self, job: Object, suspend: bool) -> None:
        change: dict[str, Any] = {"spec": {"suspend": suspend}}
        self._cluster.patch("job", job["metadata"]["name"], change)

    def _work(self) -> None:
        while not self._ending.wait(1.0):
            with contextlib.suppress(CommandError):  # a Job that was deleted meanwhile
                for job in self.jobs():
                    if job["spec"]["suspend"] and not self.closed:
                        self._suspend(job, False)
                        self.admitted.append(job["metadata"]["name"])

    @contextlib.contextmanager
    def open(self) -> Iterator["Queue"]:
        """Inside, it admits."""
        self._thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            self._thread.join()


@pytest.mark.deadline(1500)
def test_the_same_with_a_queue_that_admits_takes_back_and_admits_again(
    cluster: Cluster, at_once: Outcome, tmp_path: Path
) -> None:
    queue = Queue(cluster, "team")
    queue.closed = True
    with queue.open():
        cluster.apply(with_slow_storage("queued", SLOW, queueName="team"))
        cluster.reaches("queued", "Queued", 60)
        assert cluster.living_pods("queued") == []
        queue.closed = False
        grafted(cluster, "queued")
        began = time.monotonic()
        queue.preempt()
        cluster.until(lambda: cluster.living_pods("queued") == [], "it has given way", 240)
        gave_way = time.monotonic() - began
        cluster.reaches("queued", "Queued", 60)
        step = checkpoint_step(cluster, "queued")
        queue.closed = False
        cluster.at_step("queued", step + 100)
        took = suspended(cluster, "queued", 240)
        queue.closed = True
        resume(cluster, "queued")
        cluster.reaches("queued", "Queued", 60)
        queue.closed = False
        status = cluster.reaches("queued", "Succeeded", 600)
    assert gave_way >= CHECKPOINT_SECONDS
    assert took >= CHECKPOINT_SECONDS
    assert queue.admitted == ["queued-1", "queued-1", "queued-2"]
    assert status["usage"]["retries"] == 0
    same(outcome_of(cluster, "queued", tmp_path / "run"), at_once)
    assert cluster.pods.most_at_once(RUNS, "queued") == 1
    assert sorted(pod.attempt for pod in cluster.pods.seen(run="queued")) == ["1", "1", "2"]
    cluster.note(
        "the same with a queue", f"gave way in {gave_way:.1f} s, suspended in {took:.1f} s; same losses"
    )
    cluster.remove("queued")
