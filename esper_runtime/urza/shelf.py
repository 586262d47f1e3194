"""The shelf: this machine's folder of kernels, from which nothing is taken that is not verified again."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from esper_runtime.artifact import (
    Trust,
    VerifiedArtifact,
    decode_signed,
    guarded_folder,
    open_artifact,
    read_canonical,
    write_atomically,
)
from esper_runtime.contracts import (
    ArtifactError,
    CompileFailed,
    ContractModel,
    EsperError,
    KernelError,
    KernelState,
    Role,
    Ruling,
    Signed,
    Statement,
    UsableKernel,
    Verdict,
    canonical_json,
)

KERNELS = "kernels"
ARCHIVE, WORDS, REJECTED = ".kernel", ".json", ".rejected"
_DIGITS = 16
_MOST_WORDS = 1_048_576


class Words(ContractModel):
    """What was said of an artifact: it lies beside it, and each part counts only with its signature."""

    compiled: Signed
    verdict: Signed
    ruling: Signed | None = Field(default=None, description="The planner's last word, where it has said one.")


class Shelf:
    """Verified kernels in ``<home>/kernels``: an archive and the signed words on it, for each.

    Files are put in place in one step, the archive first, so that any number of processes may use the
    folder. A file that was changed, or whose key or digest is revoked, is refused when it is opened.

    Args:
        home: the machine's folder (`esper_home`).

    Raises:
        ArtifactError: the folder cannot be used.
    """

    def __init__(self, home: Path) -> None:
        self.folder = guarded_folder(home) / KERNELS
        guarded_folder(self.folder)

    def put(self, archive: Path, compiled: Signed, verdict: Signed, trust: Trust) -> UsableKernel:
        """Copy an artifact with its words; one that is there already is written again.

        Raises:
            ArtifactError: it is not what its words say, or is not validated; or it cannot be written.
        """
        artifact = open_artifact(archive, compiled, verdict, trust)
        name = _name(artifact.compiled.kernel, artifact.compiled.digest)
        try:
            data = archive.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{archive}: cannot be read ({error.strerror})") from error
        write_atomically(self.folder / f"{name}{ARCHIVE}", data, 0o600)
        self._write_words(name, Words(compiled=compiled, verdict=verdict))
        return usable(artifact)

    def rule(self, signed: Signed, trust: Trust) -> None:
        """Keep the planner's word on a kernel beside its artifacts here; the latest one counts.

        Raises:
            ArtifactError: it is not the planner's, or cannot be written.
        """
        ruling = trust.verify(signed, Role.PLANNER)
        for name in self.artifacts(ruling.kernel):
            words = self._read_words(name)
            if words is None:
                continue
            before = None if words.ruling is None else trust.verify(words.ruling, Role.PLANNER)
            if not (isinstance(before, Ruling) and isinstance(ruling, Ruling) and before.time >= ruling.time):
                self._write_words(name, words.model_copy(update={"ruling": signed}))

    def artifacts(self, kernel: str | None = None) -> list[str]:
        """Names of the artifacts that lie here, of one kernel or of all; nothing of them is opened."""
        with os.scandir(self.folder) as files:
            names = [file.name.removesuffix(WORDS) for file in files if file.name.endswith(WORDS)]
        return sorted(name for name in names if name[0] != "." and kernel in (None, name[: -_DIGITS - 1]))

    def marks(self) -> dict[str, frozenset[tuple[str, int, int, int]]]:
        """For each kernel of which something lies here, what changes when one of its files does."""
        found: dict[str, set[tuple[str, int, int, int]]] = {}
        with os.scandir(self.folder) as files:
            for file in files:
                stem, end = os.path.splitext(file.name)
                if end in (ARCHIVE, WORDS) and stem[0] != ".":
                    with contextlib.suppress(FileNotFoundError):  # it was replaced just now
                        stat = file.stat(follow_symlinks=False)
                        mark = (file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns)
                        found.setdefault(stem[: -_DIGITS - 1], set()).add(mark)
        return {kernel: frozenset(marks) for kernel, marks in found.items()}

    def open(self, name: str, trust: Trust) -> VerifiedArtifact:
        """An artifact, verified as a whole.

        Args:
            name: of the artifact.
            trust: whom we believe.

        Raises:
            ArtifactError: it is not here, or is not what its words say; a key or it was revoked.
            KernelError: it is quarantined.
        """
        words = self._read_words(name)
        if words is None:
            raise ArtifactError(f"{self.folder / name}{WORDS} is missing or cannot be read")
        artifact = open_artifact(self.folder / f"{name}{ARCHIVE}", words.compiled, words.verdict, trust)
        compiled = artifact.compiled
        if _name(compiled.kernel, compiled.digest) != name:
            raise ArtifactError(f"{name}{ARCHIVE} holds {compiled.kernel} ({compiled.digest[:_DIGITS]})")
        if words.ruling is not None:
            ruling = trust.verify(words.ruling, Role.PLANNER)
            if isinstance(ruling, Ruling) and ruling.state is KernelState.QUARANTINED:
                raise KernelError(f"{ruling.kernel} is quarantined: {ruling.reason}")
        return artifact

    def usable(
        self, kernels: Iterable[str], trust: Trust
    ) -> tuple[dict[str, UsableKernel], dict[str, EsperError]]:
        """Those of ``kernels`` that are here and may run, each verified; and why the others may not.

        What is wrong is a `KernelError` where making the kernel again would not change it.
        """
        names: dict[str, list[str]] = {}
        for name in self.artifacts():
            names.setdefault(name[: -_DIGITS - 1], []).append(name)
        revoked = {digest[:_DIGITS]: r.reason for digest, r in trust.keys.revoked_digests.items()}
        found: dict[str, UsableKernel] = {}
        refused: dict[str, EsperError] = {}
        for kernel in kernels:
            for name in names.get(kernel, ()):
                if name[-_DIGITS:] in revoked:
                    refused[kernel] = KernelError(f"{name} is revoked: {revoked[name[-_DIGITS:]]}")
                    continue
                try:
                    found[kernel] = usable(self.open(name, trust))
                    refused.pop(kernel, None)
                    break
                except (ArtifactError, KernelError) as error:
                    refused[kernel] = error
            if kernel not in names:
                refused[kernel] = self._rejection(kernel, trust) or ArtifactError(
                    f"{kernel} is not in {self.folder}"
                )
        return found, refused

    def damaged(self, kernels: Iterable[str], trust: Trust) -> dict[str, str]:
        """Those of ``kernels`` of which artifacts lie here that are not to be used, by what making them again
        would mend; and why. One that has a good artifact as well is among them too.
        """
        wanted, found = set(kernels), dict[str, str]()
        for name in self.artifacts():
            kernel = name[: -_DIGITS - 1]
            if kernel in wanted:
                try:
                    self.open(name, trust)
                except KernelError:
                    continue
                except ArtifactError as error:
                    found[kernel] = str(error)
        return found

    def reject(self, kernel: str, signed: Signed) -> None:
        """Keep the signed word that a kernel cannot be made, or did not pass, so that it is not tried again.

        Raises:
            ArtifactError: it cannot be written.
        """
        data = canonical_json(signed.model_dump(mode="json", by_alias=True))
        write_atomically(self.folder / f"{kernel}{REJECTED}", data, 0o600)

    def _rejection(self, kernel: str, trust: Trust) -> KernelError | None:
        path = self.folder / f"{kernel}{REJECTED}"
        try:
            signed = decode_signed(path.read_bytes())
        except (OSError, ArtifactError):
            return None
        for role in (Role.URABRASK, Role.TEZZERET):
            with contextlib.suppress(ArtifactError):
                said = trust.verify(signed, role)
                if said.kernel == kernel and (reason := _bad_word(said)) is not None:
                    return KernelError(f"{reason} (remove {path} to have it tried again)")
        return None

    def _read_words(self, name: str) -> Words | None:
        path = self.folder / f"{name}{WORDS}"
        try:
            if path.stat().st_size > _MOST_WORDS:
                return None
            return Words.model_validate(read_canonical(path.read_bytes(), path.name))
        except (OSError, ValidationError, ArtifactError):
            return None

    def _write_words(self, name: str, words: Words) -> None:
        data = canonical_json(words.model_dump(mode="json", by_alias=True))
        write_atomically(self.folder / f"{name}{WORDS}", data, 0o600)


def usable(artifact: VerifiedArtifact) -> UsableKernel:
    """What a decision and a report need of a verified artifact.

    Raises:
        ArtifactError: it was opened without a verdict.
    """
    if artifact.verdict is None:
        raise ArtifactError(f"{artifact.compiled.kernel} has no verdict: it is not validated")
    spec, report = artifact.manifest.kernel, artifact.verdict.report
    figures = {name: measured.median for name, measured in report.measurements.items()} | report.numbers
    return UsableKernel(
        kernel=artifact.compiled.kernel,
        digest=artifact.compiled.digest,
        blueprint=spec.blueprint,
        name=artifact.blueprint.name,
        graph=artifact.blueprint,
        interface=spec.interface,
        pipeline=spec.pipeline,
        trains=artifact.manifest.trains,
        tags=report.tags,
        risk=report.risk,
        figures=figures,
    )


def _bad_word(said: Statement) -> str | None:
    """What a statement says against its kernel."""
    if isinstance(said, CompileFailed):
        return f"{said.kernel} cannot be made: {said.reason}"
    if isinstance(said, Verdict) and not said.report.passed:
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in said.report.failures[:3])
        return f"{said.kernel} did not pass: {reasons}"
    return None


def _name(kernel: str, digest: str) -> str:
    return f"{kernel}-{digest[:_DIGITS]}"
