"""Kernels for a run that begins: those that are not on this machine's shelf are made and tested first.

The forge is called directly: processes of this machine's own make each kernel, test it in a sandbox, and
sign. It happens once for each kernel and machine; training waits for it before its first step, and never
again.
"""

import contextlib
import fcntl
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from esper_runtime.artifact import KeyRing, Trust
from esper_runtime.contracts import (
    Blueprint,
    CompileWork,
    EsperError,
    KernelError,
    KernelSpec,
    UsableKernel,
    canonical_json,
)
from esper_runtime.urza import Shelf

PROCESSES = 2
WAKE_SECONDS = 0.2
"""Between two looks at whether to stop."""
TRIES = 2
"""How often a kernel is begun whose process died, before it is given up."""

Told = Callable[[str, int, int], None]
"""Is told what is done, how many kernels are ready and how many there will be."""


class ForgingStoppedError(EsperError):
    """The run was told to stop while its kernels were made; they go on where they stand at the next start."""


@dataclass(frozen=True)
class Prepared:
    """What a run may use: verified kernels by id, and why the others that it wanted may not be used."""

    kernels: Mapping[str, UsableKernel]
    refused: Mapping[str, str] = field(default_factory=dict)


def prepare(
    specs: Sequence[KernelSpec],
    graphs: Mapping[str, Blueprint],
    home: Path,
    told: Told,
    stopping: Callable[[], bool],
) -> Prepared:
    """See to it that kernels are on the shelf, validated, as far as they pass.

    Args:
        specs: the kernels.
        graphs: their blueprints by id.
        home: the machine's folder.
        told: is told how far it is, at least every second.
        stopping: asked now and then whether to stop.

    Raises:
        ForgingStoppedError: it was told to stop.
        KernelError: the forge cannot work here; the text says why and what to do.
        ArtifactError: keys or shelf cannot be used.
    """
    shelf, trust = Shelf(home), KeyRing(home).trust
    wanted = {spec.kernel_id: spec for spec in specs}
    kernels, refused = shelf.usable(wanted, trust)
    if _to_make(refused):
        with _alone(shelf.folder, told, stopping, len(wanted)):
            kernels, refused = shelf.usable(wanted, trust)
            specs = [wanted[kernel] for kernel in _to_make(refused)]
            works = [CompileWork(spec=spec, graph=graphs[spec.blueprint]) for spec in specs]
            if works:
                with _Forge(home, len(wanted), told, stopping) as forge:
                    forge.make(works)
        kernels, refused = shelf.usable(wanted, trust)
    if refused and not kernels:
        raise KernelError(f"none of the {len(wanted)} kernels may be used: {next(iter(refused.values()))}")
    names = {kernel: graphs[spec.blueprint].name for kernel, spec in wanted.items()}
    return Prepared(kernels, {kernel: f"{names[kernel]}: {error}" for kernel, error in refused.items()})


def on_shelf(
    specs: Mapping[str, KernelSpec], graphs: Mapping[str, Blueprint], shelf: Shelf, trust: Trust
) -> Prepared:
    """What is there of kernels that others make: those that are not there yet are not refused.

    Args:
        specs: the kernels by id.
        graphs: their blueprints by id.
        shelf: where they lie.
        trust: whom we believe.
    """
    kernels, refused = shelf.usable(specs, trust)
    bad = {kernel: error for kernel, error in refused.items() if isinstance(error, KernelError)}
    names = {kernel: graphs[specs[kernel].blueprint].name for kernel in bad}
    return Prepared(kernels, {kernel: f"{names[kernel]}: {error}" for kernel, error in bad.items()})


def _to_make(refused: Mapping[str, EsperError]) -> list[str]:
    """What making it would help."""
    return [kernel for kernel, error in refused.items() if not isinstance(error, KernelError)]


