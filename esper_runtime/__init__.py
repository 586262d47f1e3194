"""Esper: neural networks that grow their own architecture while they train.

`wrap` makes any module growable and `Grower` lets it grow in a training loop of one's own; `Trainer` trains a
manifest; `load` opens a finished model. They are imported when they are used: what needs no torch stays
importable without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_runtime.kasmina import wrap
    from esper_runtime.tolaria import Grower, Trainer, huggingface_callback, lightning_callback, load

__version__ = "0.1.0"
__all__ = [
    "Grower",
    "Trainer",
    "__version__",
    "huggingface_callback",
    "lightning_callback",
    "load",
    "wrap",
]

_HOMES = {
    "wrap": "kasmina",
    "Grower": "tolaria",
    "Trainer": "tolaria",
    "huggingface_callback": "tolaria",
    "lightning_callback": "tolaria",
    "load": "tolaria",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
