"""From a file to a `MorphogeneticRun`, or to one error that lists all that is wrong with it."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.document import read_document
from esper_runtime.contracts.errors import ManifestError
from esper_runtime.contracts.manifest import KUBERNETES_ONLY, MorphogeneticRun
from esper_runtime.contracts.reference import allowed, entry_model, file_name, leaves, submodel

_KUBERNETES_METADATA = ("namespace", "labels", "annotations")


def load_run(path: Path | str) -> MorphogeneticRun:
    """The run that a manifest file describes.

    Raises:
        ManifestError: listing every wrong field with its path, what was given and what is allowed.
    """
    return parse_run(read_document(path, ManifestError), str(path))


def parse_run(data: object, source: str) -> MorphogeneticRun:
    """The run that parsed YAML or JSON describes; ``source`` names it in messages.

    Types are strict, as on Kubernetes: `"100"` is not a number and `true` is not 1.

    Raises:
        ManifestError: listing every wrong field with its path, what was given and what is allowed.
    """
    if not isinstance(data, dict):
        raise ManifestError(f"{source}: given {_show(data)}; a mapping of fields is expected")
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ManifestError(f"{source}: holds a value that JSON cannot carry: {problem}") from None
    try:
        return MorphogeneticRun.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = _messages(error.errors(include_url=False), data)
    count = "1 field is wrong" if len(lines) == 1 else f"{len(lines)} fields are wrong"
    raise ManifestError("\n  ".join([f"{source}: {count}", *lines]))


def notices(run: MorphogeneticRun) -> list[str]:
    """One line for every given field that has a meaning only on Kubernetes."""
    found = [
        f"metadata.{name}"
        for name in _KUBERNETES_METADATA
        if name in run.metadata.model_fields_set and getattr(run.metadata, name)
    ]
    fields = type(run.spec).model_fields
    found += [
        f"spec.{file_name(name, fields[name])}"
        for name in KUBERNETES_ONLY
        if name in run.spec.model_fields_set
    ]
    return [f"{path}: has a meaning only on Kubernetes; it has no effect here" for path in found]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    plain = {_plain(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _messages(errors: Sequence[ErrorDetails], data: dict[str, Any]) -> list[str]:
    """One line for each wrong field.

    The several errors of a union's members become one, and so do those of a list and its entries.
    """
    lines: dict[str, str] = {}
    for error in errors:
        path, line = _message(error, data)
        lines.setdefault(path, line)
    return [line for path, line in lines.items() if not any(other.startswith(path + "[") for other in lines)]


def _message(error: ErrorDetails, data: dict[str, Any]) -> tuple[str, str]:
    model: type[ContractModel] | None = MorphogeneticRun
    entry: type[ContractModel] | None = None
    path = ""
    words = ""
    known: list[str] = []
    value: Any = data
    for segment in error["loc"]:
        if model is not None:
            names = {file_name(name, field): field for name, field in model.model_fields.items()}
            known = list(names)
            path = f"{path}.{segment}" if path else str(segment)
            field = names.get(str(segment))
            model = submodel(field.annotation) if field is not None else None
            entry = entry_model(field.annotation) if field is not None else None
            words = (allowed(field) if model is None else "a mapping of fields") if field is not None else ""
        elif isinstance(segment, int) and isinstance(value, list) and segment < len(value):
            path = f"{path}[{segment}]"
            model, entry = entry, None
            words = words if model is None else "a mapping of fields"
        elif isinstance(value, dict) and segment in value:
            path = f"{path}.{segment}"
        else:
            break
        value = _step(value, segment)
    kind = error["type"]
    if kind == "extra_forbidden":
        return path, f"{path}: unknown field, given {_show(value)}; {_suggest(path, known)}"
    if kind == "missing" and value is None:
        return path, f"{path}: missing; {_needed(path, words)}"
    if kind == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return path, f"{path}: {reason}; given {_show(value)}"
    return path, f"{path}: given {_show(value)}; allowed: {words or error['msg']}"


def _step(value: Any, segment: int | str) -> Any:
    try:
        return value[segment]
    except (KeyError, IndexError, TypeError):
        return None


def _needed(path: str, words: str) -> str:
    inner = [leaf.path for leaf in leaves(MorphogeneticRun, "") if leaf.path.startswith(path + ".")]
    if inner:
        names = dict.fromkeys(name.removeprefix(path + ".").split(".")[0] for name in inner)
        return f"needed: a mapping with the fields {', '.join(names)}"
    return f"needed: {words}"


def _suggest(path: str, known: list[str]) -> str:
    """Where the unknown field at ``path`` was probably meant to go."""
    name = path.rsplit(".", 1)[-1]
    near = nearest(name, known)
    if near is not None:
        return f"nearest known name: '{near}'"
    places: dict[str, str] = {}
    for leaf in sorted(leaves(MorphogeneticRun), key=lambda leaf: leaf.path.count(".")):
        places.setdefault(leaf.path.rsplit(".", 1)[-1], leaf.path)
    elsewhere = nearest(name, places)
    hint = f"nearest known name: '{places[elsewhere]}'; " if elsewhere is not None else ""
    return f"{hint}known here: {', '.join(known)}"


def _show(value: Any) -> str:
    """A value as given, short enough for a message."""
    text = json.dumps(value, ensure_ascii=False, default=lambda item: f"<{type(item).__name__}>")
    if isinstance(value, dict) and len(text) > 80:
        return f"a mapping with the fields {', '.join(str(key) for key in list(value)[:6])}"
    return text if len(text) <= 80 else text[:77] + "..."
