"""A kernel as its makers leave it, with real keys, for the tests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.artifact import KeyRing, artifact_files, encode_archive
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    Check,
    Compiled,
    Interface,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Role,
    Signed,
    Target,
    ValidationReport,
    Verdict,
)

SLOT = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(40,), spatial_out=(40,))
TARGET = Target(device="cpu", arch="avx512", torch="2.13.0")


def blueprint_of(name: str = "bottleneck-bn") -> Blueprint:
    """One of the catalogue."""
    return catalogue()[name]


def spec_of(blueprint: Blueprint, pipeline: Pipeline = Pipeline.FAST) -> KernelSpec:
    """Of a kernel of it."""
    return KernelSpec(
        blueprint=canonical_id(blueprint),
        interface=KernelInterface.of(SLOT),
        target=TARGET,
        pipeline=pipeline,
        toolchain={"esper": "0.1.0"},
    )


@dataclass(frozen=True)
class Made:
    """An archive and what was signed about it."""

    data: bytes
    compiled: Signed
    verdict: Signed
    statement: Compiled
    said: Verdict

    def at(self, path: Path) -> Path:
        """The archive in a file."""
        path.write_bytes(self.data)
        return path


def verdict_of(compiled: Compiled, passed: bool = True) -> Verdict:
    """Urabrask's word about it."""
    return Verdict(
        kernel=compiled.kernel,
        digest=compiled.digest,
        report=ValidationReport(
            kernel=compiled.kernel,
            digest=compiled.digest,
            passed=passed,
            checks=(Check(name="shape", passed=passed, reason="" if passed else "wrong shape"),),
            seconds=0.5,
        ),
    )


def made(
    ring: KeyRing,
    name: str = "bottleneck-bn",
    parts: dict[str, bytes] | None = None,
    passed: bool = True,
    files: dict[str, bytes] | None = None,
) -> Made:
    """A signed kernel; ``files`` stands for all files of the archive."""
    blueprint = blueprint_of(name)
    spec = spec_of(blueprint, Pipeline.STANDARD if parts else Pipeline.FAST)
    data = encode_archive(files or artifact_files(spec, blueprint, trains=True, parts=parts))
    statement = Compiled(
        spec=spec,
        kernel=spec.kernel_id,
        digest=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        trains=True,
        seconds=0.25,
    )
    said = verdict_of(statement, passed)
    return Made(data, ring.sign(Role.TEZZERET, statement), ring.sign(Role.URABRASK, said), statement, said)
