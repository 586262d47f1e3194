"""Native code of a blueprint's programs: what runs inside the sandbox, with a compiler and no network.

The bytes depend on the blueprint, the class, the target and the toolchain alone. What would make them differ
is taken out: line tables, build ids, symbols, and the paths of the folder, of PyTorch and of Python.
"""

import json
import os
import platform
import shlex
import sysconfig
from pathlib import Path
from typing import Any

import torch

from esper_runtime.artifact import encode_archive
from esper_runtime.blueprint import parse_blueprint
from esper_runtime.contracts import KernelError, KernelInterface
from esper_runtime.kasmina.kernels.compiled import BACKWARD, CALL, FORWARD, LIBRARY, Call
from esper_runtime.sandbox import Workspace
from esper_runtime.tezzeret.trace import Program, trace

MADE, REFUSED = b"made", b"refused"

_MARCH = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "default": "x86-64"}
_BITS = {"avx512": 512, "avx2": 256}


def warm(payload: bytes, workspace: Workspace) -> bytes:
    """Import what compiling imports late, so that jobs find it there."""

    return payload


def build_parts(payload: bytes, workspace: Workspace) -> bytes:
    """Trace and compile.

    Args:
        payload: JSON with ``graph``, ``interface``, ``arch`` and ``compiler``.
        workspace: where the compiler works.

    Returns:
        `MADE` and an archive of the parts, or `REFUSED` and the reason.
    """
    request = json.loads(payload)
    blueprint = parse_blueprint(request["graph"])
    slots = KernelInterface.model_validate(request["interface"])
    _prepare(workspace.folder)
    try:
        traced = trace(blueprint, slots)
        parts = _compiled(FORWARD, traced.forward, request, workspace.folder)
        learned: tuple[str, ...] = ()
        if traced.backward is not None:
            parts |= _compiled(BACKWARD, traced.backward, request, workspace.folder)
            learned = traced.learned
    except KernelError as error:
        return REFUSED + str(error).encode()
    call = Call(
        tensors=tuple(traced.tensors),
        shapes=tuple(traced.tensors.values()),
        learned=learned,
        channel=traced.channel,
        width=slots.least_in,
        least=traced.least,
    )
    return MADE + encode_archive(parts | {CALL: call.encoded()})


def _prepare(folder: Path) -> None:
    """Nothing is looked up, locked or kept outside the folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    os.environ["USER"] = "esper"
    torch.set_num_threads(1)


def _compiled(part: str, program: Program, request: dict[str, Any], folder: Path) -> dict[str, bytes]:
    place = folder / part
    place.mkdir()
    module = program.graph.module(check_guards=False)
    try:
        torch._inductor.aot_compile(
            module, program.arguments, options=_options(place, request["arch"], _compiler(folder, request))
        )
    except Exception as error:  # the compilers raise errors of many kinds, none of them ours
        raise KernelError(f"the {part} part does not compile: {_said(error)}"[:1500]) from error
    files = {f"{part}/{LIBRARY}": (place / LIBRARY).read_bytes()}
    for path in sorted(place.rglob("*")):
        if path.suffix == ".json" and not path.name.endswith("_metadata.json"):
            files[f"{part}/{Path(LIBRARY).stem}.json"] = path.read_bytes()
    return files


def _said(error: Exception) -> str:
    """Its first line, and the one in which the C++ compiler, if it was that, names its first error."""
    first, _, rest = str(error).strip().partition("\n")
    output = rest.partition("Output:\n")[2].strip().splitlines()
    why = next((line for line in output if "error" in line), output[0] if output else "")
    return f"{type(error).__name__}: {first}" + (f": {why.strip()}" if why else "")


def _options(place: Path, arch: str, compiler: Path) -> dict[str, Any]:
    wanted = {
        "aot_inductor.output_path": str(place / LIBRARY),
        "aot_inductor.model_name_for_generated_files": "kernel",
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.enable_frame_pointer": False,
        "aot_inductor.precompile_headers": False,
        "cpp.cxx": (None, str(compiler)),
        "cpp.dynamic_threads": True,
        "cpp.simdlen": _BITS.get(arch),
        "cpp.vec_isa_ok": True if arch in _BITS else None,
        "compile_threads": 1,
        "fx_graph_cache": False,
    }
    known = torch._inductor.config.get_config_copy()
    return {name: value for name, value in wanted.items() if name in known}


def _compiler(folder: Path, request: dict[str, Any]) -> Path:
    """The C++ compiler with more arguments behind those that it is given: code for every machine of the
    target, and none of the places in which it was built."""
    places = {
        str(folder): "build",
        str(Path(torch.__file__).parent): "torch",
        sysconfig.get_path("include"): "python",
    }
    flags = ["-g0", "-fno-ident", "-Wl,--build-id=none", "-Wl,-s"]
    flags += [f"-ffile-prefix-map={place}={name}" for place, name in places.items()]
    arch = request["arch"]
    if platform.machine() == "x86_64" and arch in _MARCH:
        flags += [f"-march={_MARCH[arch]}", "-mno-avx512vnni", "-mno-avx512bf16", "-mno-amx-tile"]
    script = folder / "bin" / "g++"
    if not script.exists():
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(request["compiler"])} "$@" {shlex.join(flags)}\n')
        script.chmod(0o755)
    return script
