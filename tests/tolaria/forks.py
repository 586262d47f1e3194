"""Processes forked from one that has imported what a training needs, which takes longer than to train."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.tolaria.ranks", "torch._dynamo"])


class Process(Protocol):
    """What `Fork` and `subprocess.Popen` have in common."""

    @property
    def returncode(self) -> Any:
        """Exit code, a signal as a negative number; None while it runs."""
        ...

    def poll(self) -> int | None:
        """The same."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def communicate(self) -> tuple[Any, str]:
        """Wait until it has ended; the second is what it wrote to standard error."""
        ...


class Fork:
    """A call in a process of its own, with an environment of its own; nobody sees its standard output.

    Args:
        call: gives the exit code.
        arguments: of the call.
        environment: the whole of it.
    """

    def __init__(
        self, call: Callable[..., int], arguments: tuple[Any, ...], environment: Mapping[str, str]
    ) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._errors = Path(name)
        self._process = _SERVER.Process(target=_run, args=(call, arguments, dict(environment), name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, a signal as a negative number; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def communicate(self) -> tuple[None, str]:
        """Wait until it has ended; the second is what it wrote to standard error."""
        self._process.join()
        text = self._errors.read_text()
        self._errors.unlink()
        return None, text


def _run(
    call: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], errors: str
) -> None:
    for number, path in ((1, os.devnull), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(call(*arguments))
