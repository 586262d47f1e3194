"""The few system calls that Python has no name for, by ctypes."""

import ctypes
import os
import struct
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LAST_CAPABILITY: Final = 63

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_MACHINE: Final = os.uname().machine


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def prctl(option: int, argument: int = 0) -> None:
    """``prctl(2)`` with one argument."""
    _checked(_LIBC.prctl(option, _long(argument), _long(0), _long(0), _long(0)), f"prctl {option}")


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _checked(_LIBC.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """``setns(2)``."""
    _checked(_LIBC.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """``mount(2)``."""
    _checked(
        _LIBC.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {target}",
    )


def unmount(target: str) -> None:
    """``umount2(2)``, at once for new lookups."""
    _checked(_LIBC.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """``pivot_root(2)``."""
    _checked(_LIBC.syscall(_long(_PIVOT_ROOT[_MACHINE]), os.fsencode(new), os.fsencode(old)), "pivot_root")


def drop_capabilities() -> None:
    """Empty the bounding set as far as it may be, and every set of this process."""
    for capability in range(_LAST_CAPABILITY + 1):
        _LIBC.prctl(PR_CAPBSET_DROP, _long(capability), _long(0), _long(0), _long(0))
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked(_LIBC.syscall(_long(_CAPSET[_MACHINE]), header, bytes(24)), "capset")


def seccomp(flags: int, program: bytes) -> int:
    """Install a filter of 8-byte BPF instructions; returns the listener's descriptor where asked for."""
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    return _checked(
        _LIBC.syscall(_long(_SECCOMP[_MACHINE]), _long(SECCOMP_SET_MODE_FILTER), _long(flags), filter_),
        "seccomp",
    )


def landlock_version() -> int:
    """Landlock's ABI here, 0 where there is none."""
    return max(0, int(_LIBC.syscall(_long(_LANDLOCK_CREATE), None, _long(0), _long(1))))


def landlock_create(attributes: bytes) -> int:
    """A new ruleset's descriptor."""
    return _checked(
        _LIBC.syscall(_long(_LANDLOCK_CREATE), attributes, _long(len(attributes)), _long(0)),
        "landlock ruleset",
    )


def landlock_allow(ruleset: int, access: int, folder: int) -> None:
    """Allow ``access`` beneath the open file or folder."""
    rule = struct.pack("=Qi", access, folder)
    _checked(_LIBC.syscall(_long(_LANDLOCK_ADD), _long(ruleset), _long(1), rule, _long(0)), "landlock rule")


def landlock_enforce(ruleset: int) -> None:
    """Bind this process and its children to the ruleset."""
    _checked(_LIBC.syscall(_long(_LANDLOCK_RESTRICT), _long(ruleset), _long(0)), "landlock")
