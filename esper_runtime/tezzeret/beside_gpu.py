"""Builds for GPUs. Their driver is out of the sandbox's reach: it wants devices, and address space without
bounds. So they run in a process of their own that has an empty folder, an environment made for it and a limit
on time, and ends with all that it started; what it compiles comes from a checked graph, as on CPUs."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from esper_runtime.contracts import SandboxError

_KEPT = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "LANG")
_MOST = 64 * 1024 * 1024


class GpuBuild:
    """One build in a process of its own.

    Args:
        payload: for `esper_runtime.tezzeret.build.build_parts`.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, seconds: float) -> bytes:
        """What `build_parts` returns.

        Raises:
            SandboxError: it took longer than ``seconds``, was interrupted, failed, or yields too much.
        """
        with tempfile.TemporaryDirectory(prefix="esper-build-") as folder:
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            environment |= {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"}
            environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
            with subprocess.Popen(
                [sys.executable, "-m", "esper_runtime.tezzeret.build", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            ) as self._process:
                try:
                    _, said = self._process.communicate(self._payload, timeout=seconds)
                except subprocess.TimeoutExpired:
                    raise SandboxError(f"the build was still running after {seconds:g} s") from None
                finally:
                    self.interrupt()
            result = Path(folder, "result")
            if self._process.returncode or not result.is_file() or result.stat().st_size > _MOST:
                words = said.decode(errors="replace").strip()[-500:]
                raise SandboxError(f"the build ended with code {self._process.returncode}: ...{words}")
            return result.read_bytes()

    def interrupt(self) -> None:
        """End it and all that it started, where it runs."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
