"""What the API server does with a custom resource, by its definition: defaults, schema, CEL rules.

`jsonschema` checks the schema (OpenAPI v3 bounds are those of JSON schema draft 4), `cel` the rules; unknown
fields are refused as `kubectl apply` has them refused.
"""

import copy
from collections.abc import Iterator
from typing import Any

import cel
import jsonschema

Schema = dict[str, Any]


def admit(definition: Schema, given: dict[str, Any], before: dict[str, Any] | None = None) -> list[str]:
    """Why a resource is refused: ``path: message`` for each reason; empty when it is admitted.

    Args:
        definition: the custom resource definition.
        given: the resource.
        before: the resource that it replaces, for rules about changes.
    """
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    given = with_defaults(schema, copy.deepcopy(given))
    old = None if before is None else with_defaults(schema, copy.deepcopy(before))
    unknown = [f"{path}: unknown field" for path in _unknown(schema, given, "")]
    validator = jsonschema.Draft4Validator(_for_jsonschema(schema))
    wrong = [
        ".".join(str(part) for part in error.absolute_path) + f": {error.message}"
        for error in validator.iter_errors(given)
    ]
    return unknown + wrong or list(_broken_rules(schema, given, old, ""))


def with_defaults(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults filled in, as the API server does before it validates."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                value[name] = with_defaults(inner, value[name])
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    return value


def wrong_defaults(schema: Schema, path: str = "") -> Iterator[str]:
    """Defaults for which the API server refuses the definition: it tries each one as it stands there."""
    if "default" in schema:
        yield from _broken_rules(schema, schema["default"], None, path)
    for name, inner in schema.get("properties", {}).items():
        yield from wrong_defaults(inner, f"{path}.{name}")
    if "items" in schema:
        yield from wrong_defaults(schema["items"], f"{path}[]")


def _unknown(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from _unknown(schema["properties"][name], inner, f"{path}.{name}".lstrip("."))
            else:
                yield f"{path}.{name}".lstrip(".")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _unknown(schema["items"], item, f"{path}[{index}]")


def _for_jsonschema(schema: Any) -> Any:
    """Without what JSON schema does not know; an int-or-string stays the union that it says."""
    if isinstance(schema, dict):
        return {key: _for_jsonschema(value) for key, value in schema.items() if not key.startswith("x-kube")}
    return [_for_jsonschema(item) for item in schema] if isinstance(schema, list) else schema


def _broken_rules(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    """Rules that do not hold. Those about changes count only where there is an old value to compare with."""
    for rule in schema.get("x-kubernetes-validations", ()):
        names = {"self": value}
        if "oldSelf" in rule["rule"]:
            if old is None:
                continue
            names["oldSelf"] = old
        if cel.evaluate(rule["rule"], names) is not True:
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        values = schema.get("additionalProperties")
        for name, inner in value.items():
            below = schema.get("properties", {}).get(name) or (values if isinstance(values, dict) else None)
            if below is not None:
                before = old.get(name) if isinstance(old, dict) else None
                yield from _broken_rules(below, inner, before, f"{path}.{name}".lstrip("."))
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            # Entries of a list without keys have no old value, as on the API server.
            yield from _broken_rules(schema["items"], item, None, f"{path}[{index}]")
