"""What a job's process does to itself before it runs anything that is not trusted."""

import math
import os
import resource
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper_runtime.contracts.errors import SandboxError
from esper_runtime.sandbox import filter as filters
from esper_runtime.sandbox import landlock, namespaces, system
from esper_runtime.sandbox.limits import Limits, Profile

# A job's descriptors: 0 is /dev/null, 1 and 2 its log.
OUTPUT: Final = 3
ANSWERS: Final = 4
CHANNEL: Final = 5

_HIGH_UIDS: Final = (range(1_879_048_192, 1_879_113_728), range(60_000, 65_000))


@dataclass(frozen=True)
class Task:
    """A job as the warm process got it."""

    function: str
    payload: bytes
    files: Mapping[str, bytes]
    profile: Profile
    limits: Limits


def free_uid() -> int | None:
    """A uid that nothing here uses, or None where this process may not change its own."""
    if os.geteuid() != 0:
        return None
    taken = {
        entry.stat().st_uid for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.exists()
    }
    for uids in _HIGH_UIDS:
        for uid in uids[os.getpid() % 4096 :]:
            if uid not in taken and _mapped(uid):
                return uid
    return None


def _mapped(uid: int) -> bool:
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= uid < first + count:
            return True
    return False


def confine(
    task: Task, room: namespaces.Room, uid: int | None, readable: tuple[Path, ...]
) -> tuple[tuple[str, ...], Path]:
    """Give up all that the job does not need.

    Args:
        task: the job.
        room: what the warm process set up.
        uid: to run as; None keeps the present one.
        readable: what the job may read beside its own folder.

    Returns:
        The layers that are active, and the job's folder, which is the working directory from here on.

    Raises:
        SandboxError: where seccomp filters cannot be installed.
        OSError: where another step fails that was possible for the warm process.
    """
    layers = [*room.layers, "rlimits"]
    # Read while /proc is there for certain.
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    space = pages * os.sysconf("SC_PAGE_SIZE") + 2 * task.limits.memory
    scratch = _fill(namespaces.open_scratch(room, task.limits.folder_bytes), task.files, uid)
    namespaces.close_room(room)
    if room.root is not None:
        scratch = namespaces.SCRATCH
    os.chdir(scratch)
    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(scratch)
    _limit(task, uid, space)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        layers.append("uid")
    system.drop_capabilities()
    layers.append("capabilities")
    system.prctl(system.PR_SET_PDEATHSIG, 9)
    system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
    layers.append("no-new-privileges")
    name = landlock.confine((*readable, *_kernel_files(room)), (scratch,))
    if name is not None:
        layers.append(name)
    layers += _filter(task)
    return tuple(layers), scratch


def _kernel_files(room: namespaces.Room) -> tuple[Path, ...]:
    """/proc, where it shows this job's processes and no others."""
    return (Path("/proc"),) if room.root is not None and room.processes else ()


def _fill(scratch: Path, files: Mapping[str, bytes], uid: int | None) -> Path:
    for name, data in files.items():
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(0o444)
    if uid is not None:
        for folder, _, inside in os.walk(scratch):
            os.chown(folder, uid, uid)
            for file in inside:
                os.chown(Path(folder) / file, uid, uid)
    return scratch


def _limit(task: Task, uid: int | None, space: int) -> None:
    limits = task.limits
    seconds = math.ceil(limits.seconds) + 1
    processes = limits.processes if task.profile is Profile.BUILD else 1
    if uid is None and task.profile is Profile.BUILD:
        processes += _own_processes()
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds * max(1, limits.processes)),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_AS, space),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _own_processes() -> int:
    uid, count = os.geteuid(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.exists() and entry.stat().st_uid == uid:
            count += 1
    return count


def _filter(task: Task) -> tuple[str, ...]:
    # Made before the filter is there: making a socket object asks for its name.
    channel = socket.socket(fileno=CHANNEL)
    if task.profile is Profile.COMPUTE:
        reported = filters.program(task.profile, task.limits, pid=os.getpid(), channel=CHANNEL, reported=True)
        try:
            listener = system.seccomp(system.SECCOMP_FILTER_FLAG_NEW_LISTENER, reported)
        except OSError:
            pass  # a kernel before 5.0, or a container that has a listener of its own: calls kill unnamed
        else:
            socket.send_fds(channel, [b"listener"], [listener])
            channel.close()
            os.close(listener)
            return ("seccomp", "seccomp-reports")
    channel.close()
    try:
        system.seccomp(
            0, filters.program(task.profile, task.limits, pid=os.getpid(), channel=CHANNEL, reported=False)
        )
    except OSError as error:
        raise SandboxError(
            f"seccomp filters cannot be installed here ({error}); untrusted kernels run nowhere without "
            "them: use a kernel with CONFIG_SECCOMP_FILTER and a container profile that allows seccomp(2)"
        ) from error
    return ("seccomp",)
