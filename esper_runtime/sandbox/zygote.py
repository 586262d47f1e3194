"""The warm process: imports once what its jobs need, then forks a process for each job and watches it.

It holds no key, no password and no open file of the program that started it; its environment is made for it.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper_runtime.contracts.errors import SandboxError
from esper_runtime.sandbox import confine, job, namespaces, system, wire
from esper_runtime.sandbox.limits import Limits, Outcome, Profile
from esper_runtime.sandbox.watch import Watch

_DRIVER = "cuda"
"""How names of the threads of CUDA's driver begin."""


def main() -> int:
    """Serve the socket whose descriptor is the first argument, until it is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    greeting = wire.receive(control)
    if greeting is None:
        return 0
    settings = greeting[0]
    sys.path[:] = settings["paths"]
    readable = namespaces.installation(Path(path) for path in settings["readable"])
    room = namespaces.enter(readable, Path(settings["base"]))
    try:
        try:
            uid = _uid(readable, room)
            for module in settings["modules"]:
                importlib.import_module(module)
            if settings["warm"]:
                job.find(settings["warm"])(b"", job.Workspace(Path(os.devnull)))
            gc.collect()
            gc.freeze()
            _alone()
            system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
        except Exception as error:
            wire.send(control, {"failed": f"{type(error).__name__}: {error}"})
            return 1
        wire.send(control, {"ready": os.getpid()})
        _serve(control, room, uid, readable)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _uid(readable: tuple[Path, ...], room: namespaces.Room) -> int | None:
    """A free uid, unless another one could not read the installation."""
    if room.root is None and not all(_open_to_all(path) for path in readable):
        return None
    return confine.free_uid()


def _open_to_all(path: Path) -> bool:
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (path, *path.parents) if place.is_dir())


def _alone() -> None:
    """A fork copies one thread only, so no module may have started another that a job could wait for.

    CUDA's driver has one as soon as PyTorch asks whether there is a GPU. It is left out: jobs see no GPU.

    Raises:
        SandboxError: where a module that was imported has started one.
    """
    mine = str(threading.get_native_id())
    others = [Path(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task") if task != mine]
    names = sorted(name for other in others if not (name := other.read_text().strip()).startswith(_DRIVER))
    if names:
        raise SandboxError(f"the modules that the sandbox imports started threads: {', '.join(names)}")


def _serve(
    control: socket.socket, room: namespaces.Room, uid: int | None, readable: tuple[Path, ...]
) -> None:
    while (message := wire.receive(control)) is not None:
        header, (payload, *contents) = message
        task = confine.Task(
            header["function"],
            payload,
            dict(zip(header["files"], contents, strict=True)),
            Profile(header["profile"]),
            Limits(**header["limits"]),
        )
        try:
            function = job.find(task.function)
        except (ImportError, AttributeError) as error:
            wire.send(control, {"failed": f"there is no function {task.function!r}: {error}"})
            continue
        try:
            watch = _fork(task, function, room, uid, readable, control.fileno())
        except OSError as error:
            wire.send(control, {"failed": f"no process for a job: {error}"})
            continue
        outcome = watch.run()
        _reap()
        namespaces.remove_scratch(room)
        if watch.refused is not None:
            wire.send(control, {"failed": watch.refused})
            continue
        _answer(control, outcome)


def _answer(control: socket.socket, outcome: Outcome) -> None:
    header: dict[str, Any] = asdict(outcome)
    frames = header.pop("frames")
    result = header.pop("result")
    blobs = [frame.pop("data") for frame in frames]
    wire.send(
        control,
        {"outcome": header, "frames": frames, "returned": result is not None},
        [*blobs, *([result] if result is not None else [])],
    )


def _fork(
    task: confine.Task,
    function: job.Function,
    room: namespaces.Room,
    uid: int | None,
    readable: tuple[Path, ...],
    hurry: int,
) -> Watch:
    output, output_in = os.pipe()
    log, log_in = os.pipe()
    answers_out, answers = os.pipe()
    channel, other = socket.socketpair()
    try:
        if room.processes:
            namespaces.new_processes()
        pid = os.fork()
        if pid == 0:
            job.run(task, function, room, uid, readable, (log_in, output_in, answers_out, other.fileno()))
        if room.processes:
            namespaces.old_processes()
    finally:
        for end in (output_in, log_in, answers_out):
            os.close(end)
        other.close()
    os.set_blocking(output, False)
    os.set_blocking(log, False)
    return Watch(pid, task.limits, readable, output, log, answers, channel, hurry)


def _reap() -> None:
    """End whatever the job left behind: it became this process's child."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children")
    while left := [int(word) for word in mine.read_text("ascii").split()]:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main())
