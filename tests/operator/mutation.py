"""A line of a module changed while it runs, wherever its functions were imported to."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


@contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[None]:
    """Inside, the module's functions do what its source says with ``new`` in the place of ``old``.

    Args:
        module: its name.
        old: text that its source has once; as many lines as ``new``.
        new: what stands there meanwhile.
    """
    loaded = importlib.import_module(module)
    path = str(loaded.__file__)
    source = Path(path).read_text()
    assert source.count(old) == 1, f"{path} has {old!r} {source.count(old)} times"
    before, after = _codes(source, path), _codes(source.replace(old, new), path)
    changed = {name: code for name, code in after.items() if before.get(name) != code}
    assert changed, f"no function of {path} is changed by it"
    functions = {name: _function(loaded, name) for name in changed}
    kept = {name: function.__code__ for name, function in functions.items()}
    try:
        for name, function in functions.items():
            function.__code__ = changed[name]
        yield
    finally:
        for name, function in functions.items():
            function.__code__ = kept[name]


def _codes(source: str, path: str) -> dict[str, CodeType]:
    """The code of functions and methods, by qualified name."""
    found: dict[str, CodeType] = {}

    def look(code: CodeType, prefix: str) -> None:
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                name = prefix + inner.co_name
                if inner.co_flags & 0x02:  # a function has locals of its own, the body of a class has not
                    found[name] = inner
                else:
                    look(inner, name + ".")

    look(compile(source, path, "exec"), "")
    return found


def _function(module: Any, name: str) -> FunctionType:
    found = module
    for word in name.split("."):
        found = vars(found)[word]
    found = getattr(found, "__func__", getattr(found, "fget", found))
    assert isinstance(found, FunctionType), name
    return found
