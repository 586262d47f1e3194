"""What goes into and out of the sandbox: a JSON header and tensors as safetensors."""

import json
import struct
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_LENGTH: Final = struct.Struct("=Q")


def pack(header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> bytes:
    """One message. Tensors are copied; they must be on the CPU."""
    text = json.dumps(header).encode()
    held = {name: tensor.detach().contiguous().clone() for name, tensor in (tensors or {}).items()}
    return _LENGTH.pack(len(text)) + text + (save(held) if held else b"")


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a message.

    Raises:
        ValueError: it is not what `pack` makes.
    """
    try:
        (size,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + size
        if end > len(data):
            raise ValueError("cut off")
        header = json.loads(data[_LENGTH.size : end])
        if not isinstance(header, dict):
            raise ValueError("no header")
        return header, load(data[end:]) if len(data) > end else {}
    except (struct.error, SafetensorError, RecursionError) as error:
        raise ValueError(str(error)) from error
