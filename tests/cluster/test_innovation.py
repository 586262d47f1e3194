"""A blueprint that a person applies is forged and validated by workers, which come for it and go."""

import copy

import pytest

from tests.cluster.cluster import RUNS, SYSTEM, Cluster, Object

pytestmark = pytest.mark.cluster
WORKERS = ("tezzeret", "urabrask")


GATED: Object = {
    "apiVersion": "esper.dev/v1alpha1",
    "kind": "Blueprint",
    "metadata": {"name": "gated", "namespace": RUNS},
    "spec": {
        "graph": {
            "name": "gated",
            "interface": "features",
            "nodes": [
                {"id": "value", "op": "linear", "inputs": ["input"], "attributes": {"width": "Cin/2"}},
                {"id": "curve", "op": "tanh", "inputs": ["value"]},
                {"id": "gate", "op": "linear", "inputs": ["input"], "attributes": {"width": "Cin/2"}},
                {"id": "opened", "op": "sigmoid", "inputs": ["gate"]},
                {"id": "product", "op": "multiply", "inputs": ["curve", "opened"]},
                {
                    "id": "tail",
                    "op": "linear",
                    "inputs": ["product"],
                    "attributes": {"width": "Cout", "bias": False},
                },
            ],
            "output": "tail",
        }
    },
}
"""A gated layer that is not in the catalogue."""


@pytest.mark.deadline(900)
def test_a_blueprint_that_is_applied_by_hand_is_validated_and_its_workers_go(cluster: Cluster) -> None:
    cluster.apply(GATED)

    def validated() -> Object | None:
        found = cluster.get("blueprints", "gated")
        status = {} if found is None else found.get("status") or {}
        assert status.get("phase") not in ("Invalid", "Rejected", "Quarantined"), status
        return status if status.get("phase") == "Validated" else None

    status = cluster.until(validated, "the blueprint is validated", 600)
    assert status["id"].startswith("bp-")
    assert status["kernels"].get("Validated", 0) >= 1

    def shown() -> bool:
        return any(
            kernel["spec"]["blueprint"] == status["id"]
            and (kernel.get("status") or {}).get("phase") == "Validated"
            for kernel in cluster.items("compiledkernels", SYSTEM)
        )

    cluster.until(shown, "its kernel is shown", 60)
    for role in WORKERS:
        assert cluster.pods.seen(component=role), f"{role} has run in a pod of its own"

    def idle() -> bool:
        labels = f"app.kubernetes.io/component in ({','.join(WORKERS)})"
        return cluster.items("jobs", SYSTEM, labels) == []

    cluster.until(idle, "the workers' Jobs are gone", 300)
    cluster.note("blueprint by hand", f"Validated, kernels {status['kernels']}")


@pytest.mark.deadline(120)
def test_a_blueprint_that_cannot_work_says_so(cluster: Cluster) -> None:
    body = copy.deepcopy(GATED)
    body["metadata"]["name"] = "wrong"
    body["spec"]["graph"]["nodes"][2]["attributes"]["width"] = "Cin"
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
