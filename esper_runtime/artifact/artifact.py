"""An artifact as a whole: made of its files, and opened only after digest and signatures were checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from esper_runtime.artifact.archive import ArchiveLimits, decode_archive
from esper_runtime.artifact.guarded import read_bounded
from esper_runtime.artifact.statements import read_canonical
from esper_runtime.artifact.trust import Trust
from esper_runtime.blueprint import canonical_id, parse_blueprint
from esper_runtime.contracts import (
    ArtifactError,
    ArtifactFile,
    ArtifactManifest,
    Blueprint,
    BlueprintError,
    Compiled,
    ContractModel,
    KernelSpec,
    Role,
    Signed,
    Verdict,
    canonical_json,
)

MANIFEST, BLUEPRINT = "manifest.json", "blueprint.json"

M = TypeVar("M", bound=ContractModel)


@dataclass(frozen=True)
class VerifiedArtifact:
    """An artifact whose digest, signatures and contents agree.

    Attributes:
        manifest: of the archive.
        blueprint: the graph.
        files: contents by name, without the manifest.
        compiled: what Tezzeret says of it.
        verdict: what Urabrask says of it; None only where it was opened to be tested.
    """

    manifest: ArtifactManifest
    blueprint: Blueprint
    files: Mapping[str, bytes]
    compiled: Compiled
    verdict: Verdict | None


def artifact_files(
    spec: KernelSpec, blueprint: Blueprint, *, trains: bool, parts: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """All files of an artifact, for `pack`: the blueprint, the parts and the manifest that lists them.

    Args:
        spec: of the kernel.
        blueprint: its graph.
        trains: whether its compiled parts have a backward pass.
        parts: compiled parts by name.

    Raises:
        ArtifactError: a part has the name of another file, or there are too many.
    """
    files = {BLUEPRINT: canonical_json(blueprint.model_dump(mode="json", by_alias=True))}
    for name, data in (parts or {}).items():
        if name in (MANIFEST, BLUEPRINT):
            raise ArtifactError(f"a part must not be called {name!r}")
        files[name] = data
    listed = tuple(
        ArtifactFile(path=name, sha256=hashlib.sha256(files[name]).hexdigest(), bytes=len(files[name]))
        for name in sorted(files)
    )
    manifest = ArtifactManifest(kernel=spec, trains=trains, files=listed)
    return files | {MANIFEST: canonical_json(manifest.model_dump(mode="json", by_alias=True))}


def open_artifact(
    path: Path,
    compiled: Signed,
    verdict: Signed | None,
    trust: Trust,
    *,
    validated: bool = True,
    limits: ArchiveLimits | None = None,
) -> VerifiedArtifact:
    """The artifact in a file, read once and checked before any part of it is parsed.

    Args:
        path: of the archive.
        compiled: Tezzeret's statement.
        verdict: Urabrask's.
        trust: whom we believe.
        validated: whether a verdict that it passed is needed; False only for who tests it.
        limits: on the archive.

    Raises:
        ArtifactError: a signature, the digest, or anything that the statements, the manifest and the
            blueprint say of each other does not hold; the text says what.
    """
    limits = limits or ArchiveLimits()
    made = cast(Compiled, trust.verify(compiled, Role.TEZZERET))
    if not isinstance(made, Compiled):
        raise ArtifactError(f"a {made.kind} is no word about an artifact that was made")
    judged = None if verdict is None else cast(Verdict, trust.verify(verdict, Role.URABRASK))
    _check_verdict(made, judged, validated)
    data = read_bounded(path, limits.total_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if (digest, len(data)) != (made.digest, made.bytes):
        raise ArtifactError(
            f"{path}: {len(data):,} bytes with the digest {digest[:16]}; signed were {made.bytes:,} bytes "
            f"with {made.digest[:16]}: the file was changed or belongs to another kernel"
        )
    try:
        return _opened(decode_archive(data, limits), made, judged)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _check_verdict(made: Compiled, judged: Verdict | None, validated: bool) -> None:
    if judged is None:
        if validated:
            raise ArtifactError(f"{made.kernel} has no verdict of {Role.URABRASK}: it is not validated")
        return
    if (judged.kernel, judged.digest) != (made.kernel, made.digest):
        raise ArtifactError(
            f"the verdict is about {judged.kernel} ({judged.digest[:16]}), "
            f"the artifact is {made.kernel} ({made.digest[:16]})"
        )
    if validated and not judged.report.passed:
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in judged.report.failures[:3])
        raise ArtifactError(f"{made.kernel} was rejected by {Role.URABRASK}: {reasons}")


def _opened(files: dict[str, bytes], made: Compiled, judged: Verdict | None) -> VerifiedArtifact:
    if MANIFEST not in files or BLUEPRINT not in files:
        raise ArtifactError(f"the archive lacks {MANIFEST if MANIFEST not in files else BLUEPRINT}")
    manifest = _model(ArtifactManifest, read_canonical(files.pop(MANIFEST), MANIFEST), MANIFEST)
    listed = {file.path: (file.sha256, file.bytes) for file in manifest.files}
    found = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    if listed != found or len(listed) != len(manifest.files):
        wrong = sorted(name for name in listed.keys() | found if listed.get(name) != found.get(name))
        raise ArtifactError(f"{MANIFEST} and the files do not agree: {', '.join(wrong) or 'a file twice'}")
    if manifest.kernel != made.spec:
        raise ArtifactError(f"{MANIFEST} describes {manifest.kernel.kernel_id}, signed was {made.kernel}")
    if manifest.trains != made.trains:
        raise ArtifactError(f"{MANIFEST} and what was signed do not agree on whether it trains")
    try:
        blueprint = parse_blueprint(read_canonical(files[BLUEPRINT], BLUEPRINT))
        identity = canonical_id(blueprint)
    except BlueprintError as error:
        raise ArtifactError(f"{BLUEPRINT}: {error}") from None
    if identity != made.spec.blueprint:
        raise ArtifactError(f"{BLUEPRINT} is {identity}, the kernel is made of {made.spec.blueprint}")
    return VerifiedArtifact(manifest, blueprint, MappingProxyType(files), made, judged)


def _model(model: type[M], data: Any, what: str) -> M:
    try:
        return model.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ArtifactError(f"{what}: {place}: {first['msg']}") from None
