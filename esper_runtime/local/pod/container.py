"""A container made ready: writable places, and the keys of the mounted Secret where Esper trusts them.

Kubernetes mounts a Secret as links to files of another user, and an emptyDir as a folder in which everybody
may write. Esper uses neither for keys: they are copied to a folder of this user's own.
"""

import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

from esper_runtime.artifact import HOME_VARIABLE, TrustList, esper_home, guarded_folder, write_atomically
from esper_runtime.artifact.guarded import ALONE_VARIABLE
from esper_runtime.artifact.trust import KEYS_FOLDER, TRUST_FILE
from esper_runtime.contracts import InputError, Role
from esper_runtime.oona import BUS_VARIABLE, LIBRARY_VARIABLE

CONFIG = Path("/etc/esper")
"""Where the operator's Secret is mounted."""
DATA = Path("/var/esper")
"""Where the run's claim is mounted."""
TEMPORARY = Path("/tmp")
MOST_BYTES = 1_000_000
"""Of a file in the Secret; Kubernetes allows no larger Secrets."""

_BUS_FILE = "bus.json"
_PRIVATE_KEY = re.compile(r"(tezzeret|urabrask|karn|planner)-[0-9a-f]{16}\.pem")


def settle(config: Path, temporary: Path = TEMPORARY) -> None:
    """Set the environment of this process and its children, and copy the mounted keys to ``$ESPER_HOME``.

    What the environment names already stays. Everything that is written goes below ``temporary``, so that the
    root file system may be read-only and the user may be any.

    Args:
        config: folder of the mounted Secret: bus.json, trust.json, private keys where the role has one.
        temporary: a writable folder.

    Raises:
        InputError: ``temporary`` cannot be written to, or a mounted file cannot be read.
        ArtifactError: the home cannot be used.
    """
    temporary = Path(os.environ.setdefault("TMPDIR", str(temporary)))
    if not os.access(temporary, os.W_OK | os.X_OK):
        raise InputError(
            f"{temporary}: user {os.geteuid()} cannot write there; mount an emptyDir, or name another folder "
            f"with TMPDIR"
        )
    os.environ[ALONE_VARIABLE] = "1"
    os.environ.setdefault(HOME_VARIABLE, str(temporary / "esper-home"))
    if not os.access(os.environ.get("HOME", "/nowhere"), os.W_OK):
        os.environ["HOME"] = str(temporary)
    os.environ.setdefault("XDG_CACHE_HOME", str(temporary / "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(temporary / "cache" / "inductor"))
    os.environ.setdefault("MPLCONFIGDIR", str(temporary / "cache" / "matplotlib"))
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:  # a user without a name, as some clusters choose them; libraries ask for one
        os.environ.setdefault("USER", "esper")
        os.environ.setdefault("LOGNAME", "esper")
    _copy_keys(config)
    if (config / _BUS_FILE).exists():
        for variable in (BUS_VARIABLE, LIBRARY_VARIABLE):
            os.environ.setdefault(variable, str(config / _BUS_FILE))


def worker_settled(role: Role, config: Path) -> None:
    """`settle` for a worker, which has to have the private key of its role.

    Raises:
        InputError: also where the Secret holds no such key: what the worker signed would count nowhere.
    """
    settle(config)
    prefix = f"{role.value}-"
    trusted = any(path.exists() for path in _places(config, TRUST_FILE))
    if not trusted or not any(path.name.startswith(prefix) for path in _mounted_keys(config)):
        raise InputError(
            f"{config}: no private key {prefix}KEY.pem of {role.value} and its trust.json; the operator puts "
            f"both into the Secret esper-{role.value}, which is mounted there"
        )


def _copy_keys(config: Path) -> None:
    """Private keys (0600) first, then whom to trust, which names them: what is mounted and nobody else."""
    home = guarded_folder(esper_home() / KEYS_FOLDER)
    for path in _mounted_keys(config):
        write_atomically(home / path.name, _read(path), 0o600)
    trusted = next((path for path in _places(config, TRUST_FILE) if path.exists()), None)
    believed = _read(trusted) if trusted is not None else TrustList().encoded()
    write_atomically(home / TRUST_FILE, believed, 0o644)


def _mounted_keys(config: Path) -> list[Path]:
    return [path for path in _places(config, "*.pem") if _PRIVATE_KEY.fullmatch(path.name)]


def _places(config: Path, pattern: str) -> Iterator[Path]:
    for folder in (config / KEYS_FOLDER, config):
        yield from sorted(folder.glob(pattern))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: {path.stat().st_size:,} bytes; allowed: {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
