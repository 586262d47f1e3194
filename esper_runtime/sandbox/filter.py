"""Seccomp filters, as BPF."""

import struct
from typing import Final

from esper_runtime.sandbox.calls import CHANGING_FILES, COMPUTING, NEVER, OPENING, architecture, numbers
from esper_runtime.sandbox.limits import Limits, Profile

KILL: Final = 0x80000000
NOTIFY: Final = 0x7FC00000
ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_EPERM, _ENOSYS, _ENOTTY = 1, 38, 25

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_X32: Final = 0x40000000
_TERMINAL = (0x5401, 0x5413, 0x5451, 0x5450, 0x541B)  # TCGETS, TIOCGWINSZ, FIOCLEX, FIONCLEX, FIONREAD
_NAMES = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
_DESCRIPTORS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_CLONE_NAMESPACES = 0x7E020080
_AF_UNIX = 1


class _Program:
    """Instructions under construction. A block begins with a test of the number and always returns."""

    def __init__(self, refused: int) -> None:
        self.refused = refused
        self.code: list[bytes] = []

    def add(self, code: int, value: int, yes: int = 0, no: int = 0) -> None:
        self.code.append(struct.pack("=HBBI", code, yes, no, value & 0xFFFFFFFF))

    def returns(self, action: int) -> None:
        self.add(_RETURN, action)

    def when(self, number: int, *body: tuple[int, int, int, int]) -> None:
        """Run ``body`` (code, value, yes, no) for one system call."""
        self.add(_EQUAL, number, 0, len(body))
        for code, value, yes, no in body:
            self.add(code, value, yes, no)

    def always(self, number: int, action: int) -> None:
        self.when(number, (_RETURN, action, 0, 0))

    def one_of(
        self, number: int, argument: int, values: tuple[int, ...], action: int, otherwise: int
    ) -> None:
        """``action`` where the low half of the argument is among ``values``."""
        tests = [(_EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
        self.when(
            number,
            (_LOAD, _low(argument), 0, 0),
            *tests,
            (_RETURN, otherwise, 0, 0),
            (_RETURN, action, 0, 0),
        )

    def bits(self, number: int, argument: int, mask: int, action: int, otherwise: int) -> None:
        """``action`` where the argument has any bit of ``mask``."""
        self.when(
            number,
            (_LOAD, _low(argument), 0, 0),
            (_ANY_BIT, mask, 0, 1),
            (_RETURN, action, 0, 0),
            (_RETURN, otherwise, 0, 0),
        )

    def above(self, number: int, argument: int, bound: int, action: int, otherwise: int) -> None:
        """``action`` where the argument, 64 bits, is at least ``bound``."""
        high, low = bound >> 32, bound & 0xFFFFFFFF
        self.when(
            number,
            (_LOAD, _low(argument) + 4, 0, 0),
            (_AT_LEAST, high + 1, 3, 0),
            (_EQUAL, high, 0, 3),
            (_LOAD, _low(argument), 0, 0),
            (_AT_LEAST, low, 0, 1),
            (_RETURN, action, 0, 0),
            (_RETURN, otherwise, 0, 0),
        )

    def bytes(self) -> bytes:
        return b"".join(self.code)


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _begin(refused: int) -> _Program:
    program = _Program(refused)
    program.add(_LOAD, _ARCH)
    program.add(_EQUAL, architecture()[1], 1, 0)
    program.returns(KILL)
    program.add(_LOAD, _NUMBER)
    program.add(_AT_LEAST, _X32, 0, 1)
    program.returns(KILL)
    return program


def _computing(limits: Limits, pid: int, channel: int, refused: int, opening: int) -> bytes:
    known = numbers()
    program = _begin(refused)
    program.above(known["mmap"], 1, limits.memory, refused, ALLOW)
    for name in sorted(COMPUTING - {"mmap", "fcntl"}):
        if name in known:
            program.always(known[name], ALLOW)
    for name in (*OPENING, *(CHANGING_FILES if limits.file_bytes else ())):
        if name in known:
            program.always(known[name], opening)
    program.one_of(known["ioctl"], 1, _TERMINAL, ALLOW, _ERRNO | _ENOTTY)
    program.one_of(known["prctl"], 0, _NAMES, ALLOW, refused)
    program.one_of(known["fcntl"], 1, _DESCRIPTORS, ALLOW, refused)
    program.one_of(known["prlimit64"], 2, (0,), ALLOW, refused)
    program.one_of(known["tgkill"], 0, (pid,), ALLOW, refused)
    program.one_of(known["sendmsg"], 0, (channel,), ALLOW, refused)
    program.always(known["clone3"], _ERRNO | _ENOSYS)
    program.returns(refused)
    return program.bytes()


def _building() -> bytes:
    known = numbers()
    program = _begin(_ERRNO | _EPERM)
    for name in sorted(NEVER):
        if name in known:
            program.always(known[name], _ERRNO | _EPERM)
    program.one_of(known["socket"], 0, (_AF_UNIX,), ALLOW, _ERRNO | _EPERM)
    program.bits(known["clone"], 0, _CLONE_NAMESPACES, _ERRNO | _EPERM, ALLOW)
    program.always(known["clone3"], _ERRNO | _ENOSYS)
    program.returns(ALLOW)
    return program.bytes()


def program(profile: Profile, limits: Limits, *, pid: int, channel: int, reported: bool) -> bytes:
    """The filter of a job.

    Args:
        profile: of the job.
        limits: of the job; a mapping of ``memory`` bytes or more counts as refused.
        pid: of the job's process as it sees itself: it may signal itself (``abort`` does).
        channel: the descriptor over which it hands out its listener.
        reported: whether refused calls go to the listener, which then can say which it was; else they kill.
    """
    if profile is Profile.BUILD:
        return _building()
    if reported:
        return _computing(limits, pid, channel, NOTIFY, NOTIFY)
    return _computing(limits, pid, channel, KILL, ALLOW)
