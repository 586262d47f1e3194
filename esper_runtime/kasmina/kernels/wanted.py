"""Which kernel a slot wants here: the target that this process runs on, and what kernels are made with."""

import os
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from esper_runtime.blueprint.builder import BUILDER_VERSION
from esper_runtime.contracts import Interface, KernelError, KernelInterface, KernelSpec, Pipeline, Target

COMPILED = frozenset({Pipeline.STANDARD})
"""Pipelines that make native code: for exact widths, with a C++ compiler."""

RECIPE_VERSION = "3"
"""Raised whenever compiled parts are made, named or called in another way."""


def current_target(device: torch.device | str = "cpu") -> Target:
    """What a kernel must be made for to run on ``device`` in this process.

    Raises:
        KernelError: kernels are made for CPUs and CUDA devices only, or there is no such device.
    """
    device = torch.device(device)
    torch_version = torch.__version__.partition("+")[0]
    if device.type == "cpu":
        arch = torch.backends.cpu.get_cpu_capability().lower().replace("_", "-").replace(" ", "-")
        return Target(device="cpu", arch=arch, torch=torch_version)
    if device.type == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        return Target(device="cuda", arch=f"sm-{major}{minor}", torch=torch_version)
    raise KernelError(
        f"there are no kernels for {device.type}: they are made for cpu, and for cuda where torch finds a GPU"
    )


def toolchain(pipeline: Pipeline, device: str = "cpu") -> dict[str, str]:
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
    made_with |= {"recipe": RECIPE_VERSION, "compiler": _compiler_version()}
    if device == "cuda":
        made_with |= _cuda_versions()
    return made_with


def spec_for(blueprint: str, interface: Interface, target: Target, pipeline: Pipeline) -> KernelSpec:
    """The kernel that a slot with this interface wants.

    ``fast`` kernels serve a whole band of widths, compiled ones those of the slot alone.

    Args:
        blueprint: id, ``bp-...``.
        interface: of the slot.
        target: from `current_target`.
        pipeline: how it is made.

    Raises:
        KernelError: as `toolchain`.
    """
    return KernelSpec(
        blueprint=blueprint,
        interface=KernelInterface.of(interface, exact=pipeline in COMPILED),
        target=target,
        pipeline=pipeline,
        toolchain=toolchain(pipeline, target.device),
    )


def compiler() -> str:
    """The C++ compiler: what ``CXX`` names, else ``g++``."""
    return os.environ.get("CXX", "g++")


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


@cache
def _cuda_versions() -> dict[str, str]:
    for package in ("triton", "pytorch-triton"):
        with suppress(PackageNotFoundError):
            return {"cuda": str(torch.version.cuda), "triton": version(package)}
    raise KernelError(
        "compiled kernels for cuda need the package triton, which comes with torch for CUDA; "
        "install it, or ask for the pipeline fast alone"
    )
