"""Uninstalled, exactly what the notes list is left, and a training under way goes on to its end."""

import re
import time
from pathlib import Path

import pytest

from tests.cluster.blueprints import GATED, called, is_validated
from tests.cluster.cluster import RELEASE, RUNS, SYSTEM, Cluster, Object
from tests.cluster.outcome import Outcome, outcome_of, same
from tests.cluster.runs import growing

pytestmark = pytest.mark.cluster
DEFINITIONS = ("morphogeneticruns.esper.dev", "blueprints.esper.dev", "compiledkernels.esper.dev")
KEPT = (
    ("mrun", "left"),
    ("blueprint", "gated"),
    ("blueprint", "late"),
    ("job", "left-1"),
    ("service", "left"),
    ("persistentvolumeclaim", "left-data"),
)
"""In the namespace of runs, besides the pod."""
HELD_BACK: Object = {"resources": {"requests": {"cpu": "150m"}, "limits": {"cpu": "150m"}}}
"""A template for a run that is to outlast the operator."""


def uids(cluster: Cluster, pod: str) -> dict[str, str]:
    """Of everything that is to stay as it is; empty for what is gone."""
    wanted = [
        *((kind, name, RUNS) for kind, name in (*KEPT, ("pod", pod))),
        ("persistentvolumeclaim", "data-esper-nats-0", SYSTEM),
        *(("crd", name, SYSTEM) for name in DEFINITIONS),
    ]
    found = {f"{kind} {name}": cluster.get(kind, name, space) for kind, name, space in wanted}
    return {what: "" if body is None else body["metadata"]["uid"] for what, body in found.items()}


@pytest.mark.deadline(1200)
def test_exactly_what_the_notes_list_is_left_and_a_training_goes_on_to_its_end(
    bare: tuple[Cluster, set[str]], cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    """With a library that holds kernels, one that is being made, and a run in the middle of its training."""
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
    cluster.apply(GATED)
    is_validated(cluster, "gated", 600)
    cluster.apply(growing("left", template=HELD_BACK))
    cluster.at_step("left", 300, 400)
    (pod,) = cluster.living_pods("left")
    late, nodes = called("late")
    nodes[1]["op"] = "relu"
    cluster.apply(late)
    labels = "app.kubernetes.io/component=tezzeret"
    cluster.until(lambda: cluster.items("pods", SYSTEM, labels) or None, "a worker has come for it", 120)
    kernels = len(cluster.items("compiledkernels", SYSTEM))
    assert kernels > 1, "the library's, for trainings and for the blueprint"
    kept = uids(cluster, pod)
    assert all(kept.values()), kept
    with cluster.helm() as helm:
        notes = str(helm.status(RELEASE).get("notes", ""))
        helm.uninstall(RELEASE, timeout=180, wait="watcher")
    assert cluster.living_pods("left") == [pod], "the training is still under way"
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
        f"Blueprint {RUNS}/gated",
        f"Blueprint {RUNS}/late",
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
    assert uids(cluster, pod) == kept, "the same objects, not others of their names"
    same(outcome_of(cluster, "left", tmp_path / "run", stated=False), undisturbed)
    cluster.note(
        "uninstalled with kernels and a training",
        f"{kernels} kernels gone, training complete {time.monotonic() - began:.0f} s later, same weights",
    )
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
    """Every test above saw the pods that it is about; together they are no fewer than these, of one build."""
    counted = cluster.pods.counted()
    ran = {item.path.name for item in request.session.items if item.path.parent.name == "cluster"}
    least = {"operator": 1, "nats": 1, "training": 2, "tezzeret": 1, "urabrask": 1}
    if "test_installation.py" in ran:
        least["test"] = 3
    if "test_innovation.py" in ran:
        least["karn"] = 1
    if "test_disturbances.py" in ran:
        least |= {"operator": 11, "nats": 4, "training": 10}
    if {"test_installation.py", "test_innovation.py", "test_runs.py", "test_suspension.py"} <= ran:
        least["training"] += 15
    assert all(counted.get(component, 0) >= number for component, number in least.items()), counted
    images = cluster.pods.images()
    assert all(len(digests) == 1 for digests in images.values()), images
    cluster.note("images", ", ".join(f"{name} {next(iter(found))}" for name, found in images.items()))
