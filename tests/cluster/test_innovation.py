"""Blueprints of a person's and of Karn's are forged and validated by workers, which come for them and go."""

from pathlib import Path

import pytest

from esper_runtime.contracts import KernelsArrived
from esper_runtime.nissa import scan_journal
from tests.cluster.blueprints import GATED, called, is_validated
from tests.cluster.cluster import RUNS, SYSTEM, Cluster, Object
from tests.cluster.runs import THROTTLED, growing

pytestmark = pytest.mark.cluster
WORKERS = ("tezzeret", "urabrask", "karn")
MOST_INVENTED = 3


def validated_kernels(cluster: Cluster, blueprint: str) -> list[Object]:
    """The kernels of a blueprint that are shown, and have passed."""
    return [
        kernel
        for kernel in cluster.items("compiledkernels", SYSTEM)
        if kernel["spec"]["blueprint"] == blueprint
        and (kernel.get("status") or {}).get("phase") == "Validated"
    ]


def workers_go(cluster: Cluster) -> None:
    """Wait until no worker is left."""

    def idle() -> bool:
        labels = f"app.kubernetes.io/component in ({','.join(WORKERS)})"
        return cluster.items("jobs", SYSTEM, labels) == []

    cluster.until(idle, "the workers' Jobs are gone", 300)


@pytest.mark.deadline(900)
def test_a_blueprint_that_is_applied_by_hand_is_validated_and_its_workers_go(cluster: Cluster) -> None:
    cluster.apply(GATED)
    status = is_validated(cluster, "gated", 600)
    assert status["id"].startswith("bp-")
    assert status["kernels"].get("Validated", 0) >= 1
    assert {item["status"] for item in status["conditions"]} == {"True"}
    assert {item["type"] for item in status["conditions"]} == {"Valid", "Compiled", "Evaluated", "Served"}
    kernel = cluster.until(
        lambda: next(iter(validated_kernels(cluster, status["id"])), None), "its kernel is shown", 60
    )
    assert kernel["spec"]["digest"] in kernel["spec"]["uri"]
    row = cluster.kubectl("get", "blueprints", "gated", f"--namespace={RUNS}", "--output=wide")
    assert {"Validated", status["id"]} <= set(row.split())
    assert kernel["metadata"]["name"] in cluster.kubectl("get", "compiledkernels", f"--namespace={SYSTEM}")
    for role in ("tezzeret", "urabrask"):
        assert cluster.pods.seen(component=role), f"{role} has run in a pod of its own"
    workers_go(cluster)
    cluster.note("blueprint by hand", f"Validated, kernels {status['kernels']}")


@pytest.mark.deadline(120)
def test_a_blueprint_that_cannot_work_says_so(cluster: Cluster) -> None:
    body, nodes = called("wrong")
    nodes[2]["attributes"]["width"] = "Cin"
    cluster.apply(body)

    def refused() -> str | None:
        found = cluster.get("blueprints", "wrong")
        status = {} if found is None else found.get("status") or {}
        if status.get("phase") != "Invalid":
            return None
        return str(next(item["message"] for item in status["conditions"] if item["status"] == "False"))

    message = cluster.until(refused, "the blueprint is called invalid", 60)
    assert "product" in message, "it names the node"
    cluster.kubectl("delete", "blueprint", "wrong", f"--namespace={RUNS}")


@pytest.mark.deadline(900)
def test_a_run_gets_tested_kernels_of_blueprints_that_karn_invents_for_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The run plants nothing and hardly learns: it is there for as long as its inventions take."""
    made = growing("inventive", steps=1_000_000, template=THROTTLED)
    spec = made["spec"]
    spec["training"] |= {"optimizer": {"learningRate": 1e-6}, "validation": {"everySteps": 100_000}}
    spec["growth"]["controller"] |= {"earliest": 1.0, "latest": 1.0, "deadline": 1.0}
    spec["innovation"] = {"enabled": True, "blueprints": MOST_INVENTED}
    spec["checkpoint"] = {"everySteps": 100_000}
    cluster.apply(made)

    def invented() -> dict[str, Object]:
        items = cluster.items("blueprints", SYSTEM, "esper.dev/source=library")
        graphs = {item["metadata"]["name"]: item["spec"]["graph"] for item in items}
        return {name: graph for name, graph in graphs.items() if graph["name"].startswith("karn-")}

    def arrived() -> set[str] | None:
        """Blueprints of Karn's of which the training has kernels, by its journal."""
        path = "/var/esper/runs/inventive/journal.jsonl"
        (pod,) = cluster.living_pods("inventive")
        copy = tmp_path / "journal.jsonl"
        copy.write_text(cluster.kubectl("exec", pod, f"--namespace={RUNS}", "--", "cat", path))
        events = [entry.event for entry in scan_journal(copy).entries]
        kernels = [
            kernel for event in events if isinstance(event, KernelsArrived) for kernel in event.kernels
        ]
        return {kernel.blueprint for kernel in kernels if kernel.name.startswith("karn-")} or None

    cluster.until(lambda: invented() or None, "Karn has invented a blueprint", 400)
    cluster.at_step("inventive", 1)
    came = cluster.until(arrived, "the training has a kernel of an invention", 400)
    found = invented()
    assert came <= set(found)
    assert 1 <= len(found) <= MOST_INVENTED, "no more than the manifest says"
    for graph in found.values():
        assert graph["provenance"]["generator"] == "karn-grammar-1"
        assert graph["provenance"]["origin"] in ("Generated", "Mutated")
    for name in came:
        is_validated(cluster, name, 60, SYSTEM)
        cluster.until(
            lambda name=name: validated_kernels(cluster, name) or None, f"the kernel of {name} is shown", 60
        )
    assert {pod.namespace for pod in cluster.pods.seen(component="karn")} == {SYSTEM}
    cluster.remove("inventive")
    workers_go(cluster)
    cluster.note("invented by Karn", f"{len(found)} blueprints, kernels of {len(came)} in the training")
