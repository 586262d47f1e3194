"""A run's model, or its whole folder, out of a cluster: copied, checked, and only then put in place."""

import contextlib
import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from esper_runtime.contracts import CheckpointError, ClusterError, InputError, canonical_json
from esper_runtime.local.cluster.kubectl import Kubectl, last_words
from esper_runtime.local.cluster.reader import Reader, reader_of
from esper_runtime.local.pod import DATA

ARCHITECTURE = "architecture.json"
PENDING_SECONDS = 180.0
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Pulled:
    """What was copied.

    Attributes:
        path: of the model's folder, or the run's.
        files: how many there are.
        size: bytes of them.
        digest: SHA-256 of the weights; None where no model was copied.
        matches_status: whether that is the digest in the resource's status; None where it holds none.
    """

    path: Path
    files: int
    size: int
    digest: str | None
    matches_status: bool | None


def pull(
    kubectl: Kubectl,
    run: str,
    into: Path,
    *,
    everything: bool = False,
    image: str | None = None,
    seconds: float = PENDING_SECONDS,
    say: Callable[[str], None] = print,
) -> Pulled:
    """Copy the model of a run on a cluster.

    Args:
        kubectl: reaches the cluster.
        run: name of the run.
        into: folder to be made; it must not exist.
        everything: the run's whole folder (journal, checkpoints, report, model), also of a run that goes on.
        image: of the pod that reads the claim, where none of the run is left.
        seconds: that pod may take to start.
        say: prints a line.

    Raises:
        InputError: there is no model (yet), it is not on the run's claim, or ``into`` exists.
        ClusterError: the cluster cannot be reached, or refuses.
        CheckpointError: what was copied does not match its digests; nothing is left of it.
    """
    if into.exists():
        raise InputError(f"{into}: exists already; name another folder with --into, or move it away")
    resource = kubectl.read("get", "morphogeneticruns.esper.dev", run)
    folder = run_folder(resource) if everything else model_folder(resource)
    with reader_of(kubectl, run, image, say, seconds) as reader, _beside(into) as place:
        copied = place / folder.name
        _copy(kubectl, reader, folder, place)
        model = copied / "model" if everything else copied
        digest = verify_model(model) if model.is_dir() else None
        if digest is None and not everything:
            raise CheckpointError(f"{folder}: no model arrived")
        stated = resource.get("status", {}).get("result", {}).get("weightsDigest")
        matches = digest == stated if digest and stated else None
        if matches is False:
            raise CheckpointError(
                f"the weights have the digest {digest}, the status of run {run!r} says {stated}: they were "
                f"changed after the run, or belong to another one; nothing was kept"
            )
        into.parent.mkdir(parents=True, exist_ok=True)
        files = [path for path in copied.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        copied.rename(into)
    return Pulled(into, len(files), size, digest, matches)


def run_folder(resource: dict[str, Any]) -> PurePosixPath:
    """Where the run's folder is on its claim."""
    return PurePosixPath(DATA) / "runs" / str(resource["metadata"]["name"])


def model_folder(resource: dict[str, Any]) -> PurePosixPath:
    """Where the model is on the claim.

    Raises:
        InputError: the run has none yet, or it is elsewhere.
    """
    name, status = resource["metadata"]["name"], resource.get("status", {})
    phase = status.get("phase", "Pending")
    if phase != "Succeeded":
        step, total = (status.get("progress", {}).get(key) for key in ("step", "totalSteps"))
        at = f" at step {step} of {total}" if step is not None else ""
        raise InputError(
            f"run {name!r} has no model yet: it is {phase}{at}; wait for Succeeded, or give --all for its "
            f"journal and checkpoints as they are"
        )
    uri = resource["spec"].get("output", {}).get("uri")
    if uri is None:
        return run_folder(resource) / "model"
    parts = urlsplit(str(uri))
    path = PurePosixPath(parts.path)
    if parts.scheme in ("", "file") and path.is_relative_to(DATA):
        return path
    where = "on a volume of yours" if parts.scheme in ("", "file") else "there"
    raise InputError(f"the model of run {name!r} is at spec.output.uri {uri}, {where}; fetch it from there")


def unpack(stream: IO[bytes], into: Path) -> int:
    """Unpack a tar stream; returns the number of its files.

    Raises:
        ClusterError: it ends too early.
        CheckpointError: it holds anything but plain files and folders below one folder.
    """
    count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not (member.isreg() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                    raise CheckpointError(f"{member.name!r}: only plain files below the folder are taken")
                archive.extract(member, into, set_attrs=False, filter="data")
                count += member.isreg()
        while stream.read(_BLOCK):  # who writes into it would fail if nobody took the padding
            pass
    except tarfile.TarError as error:
        raise ClusterError(f"the copy broke off: {error}") from error
    return count


def verify_model(folder: Path) -> str:
    """The SHA-256 of a model's weights, that architecture and weights prove whole.

    Raises:
        CheckpointError: a file is missing, damaged or was changed.
    """
    try:
        record = json.loads((folder / ARCHITECTURE).read_bytes())
        seal = record.pop("seal")
        stated = record["weights"]
        weights = folder / PurePosixPath(stated["file"]).name
        if hashlib.sha256(canonical_json(record)).hexdigest() != seal:
            raise CheckpointError(f"{ARCHITECTURE} does not match its seal: it was changed or damaged")
        found = _sha256(weights)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"this is no whole model: {type(error).__name__}: {error}") from error
    if found != stated["sha256"]:
        raise CheckpointError(f"{weights.name} does not match its digest: it was changed or damaged")
    return found


def _copy(kubectl: Kubectl, reader: Reader, folder: PurePosixPath, into: Path) -> None:
    tar = ["tar", "--create", "--file=-", f"--directory={folder.parent}", folder.name]
    with tempfile.TemporaryFile() as errors:
        words = ["exec", reader.pod, f"--container={reader.container}", "--", *tar]
        with kubectl.piped(errors, *words) as process:
            assert process.stdout is not None
            broken: ClusterError | None = None
            try:
                unpack(process.stdout, into)
            except ClusterError as error:
                broken = error
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if process.returncode != 0 or broken is not None:
        # GNU tar ends with 1 where a file grew meanwhile, as a journal does: what was copied is still good.
        if process.returncode == 1 and broken is None and "file changed as we read it" in said:
            return
        raise ClusterError(f"{folder} cannot be copied out of pod {reader.pod}: {last_words(said)}")


@contextlib.contextmanager
def _beside(into: Path) -> Iterator[Path]:
    """A folder on the same file system, that is gone at the end."""
    parent = next(folder for folder in into.absolute().parents if folder.exists())
    try:
        place = Path(tempfile.mkdtemp(dir=parent, prefix=".esper-pull-"))
    except OSError as error:
        raise InputError(f"{parent}: cannot be written to ({error.strerror})") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
