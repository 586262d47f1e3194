"""`esper export`: a finished model in forms that other programs read, compared before they are written."""

import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map

from esper_runtime.contracts import InputError, OutputFormat, RunFailedError, Source, Started
from esper_runtime.kasmina import GraftedModel, absorb_all, detached_call
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.onnx_program import ONNX, OnnxRunner, onnx_bytes
from esper_runtime.local.plain import MODULE, PLAIN_WEIGHTS, plain_files
from esper_runtime.nissa import read_journal
from esper_runtime.tolaria import ARCHITECTURE, WEIGHTS, load, load_task

PROGRAM = "model.pt2"
FILES: dict[OutputFormat, tuple[str, ...]] = {
    OutputFormat.SAFETENSORS: (WEIGHTS, ARCHITECTURE),
    OutputFormat.TORCH: (MODULE, PLAIN_WEIGHTS),
    OutputFormat.TORCH_EXPORT: (PROGRAM,),
    OutputFormat.ONNX: (ONNX,),
}
"""The files of each format; they can lie in one folder."""
TRACED_EXAMPLES = 2
COMPARED_EXAMPLES = 16
TOLERANCE = 1e-5

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """What was written: the files, and the largest difference of an output, relative to the largest output
    (at least 1). None where the weights themselves were copied."""

    files: tuple[str, ...]
    difference: float | None
    not_absorbed: dict[str, str] = field(default_factory=dict)
    """Seeds that the host's layers could not take up, with the reason."""


def export_run(folder: RunFolder, kind: OutputFormat, uri: str, absorb: bool = False) -> Exported:
    """Write the model of a complete run.

    Args:
        folder: of the run.
        kind: ``safetensors`` (what `esper_runtime.load` reads), ``torch`` (a Python module and weights that
            need no Esper), ``torch-export`` (a program for `torch.export.load`) or ``onnx``.
        uri: folder to write to, or any URI that fsspec opens.
        absorb: first let the host's layers take up the seeds that they can; what is compared is the model
            before. Not with ``safetensors``.

    Raises:
        InputError: the model cannot be built here, or not be exported, with the reason.
        RunFailedError: what was made yields other values than the model; nothing was written.
    """
    started = _started(folder)
    spec = started.manifest["spec"]
    source = _uri(folder, started)
    model = load(source, directory=folder.origin())
    if kind is OutputFormat.SAFETENSORS:
        if absorb:
            raise InputError("safetensors are the weights as they are; give another format with --absorb")
        return Exported(_write(uri, {name: _read(f"{source}/{name}") for name in FILES[kind]}), None)
    task = load_task(Source.model_validate(spec["task"]), spec["training"]["randomSeed"], folder.origin())

    def inputs(examples: int) -> Call:
        return task.inputs({name: tensor[:examples] for name, tensor in task.validation.items()})

    before = load(source, directory=folder.origin()) if absorb else model
    stays = absorb_all(model, *inputs(TRACED_EXAMPLES)).refused if absorb else {}
    title = f"The model of run {started.run}."
    blobs, difference = export_model(model.eval(), kind, inputs, title, like=before)
    return Exported(_write(uri, blobs), difference, stays)


def has_export(uri: str, kind: OutputFormat) -> bool:
    """True where `export_run` has written that format before."""
    filesystem, root = fsspec.core.url_to_fs(uri)
    return all(filesystem.exists(f"{root}/{name}") for name in FILES[kind])


def export_model(
    model: GraftedModel,
    kind: OutputFormat,
    inputs: Callable[[int], Call],
    title: str = "A network.",
    like: GraftedModel | None = None,
) -> tuple[dict[str, bytes], float]:
    """A model in one of the traced forms, with a dynamic batch axis.

    Args:
        model: in evaluation mode.
        kind: any format but ``safetensors``.
        inputs: positional and keyword inputs for a number of examples.
        title: first line of the plain module.
        like: what the outputs are compared with; ``model`` by default.

    Returns:
        The contents of the files by name, and the largest relative difference of an output, over two batch
        sizes.

    Raises:
        InputError: the host does things that cannot be followed or written.
        RunFailedError: the outputs differ by more than 1e-5.
    """
    args, kwargs = inputs(TRACED_EXAMPLES)
    output = _eager(model, args, kwargs)
    program = _trace(model, args, kwargs, output)
    run: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    if kind is OutputFormat.TORCH:
        blobs = plain_files(program, model.host, args, kwargs, output, title)
        run = _called(_import_plain(blobs))
    elif kind is OutputFormat.ONNX:
        blobs = {ONNX: onnx_bytes(program)}
        run = OnnxRunner(blobs[ONNX], program)
    else:
        blob = io.BytesIO()
        torch.export.save(program, blob)
        blobs = {PROGRAM: blob.getvalue()}
        run = _called(program.module())
    worst = 0.0
    for examples in (TRACED_EXAMPLES, COMPARED_EXAMPLES):
        args, kwargs = inputs(examples)
        with torch.no_grad():
            gap = _gap(run(args, kwargs), _eager(like or model, args, kwargs))
        worst = max(worst, gap)
        if not gap <= TOLERANCE:
            raise RunFailedError(
                f"the exported model's outputs differ by {gap:.3g} (relative), more than {TOLERANCE:g}; "
                f"it was not written"
            )
    return blobs, worst


