"""Checkpoints: safetensors and JSON under one name, whole or not there, in a folder or at any fsspec URI.

step-000000200-0/               step 200, written by incarnation 0
    model.safetensors           parameters and buffers
    optimizer.safetensors       optimizer state, one tensor for each parameter and quantity
    random.safetensors          states of the random generators
    state.json                  everything else
    manifest.json               SHA-256 and size of each file; written last: without it nothing counts
journal-NAME.jsonl              not in a folder of this machine: the journal as far as they need it
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
import safetensors
import safetensors.torch
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError
from torch import Tensor

from esper_runtime.contracts import CheckpointError, ContractModel, canonical_json
from esper_runtime.nissa import KeptJournal
from esper_runtime.planning import SavedCheckpoint, to_delete
from esper_runtime.tolaria.disk import sync_folder, write_synced

MANIFEST = "manifest.json"
STATE = "state.json"
NAME = re.compile(r"^step-(\d{9})-(\d+)$")
TEMPORARY = ".writing-"


class FileRecord(ContractModel):
    """Size in bytes and SHA-256 of one file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CheckpointManifest(ContractModel):
    """What makes a checkpoint count.

    ``sequence`` is that of the last journal entry before it; ``seal`` is the SHA-256 of the canonical JSON of
    all the other fields.
    """

    schema_version: Literal[1] = 1
    step: int = Field(ge=0)
    incarnation: int = Field(ge=0)
    sequence: int = Field(ge=-1)
    files: dict[str, FileRecord] = Field(min_length=1)
    seal: str = ""

    def computed_seal(self) -> str:
        """The seal that belongs to the other fields."""
        data = self.model_dump(mode="json", by_alias=True, exclude={"seal"})
        return hashlib.sha256(canonical_json(data)).hexdigest()


@dataclass(frozen=True)
class SavedState:
    """All that a training needs to go on, as tensors by name and JSON."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    facts: dict[str, Any]

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by the stem of the file they go to."""
        return {"model": self.model, "optimizer": self.optimizer, "random": self.random}


def checkpoint_name(step: int, incarnation: int) -> str:
    """Name of the checkpoint that ``incarnation`` writes at ``step``."""
    return f"step-{step:09d}-{incarnation}"


