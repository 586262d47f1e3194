"""The way of a training to the library: wishes out, tested kernels in, by a process of its own.

The training thread touches queues only. The library, and the process, may go and come back: nothing here
raises because of it, and the run goes on with the kernels that it has.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from esper_runtime.contracts import FieldReport, KernelSpec, RunOnBus
from esper_runtime.tolaria.forging import module_paths
from esper_runtime.urza import FetchNews, FetchOrder, FetchStart, Offer, Wanted

RETRY_SECONDS = 2.0
"""After so long a process that has died is replaced."""
END_SECONDS = 8.0
"""So long it may take to send the last reports and end."""

log = logging.getLogger(__name__)


class LibraryLink:
    """Connects one run with the library.

    Args:
        address: file with that of the library's bus, with the rights of a training.
        place: the run's on the bus.
        made: whether anybody may be there who makes kernels for the library.
        cores: those that the work is done on; default: all that this process has.
    """

    def __init__(
        self,
        address: Path,
        place: RunOnBus,
        made: Callable[[], bool] = lambda: True,
        cores: frozenset[int] | None = None,
    ) -> None:
        self.made = made
        """Whether anybody may be there who makes what is wished for; False: waiting for it is of no use."""
        self.run = f"{place.namespace}/{place.run}"
        """The run's place on the bus."""
        self.offers: deque[Offer] = deque()
        """What the library has that the run does not have yet, for the training thread."""
        self.connected = False
        self.settled: set[str] = set()
        """Kernels of `Wanted` that the library has judged, and that are on the shelf where they passed; and
        those of ``named`` that it does not know."""
        self._address, self._place, self._cores = address, place, cores
        self._orders: list[FetchOrder] = []
        self._woken, self._closing = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, name="esper-library", daemon=True)

    def start(self, wanted: Wanted, home: Path) -> None:
        """Start the process; returns at once, connected or not.

        Args:
            wanted: by the run.
            home: the machine's folder, with the shelf and the keys.
        """
        self._start = FetchStart(home=home, address=self._address, place=self._place, wanted=wanted)
        self._thread.start()

    def wish(self, spec: KernelSpec) -> None:
        """Say that the run can use one more kernel; it comes as an offer."""
        self._order(FetchOrder(wish=spec))

    def report(self, identity: str, report: FieldReport) -> None:
        """Say what a kernel did; ``identity`` is the digest of the report's journal entry."""
        self._order(FetchOrder(report=report, identity=identity))

    def close(self) -> None:
        """Send what is left, and end the process."""
        self._closing.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(END_SECONDS)
            process = self._process
            if self._thread.is_alive() and process is not None:
                process.kill()
                self._thread.join()

    def _order(self, order: FetchOrder) -> None:
        self._orders.append(order)
        self._woken.set()

    # The threads

    def _serve(self) -> None:
        """Read what a process says; start another one where it dies."""
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)  # of this thread, and the process inherits it
        while True:
            try:
                process = self._process = self._started()
            except OSError as error:
                log.warning(
                    "library: the process that fetches kernels cannot be started: %s; trying on", error
                )
                if self._closing.wait(RETRY_SECONDS):
                    return
                continue
            assert process.stdin is not None
            assert process.stdout is not None
            writer = threading.Thread(target=self._write, args=(process, process.stdin), daemon=True)
            writer.start()
            for line in process.stdout:
                if line.endswith(b"\n"):
                    self._take(FetchNews.model_validate_json(line))
            code = process.wait()
            process.stdout.close()
            self.connected = False
            self._woken.set()
            writer.join()
            if self._closing.is_set():
                return
            log.warning("library: the process that fetches kernels ended (%d); another one starts", code)
            if self._closing.wait(RETRY_SECONDS):
                return

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.urza.fetching"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(module_paths())},
            start_new_session=True,
        )

    def _write(self, process: subprocess.Popen[bytes], lines: IO[bytes]) -> None:
        """Hand over all orders so far, and then each that comes; at the end, close."""
        sent = 0
        with contextlib.suppress(BrokenPipeError), lines:
            _write_line(lines, self._start)
            while process.poll() is None:
                closing = self._closing.is_set()
                while sent < len(self._orders):
                    _write_line(lines, self._orders[sent])
                    sent += 1
                if closing:
                    return
                self._woken.wait()
                self._woken.clear()

    def _take(self, news: FetchNews) -> None:
        if news.said:
            log.log(news.level, "%s", news.said)
        if news.connected is not None:
            self.connected = news.connected
        self.settled |= news.settled
        if news.offer is not None:
            self.offers.append(news.offer)


def _write_line(lines: IO[bytes], said: FetchStart | FetchOrder) -> None:
    lines.write(said.model_dump_json(by_alias=True).encode() + b"\n")
    lines.flush()
