"""What the roles say, with real keys: used by the tests of the library."""

import hashlib
from pathlib import Path
from typing import Any

from esper_runtime.artifact import KeyRing, artifact_files, pack
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    Check,
    Compiled,
    CompileFailed,
    Interface,
    KernelInterface,
    KernelSpec,
    Measurement,
    Pipeline,
    Role,
    Ruling,
    Signed,
    Statement,
    Target,
    ValidationReport,
    Verdict,
)

TARGET = Target(device="cpu", arch="avx512", torch="2.13.0")
SLOT = Interface(kind="features", width_in=8, width_out=8)
BLUEPRINT = next(item for item in catalogue().values() if item.interface == "features" and not item.span)
ROLES = {"Compiled": Role.TEZZERET, "CompileFailed": Role.TEZZERET, "Verdict": Role.URABRASK}


def kernel_spec(
    blueprint: str | None = None, pipeline: Pipeline = Pipeline.FAST, slot: Interface = SLOT, **more: Any
) -> KernelSpec:
    """A kernel of the features class with widths up to 16."""
    return KernelSpec(
        blueprint=blueprint or canonical_id(BLUEPRINT),
        interface=more.pop("interface", KernelInterface.of(slot)),
        target=more.pop("target", TARGET),
        pipeline=pipeline,
        **more,
    )


def digest_of(text: str) -> str:
    """Some digest."""
    return hashlib.sha256(text.encode()).hexdigest()


def compiled(spec: KernelSpec, digest: str, size: int = 1) -> Compiled:
    """An artifact was made."""
    return Compiled(spec=spec, kernel=spec.kernel_id, digest=digest, bytes=size, trains=True, seconds=1.0)


def failed(spec: KernelSpec, reason: str = "too large") -> CompileFailed:
    """None could be made."""
    return CompileFailed(spec=spec, kernel=spec.kernel_id, reason=reason)


def report(spec: KernelSpec, digest: str, *, passed: bool = True, **more: Any) -> ValidationReport:
    """A report with measurements."""
    values: dict[str, Any] = {
        "checks": (Check(name="finite", passed=passed, reason="" if passed else "NaN in output"),),
        "measurements": {"forward_us": Measurement(median=100.0, p99=120.0, count=50, steady=True)},
        "numbers": {"speedup": 1.0, "peak_bytes": 1000.0, "parameters": 64.0},
        "tags": ("small",),
        "risk": 0.1,
        "seconds": 1.0,
    }
    return ValidationReport(kernel=spec.kernel_id, digest=digest, passed=passed, **(values | more))


def verdict(spec: KernelSpec, digest: str, *, passed: bool = True, **more: Any) -> Verdict:
    """Urabrask's word."""
    found = report(spec, digest, passed=passed, **more)
    return Verdict(kernel=spec.kernel_id, digest=digest, report=found)


def ruling(spec: KernelSpec, state: str, second: int, by: str | None = None) -> Ruling:
    """The planner's word, said at a second of some minute."""
    time = f"2026-01-01T00:00:{second:02d}.000+00:00"
    return Ruling(kernel=spec.kernel_id, state=state, reason=f"{state} at {second}", time=time, by=by)


def sign(keyring: KeyRing, statement: Statement) -> Signed:
    """With the key of the role whose word it is."""
    return keyring.sign(ROLES.get(statement.kind, Role.PLANNER), statement)


def artifact(folder: Path, spec: KernelSpec, blueprint: Blueprint, part: bytes = b"") -> tuple[Path, str]:
    """A real artifact, and its digest; ``part`` is a compiled part in it."""
    path = folder / f"{spec.kernel_id}-{len(part)}.kernel"
    files = artifact_files(spec, blueprint, trains=True, parts={"parts/one": part} if part else None)
    return path, pack(files, path)
