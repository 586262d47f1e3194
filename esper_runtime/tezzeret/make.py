"""One kernel from its spec and its blueprint: checked, made, packed into an archive and signed."""

import time
from contextlib import ExitStack
from pathlib import Path

from esper_runtime.artifact import KeyRing, artifact_files, pack
from esper_runtime.blueprint import canonical_id, validate
from esper_runtime.contracts import (
    Blueprint,
    Compiled,
    KernelError,
    KernelSpec,
    Pipeline,
    Role,
    Signed,
    canonical_json,
)
from esper_runtime.kasmina.kernels import current_target, toolchain
from esper_runtime.tezzeret.fast import exercise
from esper_runtime.tezzeret.standard import Builder


def make(
    spec: KernelSpec, blueprint: Blueprint, folder: Path, keyring: KeyRing, builder: Builder | None = None
) -> tuple[Path, Signed]:
    """Make a kernel: its archive in ``folder``, and Tezzeret's signed word on it.

    Equal arguments, on an equal target, give an archive with equal bytes.

    Args:
        spec: what to make; its toolchain and target must be those of this process.
        blueprint: the graph that ``spec`` names.
        folder: where the archive is put, as ``<kernel id>-<16 digits of the digest>.kernel``; made where
            it is not there.
        keyring: signs as Tezzeret.
        builder: compiles; where none is given, one is started for this kernel if it needs one.

    Raises:
        KernelError: it cannot be made, and trying again would not help.
        SandboxError: a limit ended the compiler, or it could not be started.
        BlueprintError: the blueprint is not valid.
        ArtifactError: it cannot be signed.
    """
    started = time.perf_counter()
    _check(spec, blueprint)
    trains = True
    parts: dict[str, bytes] = {}
    if spec.pipeline is Pipeline.FAST:
        exercise(blueprint, spec.interface)
    else:
        with ExitStack() as stack:
            built = (builder or stack.enter_context(Builder())).build(spec, blueprint)
        parts, trains = built.parts, built.trains
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / f".{spec.kernel_id}.making"
    try:
        digest = pack(artifact_files(spec, blueprint, trains=trains, parts=parts), unnamed)
        path = unnamed.rename(folder / f"{spec.kernel_id}-{digest[:16]}.kernel")
    finally:
        unnamed.unlink(missing_ok=True)
    statement = Compiled(
        spec=spec,
        kernel=spec.kernel_id,
        digest=digest,
        bytes=path.stat().st_size,
        trains=trains,
        seconds=time.perf_counter() - started,
    )
    return path, keyring.sign(Role.TEZZERET, statement)


def _check(spec: KernelSpec, blueprint: Blueprint) -> None:
    validate(blueprint)
    identity = canonical_id(blueprint)
    if identity != spec.blueprint:
        raise KernelError(f"{spec.kernel_id} is of blueprint {spec.blueprint}; the graph given is {identity}")
    here = current_target()
    if spec.target != here:
        raise KernelError(f"{spec.kernel_id} is for {spec.target.name}; this worker makes {here.name}")
    made_with = toolchain(spec.pipeline)
    if spec.toolchain != made_with:
        raise KernelError(
            f"{spec.kernel_id} asks for the toolchain {_words(spec.toolchain)}; this worker has "
            f"{_words(made_with)}"
        )


def _words(versions: dict[str, str]) -> str:
    return canonical_json(versions).decode()
