"""Compiled parts in this process: shared objects out of a verified archive, loaded by PyTorch's C++ runner.

The runner reads the shared object, a list of operators as JSON and CUDA binaries; it unpickles nothing. What
it loads is native code, so only parts of an artifact that was verified may come here.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from esper_runtime.contracts import KernelError

CALL, FORWARD, BACKWARD = "call.json", "forward", "backward"
LIBRARY = "model.so"


@dataclass(frozen=True)
class Call:
    """How compiled parts are called: ``call.json``.

    Attributes:
        tensors: names of the parameters and buffers, in the order in which they follow the inputs.
        learned: names of those that the backward part yields gradients of, after that of the input.
        least: least sizes of the free axes of the input, batch first; smaller inputs take the eager path.
    """

    tensors: tuple[str, ...]
    learned: tuple[str, ...]
    least: tuple[int, ...]

    def encoded(self) -> bytes:
        """As canonical JSON."""
        return json.dumps(self.__dict__, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """From JSON.

        Raises:
            KernelError: it is not what `encoded` makes.
        """
        try:
            fields = json.loads(data)
            call = cls(**{name: tuple(values) for name, values in fields.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise KernelError(f"{CALL} of a compiled kernel cannot be read: {error}") from None
        if call.encoded() != data:
            raise KernelError(f"{CALL} of a compiled kernel is not in its one allowed form")
        return call


class CompiledParts:
    """The forward part and, where there is one, the backward part, loaded for one device.

    Copies of it are itself: what is loaded is shared.
    """

    def __init__(self, files: Mapping[str, bytes], device: torch.device) -> None:
        """Load what `esper_runtime.tezzeret` has put into an artifact.

        Args:
            files: of a verified artifact, by name.
            device: to run on.

        Raises:
            KernelError: a part is missing or cannot be loaded.
        """
        if CALL not in files:
            raise KernelError("the artifact has no compiled parts")
        self.device = device
        self.call = Call.decoded(files[CALL])
        # CUDA binaries are read when they first run, so their folders stay as long as this object.
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._forward = self._runner(files, FORWARD)
        self._backward = self._runner(files, BACKWARD) if self.call.learned else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def trains(self) -> bool:
        """Whether there is a backward part."""
        return self._backward is not None

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The output for ``x``; all tensors contiguous, on the device."""
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
        folder = tempfile.TemporaryDirectory(prefix="esper-kernel-")  # private to this user
        try:
            for name, data in inside.items():
                if Path(name).name != name:
                    raise KernelError(f"a compiled part must not lie in a folder of its own: {part}/{name}")
                place = Path(folder.name, name)
                place.touch(0o600)
                place.write_bytes(data)
            library = str(Path(folder.name, LIBRARY))
            if self.device.type == "cuda":
                index = torch.cuda.current_device() if self.device.index is None else self.device.index
                self._folders.append(folder)
                return torch._C._aoti.AOTIModelContainerRunnerCuda(library, 1, f"cuda:{index}", folder.name)
            return torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)
        except RuntimeError as error:
            first = str(error).strip().partition("\n")[0]
            raise KernelError(f"the compiled {part} part cannot be loaded: {first}") from None
        finally:
            if folder not in self._folders:
                folder.cleanup()  # the process has it mapped
