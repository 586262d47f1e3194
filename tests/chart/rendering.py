"""The chart rendered by Helm's own engine, and what its objects refer to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "esper"
NAMESPACE = "esper-system"

Document = dict[str, Any]


def rendered(values: dict[str, Any] | None = None) -> dict[str, str]:
    """The text of each template."""
    with Chart.load(CHART) as chart:
        return chart.render(values or {}, name="esper", namespace=NAMESPACE)


def objects(values: dict[str, Any] | None = None) -> list[Document]:
    """All objects that an installation makes."""
    return [
        document
        for path, text in rendered(values).items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def find(documents: list[Document], kind: str, name: str) -> Document:
    """The one object of that kind and name."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and spec of every pod, however it is made."""
    for document in documents:
        if document["kind"] == "Pod":
            yield document["metadata"]["name"], document["spec"]
        elif "template" in document.get("spec", {}) and document["kind"] in (
            "Deployment",
            "StatefulSet",
            "Job",
        ):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def rules(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Role and rule of every right that the operator has."""
    for document in documents:
        if document["kind"] in ("Role", "ClusterRole") and "operator" in document["metadata"]["name"]:
            for rule in document["rules"]:
                yield document["metadata"]["name"], rule
