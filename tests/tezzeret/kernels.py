"""Kernels made and opened the way the forge does it, with keys of their own."""

from pathlib import Path

from esper_runtime.artifact import KeyRing, VerifiedArtifact, open_artifact
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import Blueprint, Interface, InterfaceKind, KernelSpec, Pipeline
from esper_runtime.kasmina.kernels import current_target, spec_for
from esper_runtime.tezzeret import Builder, make

SIZES = {
    InterfaceKind.FEATURES: (),
    InterfaceKind.SEQUENCE: (20,),
    InterfaceKind.TOKENS: (10,),
    InterfaceKind.IMAGE: (8, 8),
}


def slot(kind: InterfaceKind, width: int = 8) -> Interface:
    """An adapter's slot."""
    return Interface(
        kind=kind, width_in=width, width_out=width, spatial_in=SIZES[kind], spatial_out=SIZES[kind]
    )


def wanted(blueprint: Blueprint, interface: Interface, pipeline: Pipeline = Pipeline.FAST) -> KernelSpec:
    """The kernel for it on this CPU."""
    return spec_for(canonical_id(blueprint), interface, current_target(), pipeline)


def made(
    blueprint: Blueprint,
    interface: Interface,
    home: Path,
    pipeline: Pipeline = Pipeline.FAST,
    builder: Builder | None = None,
) -> VerifiedArtifact:
    """Made, signed, written, and opened again as Urabrask does."""
    keys = KeyRing(home)
    path, compiled = make(wanted(blueprint, interface, pipeline), blueprint, home / "made", keys, builder)
    return open_artifact(path, compiled, None, keys.trust, validated=False)
