"""The pipeline ``standard``: native code for the eager graph, built by a compiler in a sandbox.

Tracing and compiling run in a process of their own that sees the system's libraries, this installation and
an empty folder, with limits on time, memory, processes and files, and without a network. What comes back is
an archive in its one allowed form, with the names that are expected and no others.
"""

import os
import re
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper_runtime.artifact import decode_archive
from esper_runtime.contracts import Blueprint, KernelError, KernelSpec, SandboxError, canonical_json
from esper_runtime.kasmina.kernels import Call, compiler, refuse_compiled
from esper_runtime.sandbox import Limits, Profile, Sandbox
from esper_runtime.tezzeret.build import MADE, REFUSED

MIB: Final = 1024 * 1024
LIMITS: Final = Limits(
    seconds=300.0,
    memory=4096 * MIB,
    output=64 * MIB,
    log=4 * MIB,
    processes=64,
    files=1024,
    file_bytes=256 * MIB,
    folder_bytes=1024 * MIB,
)
"""Of one build; the greatest seen took 40 s on a free core, 1.2 GiB and 40 MiB of files."""

_CALL: Final = "call.json"
_PARTS: Final = re.compile(r"(forward|backward)/(model\.so|model\.json)")


@dataclass(frozen=True)
class Built:
    """What the compiler made.

    Attributes:
        parts: files of the artifact by name.
        trains: whether there is a backward part.
        layers: of the sandbox that were active.
    """

    parts: dict[str, bytes]
    trains: bool
    layers: tuple[str, ...]


class Builder:
    """Builds native code in a sandbox whose warm process is kept between builds. A context manager.

    Args:
        limits: of one build.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._sandbox: Sandbox | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> "Builder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the warm process."""
        with self._turn:
            if self._sandbox is not None:
                self._sandbox.close()
                self._sandbox = None

    def interrupt(self) -> None:
        """End a build that another thread waits for: it raises `SandboxError` there."""
        sandbox = self._sandbox
        warm = sandbox.pid if sandbox is not None else None
        if warm is not None:
            with suppress(ProcessLookupError):
                os.kill(warm, signal.SIGKILL)

    def build(self, spec: KernelSpec, blueprint: Blueprint) -> Built:
        """Compile a kernel's parts.

        Raises:
            KernelError: the blueprint cannot be compiled so, or for such a device; trying again would not
                help.
            SandboxError: the build was ended by a limit, or could not be started.
        """
        refuse_compiled(spec.target.device)
        request = {
            "graph": blueprint.model_dump(mode="json", by_alias=True),
            "interface": spec.interface.model_dump(mode="json", by_alias=True),
            "arch": spec.target.arch,
            "compiler": compiler(),
        }
        payload = canonical_json(request)
        with self._turn:
            result, layers = self._confined(payload)
        if result.startswith(REFUSED):
            raise KernelError(result.removeprefix(REFUSED).decode(errors="replace")[:1800])
        parts = decode_archive(result.removeprefix(MADE))
        return Built(parts, _trains(parts), layers)

    def _confined(self, payload: bytes) -> tuple[bytes, tuple[str, ...]]:
        if self._sandbox is None:
            self._sandbox = Sandbox(
                modules=["esper_runtime.tezzeret.build"],
                warm="esper_runtime.tezzeret.build:warm",
                readable=_installation(Path(compiler())),
            )
        outcome = self._sandbox.run(
            "esper_runtime.tezzeret.build:build_parts",
            payload,
            limits=self._limits,
            profile=Profile.BUILD,
        )
        if outcome.result is None or not outcome.finished:
            said = f"; it printed: ...{outcome.log[-500:]}" if outcome.log else ""
            raise SandboxError(f"the build: {outcome.reason}{said}")
        return outcome.result, outcome.layers


def _installation(compiler: Path) -> list[Path]:
    """What a compiler reads that is installed in a folder of its own, such as conda's or one in /opt."""
    found: list[Path] = []
    for path in {compiler.absolute(), compiler.resolve()}:
        found.append(path)
        if path.parent.name == "bin":
            prefix = path.parent.parent
            found += [prefix / name for name in ("bin", "lib", "lib64", "libexec", "include")]
            found += prefix.glob("*-linux-*")  # the C library's headers, for instance
    return found


def _trains(parts: dict[str, bytes]) -> bool:
    """Whether there is a backward part, after a look at what there is.

    Raises:
        SandboxError: it is not what a build yields.
    """
    strange = [name for name in parts if name != _CALL and _PARTS.fullmatch(name) is None]
    if strange or _CALL not in parts:
        raise SandboxError(f"a build yielded the files {sorted(parts)}, which are not those of a kernel")
    return bool(Call.decoded(parts[_CALL]).learned)
