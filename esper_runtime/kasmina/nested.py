"""The activation in what a module takes or returns: a tensor, or the first one in a nested structure."""

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def first_tensor(data: Any) -> Tensor | None:
    """The first tensor, depth first, in tuples, lists, dicts and dataclasses; None where there is none."""
    if isinstance(data, Tensor):
        return data
    for _, item in _items(data):
        if (found := first_tensor(item)) is not None:
            return found
    return None


def with_first_tensor(data: Any, value: Tensor) -> Any:
    """``data`` with `first_tensor` replaced; every container on the way is a new one of the same type."""
    if isinstance(data, Tensor):
        return value
    for key, item in _items(data):
        if first_tensor(item) is not None:
            return _with(data, key, with_first_tensor(item, value))
    raise ValueError("there is no tensor to replace")


def _items(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, tuple | list):
        yield from enumerate(data)
    elif isinstance(data, dict):  # first, since Hugging Face's ModelOutput is a dict and a dataclass
        yield from data.items()
    elif is_dataclass(data) and not isinstance(data, type):
        for field in fields(data):
            yield field.name, getattr(data, field.name, None)


def _with(data: Any, key: Any, item: Any) -> Any:
    if isinstance(data, tuple | list):
        items = [*data[:key], item, *data[key + 1 :]]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    if isinstance(data, dict):
        changed = copy.copy(data)
        changed[key] = item
        return changed
    if all(field.init for field in fields(data)):
        return replace(data, **{key: item})
    changed = copy.copy(data)
    object.__setattr__(changed, key, item)
    return changed
