"""What each field of a contract model may hold, in words: for error messages and for the documentation."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from esper_runtime.contracts.base import ContractModel, Says
from esper_runtime.contracts.manifest import MorphogeneticRun


@dataclass(frozen=True)
class FieldReference:
    """One leaf field: its dotted path as in the file, what is allowed, its default in words."""

    path: str
    allowed: str
    default: str
    description: str


def submodel(annotation: Any) -> type[ContractModel] | None:
    """The contract model that a field holds, or None when it holds something else."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, ContractModel):
            return option
    return None


def entry_model(annotation: Any) -> type[ContractModel] | None:
    """The contract model that the entries of a list field are, or None."""
    for option in _options(annotation):
        members = get_args(option)
        if get_origin(option) is tuple and len(members) == 2 and members[1] is Ellipsis:
            return submodel(members[0])
    return None


def file_name(name: str, field: FieldInfo) -> str:
    """Name of a field as it is written in a file."""
    return field.alias or name


def allowed(field: FieldInfo) -> str:
    """What a field may hold, e.g. ``a whole number from 1 to 1000``."""
    return _describe(field.annotation, field.metadata)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[FieldReference]:
    """Every leaf field below ``model``, in the order of the file; ``[]`` stands for an entry of a list."""
    for name, field in model.model_fields.items():
        path = prefix + file_name(name, field)
        inner = submodel(field.annotation)
        if inner is not None:
            yield from leaves(inner, path + ".")
        else:
            yield FieldReference(path, allowed(field), _default(field), field.description or "")
            entry = entry_model(field.annotation)
            if entry is not None:
                yield from leaves(entry, path + "[].")


def _options(annotation: Any) -> list[Any]:
    """Members of a union without None; otherwise the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for option in get_args(annotation) if option is not type(None)]
    return [annotation]


def _describe(annotation: Any, metadata: Sequence[Any]) -> str:
    for item in metadata:
        if isinstance(item, Says):
            return item.text
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        flat = [part for item in more for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _describe(base, [*flat, *metadata])
    options = _options(annotation)
    if len(options) > 1:
        return ", or ".join(_describe(option, metadata) for option in options)
    return _describe_one(options[0], metadata)


def _describe_one(annotation: Any, metadata: Sequence[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _describe(annotation, metadata)
    if origin is Literal:
        return _one_of([str(value) for value in get_args(annotation)])
    if origin is tuple:
        return _describe_list(get_args(annotation), metadata)
    if origin is dict:
        return "a mapping of text to text" if get_args(annotation)[1] is str else "a mapping"
    if not isinstance(annotation, type):
        return "any value"
    if issubclass(annotation, Enum):
        return _one_of([str(member.value) for member in annotation])
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if annotation in (int, float):
        return names[annotation] + _bounds(metadata)
    if annotation is str:
        return "text" + _length(metadata, "character")
    return names.get(annotation, "a mapping")


def _describe_list(members: tuple[Any, ...], metadata: Sequence[Any]) -> str:
    if len(members) == 2 and members[1] is Ellipsis:
        return f"a list{_length(metadata, 'entry')}, each {_describe(members[0], ())}"
    return f"a list of {len(members)}, each {_describe(members[0], ())}"


def _one_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else "one of " + ", ".join(values)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(metadata: Sequence[Any]) -> str:
    low = high = ""
    for item in metadata:
        if isinstance(item, annotated_types.Ge):
            low = f"of at least {_number(item.ge)}"
        elif isinstance(item, annotated_types.Gt):
            low = f"above {_number(item.gt)}"
        elif isinstance(item, annotated_types.Le):
            high = f"at most {_number(item.le)}"
        elif isinstance(item, annotated_types.Lt):
            high = f"below {_number(item.lt)}"
    if low.startswith("of at least") and high.startswith("at most"):
        bottom, top = low.removeprefix("of at least "), high.removeprefix("at most ")
        return f", only {bottom}" if bottom == top else f" from {bottom} to {top}"
    text = " and ".join(part for part in (low, high) if part)
    return f" {text}" if text else ""


def _length(metadata: Sequence[Any], unit: str) -> str:
    low: int | None = None
    high: int | None = None
    for item in metadata:
        low = getattr(item, "min_length", None) or low
        high = getattr(item, "max_length", None) or high
    plural = {"character": "characters", "entry": "entries"}[unit]
    if low and high:
        return f" of {low} to {high} {plural}"
    if high:
        return f" of at most {high} {plural}"
    return f" of at least {low} {plural if low > 1 else unit}" if low else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined or value == () or value == {}:
        return "empty"
    if value is None:
        return "absent"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(str(getattr(item, "value", item)) for item in value) + "]"
    return _number(value)


def manifest_reference() -> str:
    """The page `docs/manifest.md`: every field of a run manifest."""
    lines = [
        "# The run manifest",
        "",
        "One YAML file describes a run: the `MorphogeneticRun` resource, the same on one machine",
        "(`esper run FILE`) and on Kubernetes. Unknown fields are refused. This page is generated from the",
        "contract by `make docs`. The files in `examples/` are complete manifests to start from.",
    ]
    section = ""
    for leaf in leaves(MorphogeneticRun):
        head = _section(leaf.path)
        if head != section:
            section = head
            lines += ["", f"## {section}", "", "| field | allowed | default | meaning |", "|---|---|---|---|"]
        name = leaf.path if section == "top level" else leaf.path.removeprefix(section + ".")
        cells = (f"`{name}`", leaf.allowed, leaf.default, leaf.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _section(path: str) -> str:
    parts = path.split(".")
    if len(parts) == 1:
        return "top level"
    return ".".join(parts[:2]) if len(parts) > 2 else parts[0]
