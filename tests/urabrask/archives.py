"""Real archives with a real signature of Tezzeret, whatever is in them."""

from pathlib import Path

from esper_runtime.artifact import KeyRing, artifact_files, pack
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import (
    Blueprint,
    Compiled,
    InterfaceKind,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Role,
    Signed,
    SpanGeometry,
)
from esper_runtime.kasmina.kernels import current_target, toolchain

_AXES = {
    InterfaceKind.FEATURES: 0,
    InterfaceKind.TOKENS: 0,
    InterfaceKind.SEQUENCE: 1,
    InterfaceKind.IMAGE: 2,
}


def slots_for(blueprint: Blueprint, least: int = 1, most: int = 16, **more: object) -> KernelInterface:
    """A class of slots of the blueprint's kind, spans with plain layers around them."""
    axes = _AXES[blueprint.interface]
    span: dict[str, object] = {}
    if blueprint.span:
        ones = (1,) * axes
        layer = SpanGeometry(kernel=(3,) * axes, stride=ones, padding=ones, dilation=ones, groups=1)
        span = {"producer": layer, "consumer": layer, "activation": "relu"}
    return KernelInterface.model_validate(
        {
            "kind": blueprint.interface,
            "least_in": least,
            "most_in": most,
            "least_out": least,
            "most_out": most,
            "stride": (1,) * axes if blueprint.interface is not InterfaceKind.TOKENS else (1,),
            "causal": blueprint.causal and not blueprint.span,
            **span,
            **more,
        }
    )


def spec_of(
    blueprint: Blueprint, slots: KernelInterface | None = None, pipeline: Pipeline = Pipeline.FAST
) -> KernelSpec:
    """The kernel of a blueprint for a class of slots, here."""
    return KernelSpec(
        blueprint=canonical_id(blueprint),
        interface=slots or slots_for(blueprint),
        target=current_target(),
        pipeline=pipeline,
        toolchain=toolchain(pipeline),
    )


def signed_archive(
    folder: Path,
    keyring: KeyRing,
    spec: KernelSpec,
    blueprint: Blueprint,
    parts: dict[str, bytes] | None = None,
    *,
    trains: bool = True,
) -> tuple[Path, Signed]:
    """An archive that is signed as Tezzeret signs, whatever is in it."""
    files = artifact_files(spec, blueprint, trains=trains, parts=parts)
    return sign_files(folder, keyring, spec, files, trains=trains)


def sign_files(
    folder: Path, keyring: KeyRing, spec: KernelSpec, files: dict[str, bytes], *, trains: bool = True
) -> tuple[Path, Signed]:
    """Files as an archive with Tezzeret's signature."""
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / "unnamed"
    digest = pack(files, unnamed)
    path = unnamed.rename(folder / f"{spec.kernel_id}-{digest[:16]}.kernel")
    statement = Compiled(
        spec=spec,
        kernel=spec.kernel_id,
        digest=digest,
        bytes=path.stat().st_size,
        trains=trains,
        seconds=1.0,
    )
    return path, keyring.sign(Role.TEZZERET, statement)
