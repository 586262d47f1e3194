"""Landlock: which files a job may open, enforced by the kernel whatever its uid."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from esper_runtime.sandbox import system

_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _DEVICE = 1, 2, 4, 8, 1 << 14, 1 << 15
_FILE_RIGHTS: Final = _EXECUTE | _WRITE | _READ | _TRUNCATE | _DEVICE
_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK: Final = 3  # bind and connect over TCP, from version 4 on
_SCOPED: Final = 3  # abstract sockets and signals, from version 6 on


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> str | None:
    """Bind this process to the given files and folders; ``no_new_privs`` must be set.

    Args:
        readable: what may be read and executed; what is not there is left out.
        writable: folders in which it may do everything.

    Returns:
        The layer's name with its version, or None where the kernel has no Landlock.
    """
    version = system.landlock_version()
    if version == 0:
        return None
    handled = _RIGHTS[min(version, 5)]
    attributes = struct.pack("=QQQ", handled, _NETWORK if version >= 4 else 0, _SCOPED if version >= 6 else 0)
    ruleset = system.landlock_create(attributes[: 8 if version < 4 else 16 if version < 6 else 24])
    try:
        for path in readable:
            _allow(ruleset, path, (_EXECUTE | _READ | _LIST) & handled)
        for path in writable:
            _allow(ruleset, path, handled)
        for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
            _allow(ruleset, Path(device), (_READ | _WRITE) & handled)
        system.landlock_enforce(ruleset)
    finally:
        os.close(ruleset)
    return f"landlock-{version}"


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        system.landlock_allow(ruleset, access if path.is_dir() else access & _FILE_RIGHTS, descriptor)
    finally:
        os.close(descriptor)
