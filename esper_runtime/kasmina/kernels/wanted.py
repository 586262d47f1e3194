"""Which kernel a slot wants here: the target that this process runs on, and what kernels are made with."""

import contextlib
import os
import shutil
import subprocess
from functools import cache

import torch

from esper_runtime.blueprint.builder import BUILDER_VERSION
from esper_runtime.contracts import (
    Interface,
    KernelError,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Target,
    WorkerFacts,
)

COMPILED = frozenset({Pipeline.STANDARD})
"""Pipelines that make native code: for exact widths, with a C++ compiler."""

RECIPE_VERSION = "3"
"""Raised whenever compiled parts are made, named or called in another way."""


def current_target() -> Target:
    """What kernels are made and tested for in this process: its CPU.

    The sandbox in which they are tested reaches no GPU. A plain graph has no code of a device, so one that
    passed on the CPU is planted on any.
    """
    arch = torch.backends.cpu.get_cpu_capability().lower().replace("_", "-").replace(" ", "-")
    return Target(device="cpu", arch=arch, torch=torch.__version__.partition("+")[0])


def refuse_compiled(device: str) -> None:
    """Refuse native code for another device than the CPU.

    Args:
        device: kind of device.

    Raises:
        KernelError: it is another one.
    """
    if device != "cpu":
        raise KernelError(
            f"compiled kernels are for the CPU only, not for {device}: the sandbox reaches no such device, "
            "so none could be tested there; plain graphs (pipeline fast) run on it"
        )


def toolchain(pipeline: Pipeline) -> dict[str, str]:
    """What kernels of a pipeline depend on besides the target: part of their ids.

    Raises:
        KernelError: the pipeline is not offered, or it needs a C++ compiler and there is none.
    """
    made_with = {"builder": BUILDER_VERSION}
    if pipeline is Pipeline.FAST:
        return made_with
    if pipeline not in COMPILED:
        offered = ", ".join([Pipeline.FAST, *sorted(COMPILED)])
        raise KernelError(f"there is no pipeline {pipeline.value!r} here; there are: {offered}")
    return made_with | {"recipe": RECIPE_VERSION, "compiler": _compiler_version()}


def worker_facts() -> WorkerFacts:
    """What a worker in this process would make kernels for, and with what."""
    offered: dict[Pipeline, dict[str, str]] = {}
    for pipeline in Pipeline:
        with contextlib.suppress(KernelError):  # not offered here
            offered[pipeline] = toolchain(pipeline)
    return WorkerFacts(target=current_target(), toolchains=offered)


def spec_for(blueprint: str, interface: Interface, target: Target, pipeline: Pipeline) -> KernelSpec:
    """The kernel that a slot with this interface wants.

    ``fast`` kernels serve a whole band of widths, compiled ones those of the slot alone.

    Args:
        blueprint: id, ``bp-...``.
        interface: of the slot.
        target: from `current_target`.
        pipeline: how it is made.

    Raises:
        KernelError: as `toolchain`, or a compiled kernel is wanted for another device than the CPU.
    """
    if pipeline in COMPILED:
        refuse_compiled(target.device)
    return KernelSpec(
        blueprint=blueprint,
        interface=KernelInterface.of(interface, exact=pipeline in COMPILED),
        target=target,
        pipeline=pipeline,
        toolchain=toolchain(pipeline),
    )


def compiler() -> str:
    """The C++ compiler: what ``CXX`` names, else ``g++``; with its path, where one is found in ``PATH``."""
    name = os.environ.get("CXX", "g++")
    return shutil.which(name) or name


@cache
def _compiler_version() -> str:
    name = compiler()
    try:
        done = subprocess.run(
            [name, "-dumpfullversion"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(
            f"compiled kernels need a C++ compiler, and {name!r} does not run ({error}); install g++, "
            "name another one in CXX, or ask for the pipeline fast alone"
        ) from None
    return f"{os.path.basename(name)}-{done.stdout.strip()}"
