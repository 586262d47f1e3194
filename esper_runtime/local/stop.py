"""Ctrl-C and SIGTERM: the first asks for a checkpoint, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

EXIT_KILLED = 130
EXIT_LATE = 1
EXIT_SAVED = 75


class StopSignals:
    """Inside, the first SIGINT or SIGTERM calls the function given to `forward`; a second one quits hard.

    Before `forward` is called the first one raises `KeyboardInterrupt`: there is nothing to save yet.

    Args:
        say: prints a line for the person.
        grace_seconds: time from the first signal to the end of the block; then the process ends without a
            new checkpoint, or where `saved` was called, without what was still to be done after it.
    """

    def __init__(self, say: Callable[[str], None], grace_seconds: float) -> None:
        self._say = say
        self._grace_seconds = grace_seconds
        self._timer: threading.Timer | None = None
        self._stop: Callable[[str], None] | None = None
        self._saved = False
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self.received: str | None = None
        """Name of the signal that asked to stop, None while none did."""

    def forward(self, stop: Callable[[str], None]) -> None:
        """From now on hand the first signal to ``stop`` with a reason in words."""
        self._stop = stop

    def saved(self) -> None:
        """Note that what is to be kept is on disk: who ends late from now on has not failed."""
        self._saved = True

    def stopping(self) -> bool:
        """True when the person has asked to stop."""
        return self.received is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(EXIT_KILLED)
        self.received = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self._stop is None:
            raise KeyboardInterrupt
        self._say(f"{self.received}: stopping with a checkpoint; once more quits at once")
        self._timer = threading.Timer(self._grace_seconds, self._too_late)
        self._timer.daemon = True
        self._timer.start()
        self._stop(self.received)

    def _too_late(self) -> None:
        if self._saved:
            os.write(2, b"the checkpoint is written; what came after it took too long and was left\n")
            os._exit(EXIT_SAVED)
        text = f"no checkpoint within {self._grace_seconds:g} s; the last one before the signal is kept\n"
        os.write(2, text.encode())
        os._exit(EXIT_LATE)
