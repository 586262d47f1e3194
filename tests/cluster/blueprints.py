"""Blueprints that a person applies, and what the cluster says of them."""

import copy

from tests.cluster.cluster import RUNS, Cluster, Object

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
"""A gated layer that is not in the catalogue, and that fits no slot of the runs of these tests."""


def called(name: str) -> tuple[Object, list[Object]]:
    """A copy of `GATED` with another name, and its nodes, to be changed."""
    body = copy.deepcopy(GATED)
    body["metadata"]["name"] = body["spec"]["graph"]["name"] = name
    nodes: list[Object] = body["spec"]["graph"]["nodes"]
    return body, nodes


def is_validated(cluster: Cluster, name: str, seconds: float, namespace: str = RUNS) -> Object:
    """Wait until a blueprint is Validated; returns its status.

    Raises:
        AssertionError: not in time, or it ends otherwise.
    """

    def validated() -> Object | None:
        found = cluster.get("blueprints", name, namespace)
        status = {} if found is None else found.get("status") or {}
        assert status.get("phase") not in ("Invalid", "Rejected", "Quarantined"), status
        return status if status.get("phase") == "Validated" else None

    return cluster.until(validated, f"the blueprint {name} is validated", seconds)
