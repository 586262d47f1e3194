"""Modules made from verified artifacts: the eager graph, and where there is one its compiled twin.

`load` takes a `VerifiedArtifact` and nothing else: whoever has one has checked the digest of the whole
archive, both signatures and that all of them mean the same kernel.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from esper_runtime.artifact import VerifiedArtifact
from esper_runtime.blueprint.builder import BUILDER_VERSION, build
from esper_runtime.contracts import Blueprint, Interface, KernelError, KernelSpec
from esper_runtime.kasmina.kernels.compiled import CompiledParts
from esper_runtime.kasmina.kernels.twin import Twin
from esper_runtime.kasmina.kernels.wanted import COMPILED, current_target, refuse_compiled

Files = Mapping[str, bytes]
"""Contents of an artifact by name."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be built into seeds.

    Attributes:
        spec: what it was made for.
        digest: of its artifact.
        blueprint: its graph.
        bytes: what its files take, for bounds on what is kept.
        trains: whether what it makes can learn: compiled parts without a backward pass cannot.
    """

    spec: KernelSpec
    digest: str
    blueprint: Blueprint
    bytes: int
    trains: bool
    _files: Files = field(repr=False)
    _loaded: list[CompiledParts] = field(default_factory=list, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def id(self) -> str:
        """``ck-...``."""
        return self.spec.kernel_id

    def body(self, interface: Interface, seed: int) -> fx.GraphModule:
        """The eager module for a slot: float32 parameters on the CPU, in training mode, zero at birth.

        It is what `esper_runtime.blueprint.builder.build` makes of the artifact's graph: the same weights,
        bit for bit, for the same ``seed``.

        Raises:
            KernelError: the slot is not of the kernel's class.
            BlueprintError: the blueprint does not fit the slot.
        """
        if not self.spec.interface.contains(interface):
            raise KernelError(
                f"{self.id} is not made for this slot: the slot is {_words(interface)}, the kernel is for "
                f"{self.spec.interface.model_dump_json(by_alias=True, exclude_defaults=True)}"
            )
        return build(self.blueprint, interface, seed)

    @property
    def compiled(self) -> bool:
        """Whether it has compiled parts, so that `twin` can be asked for."""
        return self.spec.pipeline in COMPILED

    def twin(self, body: nn.Module) -> Twin:
        """The compiled twin of a body of this kernel's blueprint and class, on the CPU.

        The first call loads native code, which takes some milliseconds.

        Args:
            body: from `body`, in its dtype; its parameters and buffers are the twin's too.

        Raises:
            KernelError: there are no compiled parts, they cannot be loaded, or the body is of another one or
                on another device.
        """
        if not self.compiled:
            raise KernelError(f"{self.id} is a {self.spec.pipeline.value} kernel: it has no compiled parts")
        refuse_compiled(next(body.parameters()).device.type)
        with self._turn:
            if not self._loaded:
                self._loaded.append(CompiledParts(self._files))
            return Twin(body, self._loaded[0])


def load(artifact: VerifiedArtifact) -> Kernel:
    """A kernel from an artifact that was verified.

    Raises:
        KernelError: it was made for another target, or by another version of the builder.
    """
    spec = artifact.manifest.kernel
    here = current_target()
    if spec.target != here:
        raise KernelError(f"{spec.kernel_id} is made for {spec.target.name}; this process is {here.name}")
    made_with = spec.toolchain.get("builder")
    if made_with != BUILDER_VERSION:
        raise KernelError(
            f"{spec.kernel_id} was made with version {made_with} of the builder; this Esper has "
            f"{BUILDER_VERSION}: compile it again"
        )
    return Kernel(
        spec=spec,
        digest=artifact.compiled.digest,
        blueprint=artifact.blueprint,
        bytes=sum(file.bytes for file in artifact.manifest.files),
        trains=artifact.manifest.trains,
        _files=artifact.files,
    )


def _words(interface: Interface) -> str:
    return interface.model_dump_json(by_alias=True, exclude_defaults=True)