class CheckpointStore:
    """Checkpoints of one run.

    Args:
        uri: a local path, or any URI that fsspec opens; made when the first checkpoint is written.
        keep: how many of the newest complete ones stay.
        journal: is copied before each of them; None for no copy.
    """

    def __init__(self, uri: str, keep: int, journal: KeptJournal | None = None) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise CheckpointError(f"checkpoint.uri {uri!r} cannot be opened: {error}") from error
        self.uri = uri
        self.keep = keep
        self._journal = journal
        self._local = isinstance(self._fs, LocalFileSystem)

    def write(self, state: SavedState, step: int, incarnation: int, sequence: int) -> tuple[str, str]:
        """Write a checkpoint and delete those that are no longer kept.

        Locally it is written beside its place, synced and renamed; elsewhere the journal that it follows is
        copied first, and its manifest is written last.

        Returns:
            Its name, and its digest: the SHA-256 of its manifest.

        Raises:
            CheckpointError: it could not be written; the earlier ones are as they were.
        """
        name = checkpoint_name(step, incarnation)
        blobs = {f"{stem}.safetensors": to_bytes(tensors) for stem, tensors in state.parts().items()}
        blobs[STATE] = canonical_json({"schemaVersion": 1, **state.facts})
        records = {
            file: FileRecord(bytes=len(blob), sha256=hashlib.sha256(blob).hexdigest())
            for file, blob in blobs.items()
        }
        manifest = CheckpointManifest(step=step, incarnation=incarnation, sequence=sequence, files=records)
        sealed = manifest.model_copy(update={"seal": manifest.computed_seal()})
        blobs[MANIFEST] = canonical_json(sealed.model_dump(mode="json", by_alias=True))
        self.keep_journal()
        try:
            if self._local:
                self._write_folder(name, blobs)
            else:
                self._write_objects(name, blobs)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {name} cannot be written to {self.uri}: {error}; the earlier ones are as they "
                f"were, and the run goes on from the newest when it is started again"
            ) from error
        self.delete(to_delete(self.saved(), self.keep))
        return name, hashlib.sha256(blobs[MANIFEST]).hexdigest()

    def _write_folder(self, name: str, blobs: Mapping[str, bytes]) -> None:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary = root / f"{TEMPORARY}{name}"
        temporary.mkdir()
        try:
            for file, blob in blobs.items():
                write_synced(temporary / file, blob)
            sync_folder(temporary)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if (root / name).exists():
            shutil.rmtree(root / name)
        temporary.rename(root / name)
        sync_folder(root)

    def _write_objects(self, name: str, blobs: Mapping[str, bytes]) -> None:
        folder = f"{self._root}/{name}"
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)
        self._fs.makedirs(folder, exist_ok=True)
        for file, blob in blobs.items():
            self._fs.pipe_file(f"{folder}/{file}", blob)

    def keep_journal(self) -> None:
        """Copy the journal to where the checkpoints are, unless that is on this machine.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._journal is not None:
            self._journal.keep()

    def saved(self) -> list[SavedCheckpoint]:
        """All checkpoints, oldest first; those that are incomplete say so. Contents are not read."""
        if not self._fs.exists(self._root):
            return []
        self._fs.invalidate_cache()
        names = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False)]
        found = [self._look_at(match) for name in names if (match := NAME.match(name))]
        return sorted(found, key=lambda saved: (saved.incarnation, saved.step))

    def _look_at(self, match: re.Match[str]) -> SavedCheckpoint:
        name, step, incarnation = match[0], int(match[1]), int(match[2])
        try:
            manifest, _ = self._manifest(name)
            for file, record in manifest.files.items():
                size = self._fs.size(f"{self._root}/{name}/{file}")
                if size != record.bytes:
                    raise CheckpointError(f"{file} has {size} bytes, its manifest says {record.bytes}")
        except FileNotFoundError as error:
            missing = Path(str(error.filename or error.args[-1])).name
            problem = f"incomplete: {missing} is missing"
            return SavedCheckpoint(name, step, incarnation, -1, problem)
        except CheckpointError as error:
            return SavedCheckpoint(name, step, incarnation, -1, f"damaged: {error}")
        return SavedCheckpoint(name, step, incarnation, manifest.sequence)

    def _manifest(self, name: str) -> tuple[CheckpointManifest, str]:
        blob = bytes(self._fs.cat_file(f"{self._root}/{name}/{MANIFEST}"))
        try:
            manifest = CheckpointManifest.model_validate_json(blob)
        except ValidationError as error:
            raise CheckpointError(f"{MANIFEST} cannot be read: {error.errors()[0]['msg']}") from error
        if manifest.seal != manifest.computed_seal():
            raise CheckpointError(f"{MANIFEST} does not match its seal")
        if name != checkpoint_name(manifest.step, manifest.incarnation):
            raise CheckpointError(f"{MANIFEST} belongs to step {manifest.step}")
        return manifest, hashlib.sha256(blob).hexdigest()

    def load(self, name: str) -> SavedState:
        """Read a checkpoint, every byte checked against its digests.

        Raises:
            CheckpointError: it is missing, incomplete or damaged; the text names the file.
        """
        where = f"checkpoint {name} in {self.uri}"
        try:
            manifest, _ = self._manifest(name)
            blobs = {file: bytes(self._fs.cat_file(f"{self._root}/{name}/{file}")) for file in manifest.files}
        except FileNotFoundError as error:
            raise CheckpointError(f"{where} is incomplete: {error}") from error
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"{where} is damaged: {error}") from error
        for file, record in manifest.files.items():
            if hashlib.sha256(blobs[file]).hexdigest() != record.sha256:
                raise CheckpointError(f"{where} is damaged: {file} does not match its SHA-256")
        try:
            facts = json.loads(blobs[STATE])
            model, optimizer, random = (
                from_bytes(blobs[f"{stem}.safetensors"]) for stem in ("model", "optimizer", "random")
            )
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{where} cannot be read: {error!r}") from error
        if facts.pop("schemaVersion", None) != 1:
            raise CheckpointError(f"{where} has another schema version; this Esper reads version 1")
        return SavedState(model, optimizer, random, facts)

    def digest(self, name: str) -> str:
        """SHA-256 of a checkpoint's manifest."""
        try:
            return self._manifest(name)[1]
        except (FileNotFoundError, CheckpointError) as error:
            raise CheckpointError(f"checkpoint {name} in {self.uri}: {error}") from error

    def delete(self, names: Iterable[str]) -> None:
        """Delete checkpoints, their manifest first, so that one half deleted does not count."""
        for name in names:
            folder = f"{self._root}/{name}"
            if self._fs.exists(f"{folder}/{MANIFEST}"):
                self._fs.rm_file(f"{folder}/{MANIFEST}")
            self._fs.rm(folder, recursive=True)


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in safetensors format; those that share memory are written once for each name."""
    return safetensors.torch.save(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    )


def from_bytes(blob: bytes) -> dict[str, Tensor]:
    """Inverse of `to_bytes`, on the CPU."""
    return safetensors.torch.load(blob)
