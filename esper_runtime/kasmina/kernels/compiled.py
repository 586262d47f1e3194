"""Compiled parts in this process: shared objects out of a verified archive, loaded by PyTorch's C++ runner.

The runner reads the shared object and a list of operators as JSON; it unpickles nothing. What it loads is
native code for the CPU, so only parts of an artifact that was verified may come here.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from esper_runtime.contracts import KernelError

CALL, FORWARD, BACKWARD = "call.json", "forward", "backward"
LIBRARY = "model.so"
_MOST_ELEMENTS = 2**31
"""Compiled code may count elements of a tensor with 32 bits."""


@dataclass(frozen=True)
class Call:
    """How compiled parts are called: ``call.json``.

    Attributes:
        tensors: names of the parameters and buffers, in the order in which they follow the inputs.
        shapes: of these tensors; native code does not look at them again.
        learned: names of those that the backward part yields gradients of, after that of the input.
        channel: axis of the input whose size is fixed.
        width: its size.
        least: least sizes of the other axes, batch first; smaller inputs take the eager path.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    learned: tuple[str, ...]
    channel: int
    width: int
    least: tuple[int, ...]

    def serves(self, shape: torch.Size) -> bool:
        """Whether the parts are made for an input of this shape."""
        if len(shape) != len(self.least) + 1 or shape[self.channel] != self.width:
            return False
        free = (*shape[: self.channel], *shape[self.channel + 1 :])
        return math.prod(free) * self.widest < _MOST_ELEMENTS and all(
            size >= least for size, least in zip(free, self.least, strict=True)
        )

    @cached_property
    def widest(self) -> int:
        """The largest number of channels between input and output."""
        return max([self.width, *(size for shape in self.shapes for size in shape)])

    def encoded(self) -> bytes:
        """As canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """From JSON.

        Raises:
            KernelError: it is not what `encoded` makes.
        """
        try:
            call = cls(**{name: _frozen(value) for name, value in json.loads(data).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise KernelError(f"{CALL} of a compiled kernel cannot be read: {error}") from None
        if call.encoded() != data or len(call.shapes) != len(call.tensors):
            raise KernelError(f"{CALL} of a compiled kernel is not in its one allowed form")
        return call


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class CompiledParts:
    """The forward part and, where there is one, the backward part, loaded.

    Copies of it are itself: what is loaded is shared.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Load what `esper_runtime.tezzeret` has put into an artifact.

        Args:
            files: of a verified artifact, by name.

        Raises:
            KernelError: a part is missing or cannot be loaded.
        """
        if CALL not in files:
            raise KernelError("the artifact has no compiled parts")
        self.call = Call.decoded(files[CALL])
        self._forward = self._runner(files, FORWARD)
        self._backward = self._runner(files, BACKWARD) if self.call.learned else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def trains(self) -> bool:
        """Whether there is a backward part."""
        return self._backward is not None

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The output for ``x``; all tensors contiguous, on the CPU."""
        outputs: list[Tensor] = self._forward.run([x, *tensors])
        return outputs[0]

    def backward(self, x: Tensor, gradient: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of x and of the learned tensors, in the order of `Call.learned`."""
        if self._backward is None:
            raise KernelError("this kernel is compiled for evaluation only")
        gradients: list[Tensor] = self._backward.run([x, gradient, *tensors])
        return gradients

    def _runner(self, files: Mapping[str, bytes], part: str) -> Any:
        start = f"{part}/"
        inside = {name.removeprefix(start): data for name, data in files.items() if name.startswith(start)}
        if LIBRARY not in inside:
            raise KernelError(f"the artifact has no compiled {part} part")
        # The folder is private to this user, and not needed once the process has the library mapped.
        with tempfile.TemporaryDirectory(prefix="esper-kernel-") as folder:
            for name, data in inside.items():
                if Path(name).name != name:
                    raise KernelError(f"a compiled part must not lie in a folder of its own: {part}/{name}")
                place = Path(folder, name)
                place.touch(0o600)
                place.write_bytes(data)
            try:
                return torch._C._aoti.AOTIModelContainerRunnerCpu(str(Path(folder, LIBRARY)), 1)
            except RuntimeError as error:
                first = str(error).strip().partition("\n")[0]
                raise KernelError(f"the compiled {part} part cannot be loaded: {first}") from None
