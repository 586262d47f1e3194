"""Uninstalled, exactly what the notes list is left, and a training under way goes on to its end."""

import re
import time

import pytest

from tests.cluster.cluster import RELEASE, RUNS, SYSTEM, Cluster, Object
from tests.cluster.runs import growing

pytestmark = pytest.mark.cluster
DEFINITIONS = ("morphogeneticruns.esper.dev", "blueprints.esper.dev", "compiledkernels.esper.dev")


@pytest.mark.deadline(900)
def test_exactly_what_the_notes_list_is_left_and_a_training_goes_on_to_its_end(
    bare: tuple[Cluster, set[str]], cluster: Cluster
) -> None:
    _, before = bare
    cluster.kubectl("delete", "mrun,blueprints", "--all", f"--namespace={RUNS}")
    cluster.kubectl(
        "delete",
        "configmap",
        "slow-storage",
        "slow-storage-info",
        f"--namespace={RUNS}",
        "--ignore-not-found",
    )
    cluster.apply(growing("left", steps=3000))
    cluster.at_step("left", 300, 400)
    (pod,) = cluster.living_pods("left")
    with cluster.helm() as helm:
        notes = str(helm.status(RELEASE).get("notes", ""))
        helm.uninstall(RELEASE, timeout=180, wait="watcher")
    claims = {line for line in cluster.everything() if line.startswith("PersistentVolume ")} - before
    run = cluster.get("mrun", "left")
    assert run is not None
    word = f"left-{run['metadata']['uid'][:8]}"
    expected = {
        *(f"CustomResourceDefinition /{name}" for name in DEFINITIONS),
        f"Namespace /{SYSTEM}",
        f"Namespace /{RUNS}",
        *(f"ServiceAccount {space}/default" for space in (SYSTEM, RUNS)),
        f"PersistentVolumeClaim {SYSTEM}/data-esper-nats-0",
        f"MorphogeneticRun {RUNS}/left",
        f"Job {RUNS}/left-1",
        f"Pod {RUNS}/{pod}",
        f"Service {RUNS}/left",
        f"PersistentVolumeClaim {RUNS}/left-data",
        f"Secret {RUNS}/esper-{word}-1",
        f"NetworkPolicy {RUNS}/esper-{word}",
        *claims,
    }

    def wrong() -> list[str]:
        there = cluster.everything() - before
        return sorted(
            [f"left: {line}" for line in there - expected] + [f"gone: {line}" for line in expected - there]
        )

    try:
        cluster.until(lambda: not wrong(), "exactly what the notes list is left", 120)
    except AssertionError as error:
        raise AssertionError(f"{error}: {wrong()}") from error
    assert len(claims) == 2, "the bus's, and the run's"
    began = time.monotonic()

    def ended() -> Object | None:
        job = cluster.get("job", "left-1")
        assert job is not None
        done = [item for item in job["status"].get("conditions") or () if item["status"] == "True"]
        return next((item for item in done if item["type"] in ("Complete", "Failed")), None)

    assert cluster.until(ended, "the training goes on to its end", 400)["type"] == "Complete"
    cluster.note("training after uninstall", f"complete after {time.monotonic() - began:.0f} s")
    commands = [line.strip() for line in notes.splitlines() if re.match(r"\s+kubectl .*delete ", line)]
    assert len(commands) == 3
    for command in commands:
        cluster.kubectl(*command.split()[1:], seconds=180)
    cluster.kubectl("delete", "namespace", RUNS, seconds=180)

    def rest() -> list[str]:
        return sorted(cluster.everything() - before)

    try:
        cluster.until(lambda: not rest(), "the notes' commands remove the rest", 120)
    except AssertionError as error:
        raise AssertionError(f"{error}: {rest()}") from error


def test_real_pods_ran(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Every test above saw the pods that it is about; together they are no fewer than these."""
    counted = cluster.pods.counted()
    ran = {item.path.name for item in request.session.items if item.path.parent.name == "cluster"}
    least = {"operator": 1, "nats": 1}
    if "test_disturbances.py" in ran:
        least = {"operator": 11, "nats": 4, "training": 10}
    if {"test_runs.py", "test_suspension.py", "test_disturbances.py"} <= ran:
        least |= {"training": 20}
    assert all(counted.get(component, 0) >= number for component, number in least.items()), counted
