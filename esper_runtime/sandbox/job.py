"""The life of a job inside its own process."""

import importlib
import json
import os
import signal
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper_runtime.sandbox import confine, namespaces, wire

LAYERS, DATA, RESULT, ERROR, REFUSED = b"L", b"D", b"R", b"E", b"X"
HEAD: Final = struct.Struct("=cI")
_LAST_DESCRIPTOR: Final = 65_536


@dataclass(frozen=True)
class Workspace:
    """What a job's function is given beside its payload.

    Attributes:
        folder: the job's own folder with the files that were sent along.
    """

    folder: Path

    def send(self, data: bytes) -> None:
        """Send a frame and wait until it was taken (time and memory are noted then)."""
        _send(DATA, data)


Function = Callable[[bytes, Workspace], bytes]


def find(path: str) -> Function:
    """The function ``package.module:name``; its module is imported where it was not."""
    module, _, name = path.partition(":")
    function: Function = getattr(importlib.import_module(module), name)
    return function


def _send(kind: bytes, data: bytes) -> None:
    wire.write_all(confine.OUTPUT, HEAD.pack(kind, len(data)) + data)
    os.read(confine.ANSWERS, 1)


def run(
    task: confine.Task,
    function: Function,
    room: namespaces.Room,
    uid: int | None,
    readable: tuple[Path, ...],
    descriptors: tuple[int, int, int, int],
) -> None:
    """Confine this process, run the job and end the process. Never returns.

    Args:
        task: the job.
        function: its function.
        room: what the warm process set up.
        uid: to run as.
        readable: what it may read.
        descriptors: ends of the log, the output, the answers and the channel for the listener.
    """
    code = 1
    try:
        _arrange(descriptors)
        try:
            layers, folder = confine.confine(task, room, uid, readable)
        except Exception as error:
            _send(REFUSED, str(error).encode())
            os._exit(3)
        _send(LAYERS, json.dumps([layers, str(folder)]).encode())
        _send(RESULT, function(task.payload, Workspace(folder)))
        code = 0
    except BaseException as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        _send(ERROR, text.encode()[:4000])
        code = 1
    finally:
        os._exit(code)


def _arrange(descriptors: tuple[int, int, int, int]) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    # Past the places where they go, so that none is overwritten before it was moved.
    log, output, answers, channel = (os.dup2(end, 50 + index) for index, end in enumerate(descriptors))
    null = os.open(os.devnull, os.O_RDONLY)
    places = (0, 1, 2, confine.OUTPUT, confine.ANSWERS, confine.CHANNEL)
    for place, end in zip(places, (null, log, log, output, answers, channel), strict=True):
        os.dup2(end, place)
    os.closerange(confine.CHANNEL + 1, _LAST_DESCRIPTOR)
