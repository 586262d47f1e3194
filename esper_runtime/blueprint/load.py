"""Blueprints from files: YAML or JSON, checked before anything else sees them."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from esper_runtime.blueprint.checks import validate
from esper_runtime.contracts import API_VERSION, Blueprint, BlueprintError, Node, read_document
from esper_runtime.contracts.resources import BlueprintSpec


def load_blueprint(path: str | Path) -> Blueprint:
    """Read and validate a blueprint from a YAML or JSON file: its graph, or a resource of the kind Blueprint.

    Raises:
        InputError: the file cannot be read, or is neither YAML nor JSON.
        BlueprintError: it is not a valid blueprint; the text names the node and the rule.
    """
    try:
        return parse_blueprint(_graph_of(read_document(path)))
    except BlueprintError as error:
        error.args = (f"{path}: {error}",)
        raise


def _graph_of(data: object) -> object:
    """The graph in a resource, as ``kubectl apply`` takes it; other data as they are.

    Its ``spec.pipelines`` is for clusters: here `esper forge prepare` says how kernels are made.
    """
    if not isinstance(data, dict) or "apiVersion" not in data:
        return data
    version, kind, spec = (data.get(key) for key in ("apiVersion", "kind", "spec"))
    if (version, kind) != (API_VERSION, "Blueprint"):
        raise BlueprintError(
            "schema",
            f"the file is a {kind} of {version}; a Blueprint of {API_VERSION}, or its graph, is wanted",
        )
    if not isinstance(spec, dict) or "graph" not in spec:
        raise BlueprintError("schema", "spec.graph is missing: the nodes and the output of the blueprint")
    for name in spec.keys() - BlueprintSpec.model_fields.keys():
        known = ", ".join(BlueprintSpec.model_fields)
        raise BlueprintError("schema", f"spec.{name} is not a field of a Blueprint; known: {known}")
    return spec["graph"]


def parse_blueprint(data: object) -> Blueprint:
    """Make a valid blueprint of plain data (mappings, lists, strings and numbers).

    Raises:
        BlueprintError: rule ``schema`` or any other of `validate`; the text names the node and the rule.
    """
    try:
        blueprint = Blueprint.model_validate(data)
    except ValidationError as error:
        raise _schema_error(data, error) from None
    validate(blueprint)
    return blueprint


def _schema_error(data: object, error: ValidationError) -> BlueprintError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the blueprint"
    given = "" if first["type"] == "missing" else f", given {str(first['input'])[:80]!r}"
    hint = ""
    if first["type"] == "extra_forbidden":
        model = Node if first["loc"][0] == "nodes" else Blueprint
        near = get_close_matches(str(first["loc"][-1]), model.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(model.model_fields)}"
    return BlueprintError("schema", f"{place}: {first['msg']}{given}{hint}", _node_at(data, first["loc"]))


def _node_at(data: object, place: tuple[int | str, ...]) -> str | None:
    """Id of the node that an error's place lies in, where it can be told."""
    if (
        len(place) < 2
        or place[0] != "nodes"
        or not isinstance(place[1], int)
        or not isinstance(data, Mapping)
    ):
        return None
    node = data["nodes"][place[1]]
    id_ = node.get("id") if isinstance(node, Mapping) else None
    return id_ if isinstance(id_, str) else f"nodes.{place[1]}"
