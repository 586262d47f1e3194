"""Namespaces of the warm process and the small root that its jobs see."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper_runtime.sandbox import system

SCRATCH: Final = Path("/scratch")
_DEVICES: Final = ("null", "zero", "urandom", "random")
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/alternatives", "/etc/ld.so.cache")
_KINDS: Final = (
    (system.CLONE_NEWNET, "network-namespace"),
    (system.CLONE_NEWIPC, "ipc-namespace"),
    (system.CLONE_NEWUTS, "uts-namespace"),
)


@dataclass(frozen=True)
class Room:
    """What the warm process could set up for its jobs.

    Attributes:
        layers: names of the namespaces that are active.
        base: folder for all that is made here; whoever started the warm process removes it.
        root: folder on which the jobs' root is mounted, or None without a mount namespace.
        processes: whether each job gets a process namespace.
    """

    layers: tuple[str, ...]
    base: Path
    root: Path | None
    processes: bool


def installation(paths: Iterable[Path]) -> tuple[Path, ...]:
    """What a job may read: the system's libraries, Python, this package and ``paths``; nothing twice."""
    package = Path(__file__).resolve().parent.parent
    wanted = [Path(path) for path in _SYSTEM]
    for prefix in (Path(sys.base_prefix), Path(sys.prefix)):
        wanted += [
            prefix / "lib",
            prefix / "lib64",
            prefix / "bin",
            prefix / "include",
            prefix / "pyvenv.cfg",
        ]
    wanted += [package, *paths]
    kept: list[Path] = []
    for path in sorted(set(wanted), key=lambda path: len(path.parts)):
        if path.exists() and not any(other in path.parents or other == path for other in kept):
            kept.append(path)
    return tuple(kept)


def enter(readable: Iterable[Path], base: Path) -> Room:
    """Leave the namespaces that may be left. Call it before the process has threads.

    Where this takes a process of its own (without privileges), this one waits for it and ends with its code,
    and the call returns in the new one.

    Args:
        readable: what jobs may read.
        base: an empty folder for what is mounted and for the jobs' folders.
    """
    layers: list[str] = []
    processes = False
    if os.geteuid() != 0:
        if not _succeeds(_own_users):
            return Room((), base, None, False)
        processes = _succeeds(_own_users, _own_processes)
        _own_users()
        layers.append("user-namespace")
        if processes:
            _own_processes()
    for kind, name in _KINDS:
        if _may(kind):
            layers.append(name)
    root = None
    if _may(system.CLONE_NEWNS):
        root = _prepare_root(readable, base)
        layers.append("mount-namespace")
    if os.geteuid() == 0:
        processes = _may(system.CLONE_NEWPID) and _same_processes()
    if processes:
        layers.append("pid-namespace")
    return Room(tuple(layers), base, root, processes)


def _succeeds(*steps: Callable[[], None]) -> bool:
    """Whether the steps work, tried in a process that is then gone: a namespace cannot be left again."""
    pid = os.fork()
    if pid == 0:
        try:
            for step in steps:
                step()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _own_users() -> None:
    uid, gid = os.geteuid(), os.getegid()
    system.unshare(system.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _own_processes() -> None:
    """Go on as the first process of a process namespace, with a /proc that shows it."""
    system.unshare(system.CLONE_NEWNS | system.CLONE_NEWPID)
    pid = os.fork()
    if pid != 0:
        os.closerange(3, 1024)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    system.prctl(system.PR_SET_PDEATHSIG, 9)
    system.mount("none", "/", None, system.MS_REC | system.MS_PRIVATE)
    _mount_proc(Path("/proc"))


def _mount_proc(place: Path) -> None:
    system.mount("proc", str(place), "proc", system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC)


def _may(kind: int) -> bool:
    try:
        system.unshare(kind)
    except OSError:
        return False
    return True


def _same_processes() -> bool:
    """Make this process's own process namespace that of its next child again."""
    try:
        with open("/proc/self/ns/pid", "rb") as own:
            system.setns(own.fileno(), system.CLONE_NEWPID)
    except OSError:
        return False
    return True


def new_processes() -> None:
    """The next child of this process is the first one of a new process namespace."""
    system.unshare(system.CLONE_NEWPID)


def old_processes() -> None:
    """Undo `new_processes` for later children."""
    if not _same_processes():
        raise OSError("the warm process cannot return to its own process namespace")


def _prepare_root(readable: Iterable[Path], base: Path) -> Path:
    system.mount("none", "/", None, system.MS_REC | system.MS_PRIVATE)
    root = base / "root"
    root.mkdir()
    system.mount("tmpfs", str(root), "tmpfs", system.MS_NOSUID | system.MS_NODEV, "mode=755,size=1m")
    for path in readable:
        place = root / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(os.readlink(path))
        else:
            _bind(path, place)
    (root / "dev").mkdir(exist_ok=True)
    for name in _DEVICES:
        _bind(Path("/dev") / name, root / "dev" / name, writable=True)
    for name in ("proc", SCRATCH.name):
        (root / name).mkdir(exist_ok=True)
    if not (root / "tmp").exists():
        (root / "tmp").symlink_to(SCRATCH)
    return root


def _bind(path: Path, place: Path, *, writable: bool = False) -> None:
    if path.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.touch()
    system.mount(str(path), str(place), None, system.MS_BIND | system.MS_REC)
    if not writable:
        # Flags that the original carries are locked in a user namespace: they must be asked for again.
        kept = os.statvfs(path).f_flag & (system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC)
        flags = system.MS_BIND | system.MS_REMOUNT | system.MS_RDONLY | system.MS_NOSUID | kept
        system.mount("none", str(place), None, flags)


def open_scratch(room: Room, folder_bytes: int) -> Path:
    """In a job's process: a folder of its own for the job, as seen before `close_room`."""
    if room.root is None:
        scratch = room.base / "job"
        scratch.mkdir(mode=0o700)
        return scratch
    system.unshare(system.CLONE_NEWNS)
    scratch = room.root / SCRATCH.name
    system.mount(
        "tmpfs", str(scratch), "tmpfs", system.MS_NOSUID | system.MS_NODEV, f"mode=700,size={folder_bytes}"
    )
    return scratch


def close_room(room: Room) -> None:
    """In a job's process: nothing but the small root is visible from here on."""
    if room.root is None:
        return
    if room.processes:
        # In containers that hide parts of /proc a new one may not be mounted; then there is none.
        with contextlib.suppress(PermissionError):
            _mount_proc(room.root / "proc")
    os.chdir(room.root)
    system.pivot_root(".", ".")
    system.unmount(".")
    os.chdir("/")
    system.mount("none", "/", None, system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY | system.MS_NOSUID)


def remove_scratch(room: Room) -> None:
    """In the warm process: the folder of a job that is gone. One in a mount namespace went with it."""
    if room.root is None:
        shutil.rmtree(room.base / "job", ignore_errors=True)
