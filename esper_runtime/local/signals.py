"""Signals that a supervising process waits for together with the end of its children."""

import contextlib
import os
import select
import signal
from types import FrameType, TracebackType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalQueue:
    """Inside, SIGINT, SIGTERM and SIGHUP are put in a queue, and the end of a child wakes `wait`.

    SIGHUP stays ignored where it was, as `nohup` wants it. It works in the main thread of the process only,
    as signal handlers do.
    """

    def __init__(self) -> None:
        self._arrived: list[signal.Signals] = []
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def take(self) -> list[signal.Signals]:
        """Signals to stop that have arrived since the last call, in order."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def wait(self, seconds: float) -> None:
        """Return when a signal has arrived, a child has ended, or the time is over."""
        if not self._arrived and select.select([self._read], [], [], max(0.0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGCHLD):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._arrived.append(signal.Signals(number))
