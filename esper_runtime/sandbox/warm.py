"""The program's side: starts the warm process, hands it jobs, and ends it when it does not answer."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

from esper_runtime.contracts.errors import SandboxError
from esper_runtime.sandbox import calls, wire
from esper_runtime.sandbox.limits import Frame, Limits, Outcome, Profile, Violation
from esper_runtime.sandbox.watch import PATIENCE

_START_SECONDS: Final = 120.0
_SLACK_SECONDS: Final = 20.0
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a driver that finds a GPU starts threads, and jobs reach none anyway
}


class Sandbox:
    """A warm process that runs each job in a limited process of its own.

    It is started by the first job and may be used by several threads; jobs run one after another. A context
    manager: leaving it ends the process.

    Args:
        modules: imported once, before the first job; they must start no threads.
        warm: ``package.module:name`` of a function that is called once, unconfined, so that nothing has to be
            imported late; it gets an empty payload.
        readable: what jobs may read beside the Python installation and this package.
        environment: more variables for the warm process and its jobs.
    """

    def __init__(
        self,
        modules: Sequence[str] = (),
        *,
        warm: str = "",
        readable: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = {
            "modules": list(modules),
            "warm": warm,
            "readable": [str(path.resolve()) for path in readable],
        }
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._base: str | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the warm process, where it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the warm process where it does not run.

        Raises:
            SandboxError: it did not come up; the text says why.
        """
        with self._turn:
            self._start()

    def run(
        self,
        function: str,
        payload: bytes = b"",
        *,
        limits: Limits | None = None,
        files: Mapping[str, bytes] | None = None,
        profile: Profile = Profile.COMPUTE,
    ) -> Outcome:
        """Run ``function(payload, workspace) -> bytes`` in a limited process and wait for it.

        Args:
            function: ``package.module:name``; trusted, importable without the job's files.
            payload: its first argument.
            limits: of time, memory, output and so on.
            files: put into the job's own folder before it is confined; names are relative paths.
            profile: computing, or building with a compiler.

        Raises:
            SandboxError: the sandbox cannot be set up here, there is no such function, or the warm process
                ended.
        """
        limits = limits or Limits()
        named = files or {}
        for name in named:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise SandboxError(f"a job's file must have a relative path inside its folder, not {name!r}")
        header = {
            "function": function,
            "files": list(named),
            "limits": asdict(limits),
            "profile": profile.value,
        }
        with self._turn:
            control = self._start()
            control.settimeout(PATIENCE * limits.seconds + _SLACK_SECONDS)
            try:
                wire.send(control, header, [payload, *named.values()])
                answer = wire.receive(control)
            except OSError as error:
                self._end()
                raise SandboxError(f"the sandbox's warm process does not answer: {error}") from error
            if answer is None:
                code = self._end()
                raise SandboxError(f"the sandbox's warm process ended with code {code}")
        return _outcome(*answer)

    def close(self) -> None:
        """End the warm process."""
        with self._turn:
            self._end()

    def _start(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._end()
        calls.architecture()
        ours, theirs = socket.socketpair()
        self._base = tempfile.mkdtemp(prefix="esper-sandbox-")
        os.chmod(self._base, 0o711)
        paths = [str(Path(path).resolve()) for path in sys.path]
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "esper_runtime.sandbox.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env={**self._environment, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
            theirs.close()
            self._control = ours
            ours.settimeout(_START_SECONDS)
            try:
                wire.send(ours, {**self._settings, "paths": paths, "base": self._base})
                answer = wire.receive(ours)
            except OSError as error:
                self._end()
                raise SandboxError(f"the sandbox's warm process did not come up: {error}") from error
            if answer is None or "failed" in answer[0]:
                code = self._end()
                errors.seek(0)
                said = (
                    answer[0]["failed"] if answer else errors.read()[-2000:].decode(errors="replace").strip()
                )
                raise SandboxError(f"the sandbox's warm process did not come up (code {code}): {said}")
        return ours

    def _end(self) -> int | None:
        """Close the connection; the warm process ends itself and its job, or is killed."""
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        code = None
        if process is not None:
            try:
                code = process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None
        return code


def _outcome(header: dict[str, Any], blobs: list[bytes]) -> Outcome:
    if "failed" in header:
        raise SandboxError(header["failed"])
    said = header["outcome"]
    violation = said.pop("violation")
    said["layers"] = tuple(said["layers"])
    frames = tuple(Frame(data=blob, **seen) for seen, blob in zip(header["frames"], blobs, strict=False))
    return Outcome(
        **said,
        frames=frames,
        result=blobs[-1] if header["returned"] else None,
        violation=Violation(**violation) if violation else None,
    )
