"""The custom resource definitions, made of the contract models: structural schemas, everything bounded.

The API server takes OpenAPI v3 without references, without null, with at most one type a field, and refuses
CEL rules whose cost it cannot bound. What pydantic says is rewritten to that, and what it leaves unbounded is
an error here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper_runtime.contracts.base import ContractModel, Rule
from esper_runtime.contracts.manifest import API_VERSION
from esper_runtime.contracts.resources import (
    BlueprintSpec,
    BlueprintStatus,
    CompiledKernelSpec,
    CompiledKernelStatus,
    RunResourceSpec,
    RunStatus,
)

GROUP, VERSION = API_VERSION.split("/")

_KEPT = (
    "description",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "enum",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)
_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; those of priority 1 are shown with ``-o wide``."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Resource:
    """One kind of resource."""

    kind: str
    plural: str
    short: str
    description: str
    spec: type[ContractModel]
    status: type[ContractModel]
    columns: Sequence[Column]
    rules: Sequence[Rule] = ()


def _condition(kind: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].status'


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

RESOURCES = (
    Resource(
        "MorphogeneticRun",
        "morphogeneticruns",
        "mrun",
        "A training whose model grows its own architecture.",
        RunResourceSpec,
        RunStatus,
        (
            Column("Phase", ".status.phase"),
            Column("Step", ".status.progress.summary"),
            Column("Metric", ".status.progress.metricText"),
            Column("Params", ".status.parameters.summary"),
            Column("Seeds", ".status.seedsSummary"),
            Column("ETA", ".status.progress.eta"),
            Column("Accepted", _condition("Accepted"), priority=1),
            Column("Degraded", _condition("Degraded"), priority=1),
            Column("Queue", ".spec.queueName", priority=1),
            _AGE,
        ),
        (
            Rule(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
                "metadata.name must be 1 to 40 lower-case letters, digits and '-', first a letter, "
                "last no '-'",
            ),
        ),
    ),
    Resource(
        "Blueprint",
        "blueprints",
        "bp",
        "A small sub-network that may be planted in a model while it trains.",
        BlueprintSpec,
        BlueprintStatus,
        (
            Column("Phase", ".status.phase"),
            Column("Interface", ".spec.graph.interface"),
            Column("Kernels", ".status.kernelsSummary"),
            Column("Origin", ".spec.graph.provenance.origin"),
            Column("Score", ".status.score.mean", "number"),
            Column("ID", ".status.id", priority=1),
            Column("Valid", _condition("Valid"), priority=1),
            Column("Compiled", _condition("Compiled"), priority=1),
            Column("Evaluated", _condition("Evaluated"), priority=1),
            Column("Served", _condition("Served"), priority=1),
            _AGE,
        ),
    ),
    Resource(
        "CompiledKernel",
        "compiledkernels",
        "ck",
        "A blueprint made ready for one target and one class of slots; shown, never edited.",
        CompiledKernelSpec,
        CompiledKernelStatus,
        (
            Column("Phase", ".status.phase"),
            Column("Blueprint", ".spec.blueprint"),
            Column("Pipeline", ".spec.pipeline"),
            Column("Target", ".spec.target.arch"),
            Column("Speed", ".status.speed"),
            Column("Risk", ".status.risk", "number", priority=1),
            Column("Digest", ".spec.digest", priority=1),
            _AGE,
        ),
    ),
)


def crd_documents() -> dict[str, dict[str, Any]]:
    """The definitions as plain data, by file name."""
    return {f"{GROUP}_{resource.plural}.yaml": _definition(resource) for resource in RESOURCES}


def _definition(resource: Resource) -> dict[str, Any]:
    root: Schema = {
        "description": resource.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "esper.dev/v1alpha1"},
            "kind": {"type": "string", "description": resource.kind},
            "metadata": {"type": "object"},
            "spec": structural(resource.spec),
            "status": structural(resource.status),
        },
    }
    if resource.rules:
        root["x-kubernetes-validations"] = [
            {"rule": rule.expression, "message": rule.message} for rule in resource.rules
        ]
    columns = [
        {"name": column.name, "type": column.type, "jsonPath": column.path}
        | ({"priority": column.priority} if column.priority else {})
        for column in resource.columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short],
                "categories": ["esper"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def structural(model: type[ContractModel]) -> Schema:
    """The structural schema of a model.

    Raises:
        ValueError: a string, list or mapping in it has no bound, or a type cannot be said structurally; the
            text names the place.
    """
    schema = model.model_json_schema(by_alias=True)
    return _rewritten(schema, schema.get("$defs", {}), model.__name__)


def _rewritten(schema: Mapping[str, Any], models: Mapping[str, Any], place: str) -> Schema:
    if "$ref" in schema:
        named = models[schema["$ref"].rsplit("/", 1)[-1]]
        merged = {**named, **{key: value for key, value in schema.items() if key != "$ref"}}
        return _rewritten(merged, models, place)
    if "anyOf" in schema:
        return _rewritten_union(schema, models, place)
    found: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        found["enum"] = [schema["const"]]
    for bound, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            found |= {inclusive: schema[bound], bound: True}
    if "default" in schema:
        found |= _default(schema["default"])
    kind = schema.get("type")
    if kind is None and not schema.get("enum"):
        return found | _ANYTHING
    found["type"] = kind or "string"
    match kind:
        case "object":
            found |= _rewritten_object(schema, models, place)
        case "array":
            found |= _rewritten_array(schema, models, place)
        case "integer":
            found.setdefault("format", "int64")
        case "string" if not {"enum", "maxLength", "format"} & found.keys():
            raise ValueError(f"{place}: text without a largest length")
    return found


def _default(value: Any) -> Schema:
    if value is None:
        return {}
    return {"default": {} if isinstance(value, Mapping) else value}


def _rewritten_union(schema: Mapping[str, Any], models: Mapping[str, Any], place: str) -> Schema:
    options = [option for option in schema["anyOf"] if option.get("type") != "null"]
    around = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(options) == 1:
        return _rewritten({**options[0], **around}, models, place)
    inner = [_rewritten(option, models, place) for option in options]
    found: Schema = {key: around[key] for key in _KEPT if key in around}
    found |= _default(around.get("default"))
    types = {option.get("type") for option in inner}
    if types == {"integer", "string"}:
        bounds = {
            key: option[key]
            for option in inner
            for key in ("pattern", "minLength", "maxLength", "minimum", "maximum")
            if key in option
        }
        union = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        return found | bounds | union
    if types <= {"boolean", "integer", "number", "string"}:
        return found | _ANYTHING
    raise ValueError(f"{place}: a union of {', '.join(sorted(map(str, types)))} cannot be said structurally")


def _rewritten_object(schema: Mapping[str, Any], models: Mapping[str, Any], place: str) -> Schema:
    if "properties" in schema:
        inner = {
            name: _rewritten(value, models, f"{place}.{name}") for name, value in schema["properties"].items()
        }
        return {"properties": inner}
    if "maxProperties" not in schema:
        raise ValueError(f"{place}: a mapping without a largest number of entries")
    values = schema.get("additionalProperties", True)
    if values is True:
        return dict(_ANYTHING)
    return {"additionalProperties": _rewritten(values, models, f"{place}.*")}


def _rewritten_array(schema: Mapping[str, Any], models: Mapping[str, Any], place: str) -> Schema:
    if "maxItems" not in schema:
        raise ValueError(f"{place}: a list without a largest number of entries")
    items = schema["items"] if "items" in schema else schema["prefixItems"][0]
    return {"items": _rewritten(items, models, f"{place}[]")}