def _eager(model: GraftedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's output; its buffers stay as they are."""
    with torch.no_grad():
        return detached_call(model, args, kwargs)


def _called(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    return lambda args, kwargs: module(*args, **kwargs)


def _import_plain(blobs: dict[str, bytes]) -> nn.Module:
    """Load what was written, as anyone would."""
    with tempfile.TemporaryDirectory() as folder:
        for name, blob in blobs.items():
            (Path(folder) / name).write_bytes(blob)
        spec = importlib.util.spec_from_file_location("exported_model", Path(folder) / MODULE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network: nn.Module = module.load()
    return network


def _trace(
    model: GraftedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> torch.export.ExportedProgram:
    if is_dataclass(output) and not isinstance(output, type) and type(output) not in SUPPORTED_NODES:
        torch.export.register_dataclass(type(output))
    names = _positional(model.host, len(args))
    axes = tree_map(_axes, {**dict(zip(names, args, strict=True)), **kwargs})
    try:
        with _named_inputs(model, names, tuple(kwargs)):
            return torch.export.export(model, args, kwargs, dynamic_shapes=axes, strict=False)
    except Exception as error:  # torch.export raises what the host's own code raises under tracing
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"torch.export cannot follow this host: {lines[0]}; use --format safetensors"
        ) from error


def _positional(host: nn.Module, count: int) -> list[str]:
    """The host's own names of its first inputs; numbered ones where it takes any number."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    own = [name for name, each in signature(host.forward).parameters.items() if each.kind in kinds]
    return own[:count] if len(own) >= count else [f"input_{number}" for number in range(count)]


@contextmanager
def _named_inputs(model: nn.Module, positional: list[str], keywords: tuple[str, ...]) -> Iterator[None]:
    """Inside, ``forward`` has a parameter for each input: with ``**kwargs``, `torch.export.export` takes no
    dynamic axes of keyword inputs (it counts them twice, by their own names and as ``kwargs``)."""
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in positional]
    parameters += [Parameter(name, Parameter.KEYWORD_ONLY) for name in keywords]
    named: Any = forward
    named.__signature__ = Signature(parameters)
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _axes(value: Any) -> Any:
    """The batch axis is free, all others are fixed."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == TRACED_EXAMPLES:
        return {0: torch.export.Dim.DYNAMIC}
    return None


def _gap(one: Any, other: Any) -> float:
    """Largest difference between the tensors of two outputs, over the largest value (at least 1)."""
    ones = [leaf for leaf in tree_leaves(one) if isinstance(leaf, Tensor)]
    others = [leaf for leaf in tree_leaves(other) if isinstance(leaf, Tensor)]
    if len(ones) != len(others) or any(a.shape != b.shape for a, b in zip(ones, others, strict=True)):
        raise RunFailedError("the exported model gives outputs of another structure; it was not written")
    gaps = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1.0))
        for a, b in zip(ones, others, strict=True)
        if a.numel()
    ]
    return max(gaps, default=0.0)


def _started(folder: RunFolder) -> Started:
    entries = read_journal(folder.journal)
    return [entry.event for entry in entries if isinstance(entry.event, Started)][-1]


def _uri(folder: RunFolder, started: Started) -> str:
    return started.manifest["spec"]["output"]["uri"] or str(folder.model)


def _read(uri: str) -> bytes:
    with fsspec.open(uri, "rb") as file:
        return bytes(file.read())


def _write(uri: str, blobs: dict[str, bytes]) -> tuple[str, ...]:
    """Write files, each in place at once."""
    filesystem, root = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(root, exist_ok=True)
    for name, blob in blobs.items():
        filesystem.pipe_file(f"{root}/.{name}", blob)
        filesystem.mv(f"{root}/.{name}", f"{root}/{name}")
    return tuple(f"{uri}/{name}" for name in blobs)
