"""Blueprints that a person applies, and what the cluster says of them."""

import copy
from pathlib import Path

import yaml

from tests.cluster.cluster import RUNS, Cluster, Object

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "blueprints" / "gated.yaml"
GATED: Object = yaml.safe_load(_EXAMPLE.read_text())
GATED["metadata"]["namespace"] = RUNS
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
