"""A traced model as ONNX, run once with onnxruntime and compared. Needs the extra ``onnx``."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from esper_runtime.contracts import InputError

ONNX = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    """Raise `InputError` with the command that helps where a package is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs {', '.join(missing)}, not installed here: pip install 'esper[onnx]', or "
            f"pip install {' '.join(missing)}"
        )


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The program as one ONNX file, weights included.

    Raises:
        InputError: a package is missing, or an operator of the model has no ONNX form.
    """
    check_onnx()
    try:
        # Fused attention lays its output out in memory so that its decomposition cannot be viewed.
        with sdpa_kernel(SDPBackend.MATH):
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
        assert converted is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ONNX
            converted.save(str(path), external_data=False)
            return path.read_bytes()
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise InputError(f"this model cannot be written as ONNX: {lines[0]}; use --format torch") from error


class OnnxRunner:
    """Runs an ONNX file with onnxruntime on the CPU.

    Args:
        blob: the file.
        program: that it was made from; tells which input is which.
    """

    def __init__(self, blob: bytes, program: ExportedProgram) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        self._names = [
            getattr(spec.arg, "name", "")
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT
        ]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Outputs as a flat list."""
        leaves = dict(zip(self._names, tree_leaves((args, kwargs)), strict=True))
        wanted = [given.name for given in self._session.get_inputs()]
        return [
            torch.as_tensor(value)
            for value in self._session.run(None, {name: leaves[name].numpy() for name in wanted})
        ]
