"""Turns of tests that run in several processes: what one needs for itself, the others leave to it."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def turn(name: str, *, shared: bool = False) -> Iterator[None]:
    """Wait for one's turn among this user's processes on this machine.

    Args:
        name: of what they take turns with.
        shared: several that say so have it at the same time.
    """
    with (Path(tempfile.gettempdir()) / f"esper-tests-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing it would not do: children may have inherited it


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Inside, a test runs with others, or alone. Who waits to be alone keeps the door: nobody overtakes."""
    with ExitStack() as stack:
        with turn("door"):
            stack.enter_context(turn("room", shared=not alone))
        yield
