"""A process that ends when the one that started it is gone, however that came."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Self

from esper_runtime.local.processes import ProcessRecord, record_of

PARENT = "ESPER_PARENT"
"""Environment variable: process id and start time of who started this process."""
_EVERY, _GRACE = 1.0, 10.0


@dataclass(frozen=True)
class Parent:
    """Who started this process."""

    record: ProcessRecord

    @classmethod
    def me(cls) -> Self:
        """This process, for its children."""
        return cls(record_of("parent", os.getpid()))

    @classmethod
    def from_environment(cls) -> Self | None:
        """Who is named in the environment; None where nobody is."""
        return cls.named(os.environ.get(PARENT, ""))

    @classmethod
    def named(cls, text: str) -> Self | None:
        """Who is named by a `text`; None where nobody is."""
        pid, _, started = text.partition("-")
        if not (pid.isdigit() and started.isdigit() and int(pid)):
            return None
        return cls(ProcessRecord(role="parent", pid=int(pid), started=int(started)))

    @property
    def text(self) -> str:
        """For the environment."""
        return f"{self.record.pid}-{self.record.started}"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.record.alive


def end_with_parent() -> None:
    """Have this process told to end (SIGTERM) when its parent is gone, and killed where it does not."""
    parent = Parent.from_environment()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), name="esper-parent", daemon=True).start()


def _watch(parent: Parent) -> None:
    while parent.alive:
        time.sleep(_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)