@contextlib.contextmanager
def _alone(folder: Path, told: Told, stopping: Callable[[], bool], total: int) -> Iterator[None]:
    """Inside, no other process of this machine makes kernels for a run that begins."""
    with (folder / ".forging").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                told("another run on this machine makes kernels", 0, total)
                _check(stopping)
                time.sleep(WAKE_SECONDS)
        yield


def _check(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise ForgingStoppedError("stopped while kernels were made")


class _Smith:
    """A process that makes and tests one kernel after the other.

    Args:
        home: the machine's folder.
    """

    def __init__(self, home: Path) -> None:
        self.work: CompileWork | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.tolaria.smith", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(module_paths())},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.answers: IO[bytes] = self._process.stdout

    def begin(self, work: CompileWork) -> None:
        """Hand over the next kernel."""
        assert self._process.stdin is not None
        self.work = work
        with contextlib.suppress(BrokenPipeError):  # its end is seen where its answer is read
            self._process.stdin.write(canonical_json(work.model_dump(mode="json", by_alias=True)) + b"\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """What it says of the kernel; None where it died."""
        line = self.answers.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def release(self) -> None:
        """Let it end: there is no more work."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> str:
        """Wait for its end, or end it in its work; returns the last that it said in its distress."""
        self.release()
        try:
            self._process.wait(timeout=5 if self.work is None else 0.1)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.answers.close()
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        self._errors.close()
        return lines[-1] if lines else f"it ended with code {self._process.returncode}"


class _Forge:
    """A few processes that make kernels. A context manager: leaving it ends them."""

    def __init__(self, home: Path, total: int, told: Told, stopping: Callable[[], bool]) -> None:
        self._home, self._total, self._told, self._stopping = home, total, told, stopping
        self._smiths: list[_Smith] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> "_Forge":
        return self

    def __exit__(self, *_: object) -> None:
        for smith in self._smiths:
            smith.release()
        for smith in self._smiths:
            smith.end()
        self._selector.close()

    def make(self, works: Sequence[CompileWork]) -> None:
        """Make kernels, test them, and put them on the shelf.

        Raises:
            ForgingStoppedError: it was told to stop.
            KernelError: the forge cannot work here.
        """
        waiting = deque(works)
        tries: dict[str, int] = {}
        open_ = len(waiting)
        for _ in range(min(PROCESSES, open_)):
            self._start(waiting.popleft())
        while open_:
            self._told("kernels are made and tested", self._total - open_, self._total)
            _check(self._stopping)
            for key, _ in self._selector.select(WAKE_SECONDS):
                smith: _Smith = key.data
                assert smith.work is not None
                work, answer = smith.work, smith.answer()
                if answer is None:
                    self._died(smith, work, tries)
                    self._start(work)
                    continue
                if "broken" in answer:
                    raise KernelError(
                        f"kernels cannot be tested on this machine: {answer['broken']}. No seed runs that "
                        f"has not passed; mend it, or train without growth "
                        f"(spec.growth.controller.kind: Off)"
                    )
                open_ -= 1
                smith.work = None
                if waiting:
                    smith.begin(waiting.popleft())
        self._told("kernels are made and tested", self._total, self._total)

    def _start(self, work: CompileWork) -> None:
        smith = _Smith(self._home)
        self._smiths.append(smith)
        self._selector.register(smith.answers, selectors.EVENT_READ, smith)
        smith.begin(work)

    def _died(self, smith: _Smith, work: CompileWork, tries: dict[str, int]) -> None:
        """Forget a process that died; raise `KernelError` where the kernel has cost too many."""
        self._selector.unregister(smith.answers)
        self._smiths.remove(smith)
        last = smith.end()
        kernel = work.spec.kernel_id
        tries[kernel] = tries.get(kernel, 0) + 1
        if tries[kernel] >= TRIES:
            raise KernelError(
                f"kernel {kernel} ({work.graph.name}) cannot be made: its process died {TRIES} times, last "
                f"with: {last}"
            )


def module_paths() -> list[str]:
    """Where this process finds its modules, so that its children find the same ones there."""
    return [str(Path(path).resolve()) for path in sys.path]
