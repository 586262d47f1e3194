"""The finished model as a folder: weights as safetensors, and the architecture as JSON to build it again."""

import hashlib
import json
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from torch import nn

from esper_runtime.contracts import (
    CheckpointError,
    InputError,
    Interface,
    InterfaceKind,
    MorphogeneticRun,
    Source,
    canonical_json,
)
from esper_runtime.kasmina import GraftedModel, Growable, Place, Tap
from esper_runtime.tolaria.checkpoint import from_bytes, to_bytes
from esper_runtime.tolaria.disk import replace_file
from esper_runtime.tolaria.hosts import make_host
from esper_runtime.tolaria.sources import resolve
from esper_runtime.tolaria.tasks import Task, TaskShape, load_task
from esper_runtime.tolaria.training_state import load_tensors, tensors_of

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
VERSION = 1


def digest_of(blob: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(blob).hexdigest()


def check_output(uri: str) -> None:
    """Raise `InputError` where a URI is of no kind that fsspec can open here; nothing is written."""
    try:
        fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise InputError(f"spec.output.uri {uri!r} cannot be opened: {error}") from error


def save_model(model: Growable, run: MorphogeneticRun, task: Task, uri: str) -> str:
    """Write a model so that `load` builds it again, bit for bit.

    The weights carry the host's own parameter names behind ``host.``, the seeds' behind ``living.``. Each
    file is put in place at once, the architecture last; it holds the weights' digest.

    Args:
        model: the grown model.
        run: names the host.
        task: gives the shapes that the host was built for.
        uri: a folder, or any URI that fsspec opens.

    Returns:
        The SHA-256 of the weights.

    Raises:
        CheckpointError: it cannot be written.
    """
    weights = to_bytes(tensors_of(model))
    digest = digest_of(weights)
    shape = task.shape
    architecture = {
        "version": VERSION,
        "host": run.spec.host.model_dump(mode="json", by_alias=True),
        "task": run.spec.task.model_dump(mode="json", by_alias=True),
        "randomSeed": run.spec.training.random_seed,
        "shape": {
            "kind": shape.kind.value,
            "example": list(shape.example),
            "outputs": shape.outputs,
            "vocabulary": shape.vocabulary,
            "perPosition": shape.per_position,
        },
        "places": [_place_record(place) for place in model.surveyed.values()],
        "grafts": model.architecture(),
        "weights": {"file": WEIGHTS, "sha256": digest, "bytes": len(weights)},
    }
    architecture["seal"] = digest_of(canonical_json(architecture))
    blob = canonical_json(architecture)
    filesystem, root = fsspec.core.url_to_fs(uri)
    try:
        if isinstance(filesystem, LocalFileSystem):
            folder = Path(root)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / WEIGHTS, weights)
            replace_file(folder / ARCHITECTURE, blob)
        else:
            filesystem.makedirs(root, exist_ok=True)
            filesystem.pipe_file(f"{root}/{WEIGHTS}", weights)
            filesystem.pipe_file(f"{root}/{ARCHITECTURE}", blob)
    except OSError as error:
        raise CheckpointError(f"the model cannot be written to {uri}: {error}") from error
    return digest


def read_model(uri: str | Path) -> tuple[dict[str, Any], bytes]:
    """The architecture and the weights of a saved model, both checked against their digests.

    Raises:
        InputError: there is no model.
        CheckpointError: a file is damaged or was changed.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(str(uri))
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri}: cannot be opened: {error}") from error
    try:
        record = json.loads(filesystem.cat_file(f"{root}/{ARCHITECTURE}"))
        weights = filesystem.cat_file(f"{root}/{WEIGHTS}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{uri}: there is no model here; give the model/ folder of a complete run"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{uri}/{ARCHITECTURE} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{uri}/{ARCHITECTURE} holds a {type(record).__name__}; expected an object")
    if record.get("version") != VERSION:
        raise CheckpointError(f"{uri}: version {record.get('version')!r} is not known; expected {VERSION}")
    unsealed = {name: value for name, value in record.items() if name != "seal"}
    if digest_of(canonical_json(unsealed)) != record.get("seal"):
        raise CheckpointError(
            f"{uri}/{ARCHITECTURE} was changed after it was written: it does not match its seal"
        )
    if digest_of(weights) != record["weights"]["sha256"]:
        raise CheckpointError(f"{uri}/{WEIGHTS} does not match the digest in {ARCHITECTURE}")
    return record, weights


def load(uri: str | Path, host: nn.Module | None = None, directory: Path | None = None) -> GraftedModel:
    """Build a saved model again, in evaluation mode; calling it calls the grown host.

    Args:
        uri: the folder that a run left its model in.
        host: a freshly built host, where the run was given one instead of naming it in its manifest.
        directory: folder for entrypoints and relative paths of the manifest.

    Raises:
        InputError: there is no model, or its host cannot be built.
        CheckpointError: a file is damaged, or the weights do not belong to this host.
    """
    record, weights = read_model(uri)
    if host is None:
        host = _host(record, directory)
    model = GraftedModel(host, {place.id: place for place in map(_place_from, record["places"])})
    model.rebuild(record["grafts"])
    load_tensors(model, from_bytes(weights))
    return model.eval()


@dataclass(frozen=True)
class _SavedTask:
    """What a built-in host must know of the task that it was trained on."""

    name: str
    shape: TaskShape


def _host(record: dict[str, Any], directory: Path | None) -> nn.Module:
    source, seed = Source.model_validate(record["host"]), record["randomSeed"]
    if (
        source.entrypoint is not None
        and "task" in signature(resolve(source.entrypoint, directory)).parameters
    ):
        return make_host(
            source, load_task(Source.model_validate(record["task"]), seed, directory), seed, directory
        )
    saved = record["shape"]
    shape = TaskShape(
        kind=InterfaceKind(saved["kind"]),
        example=tuple(saved["example"]),
        outputs=saved["outputs"],
        vocabulary=saved["vocabulary"],
        per_position=saved["perPosition"],
    )
    return make_host(source, _SavedTask("saved", shape), seed, directory)


def _place_record(place: Place) -> dict[str, Any]:
    return {
        "id": place.id,
        "read": str(place.read),
        "write": str(place.write),
        "position": place.position,
        "interface": place.interface.model_dump(mode="json", by_alias=True),
        "needsClone": place.needs_clone,
    }


def _place_from(record: dict[str, Any]) -> Place:
    return Place(
        id=record["id"],
        read=Tap.parse(record["read"]),
        write=Tap.parse(record["write"]),
        position=record["position"],
        interface=Interface.model_validate(record["interface"]),
        needs_clone=record["needsClone"],
    )
