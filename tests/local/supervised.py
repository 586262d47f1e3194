"""`esper run` in a process of its own, for the tests that kill what it starts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from esper_runtime.contracts import JournalError
from esper_runtime.local import RunFolder
from esper_runtime.local.processes import ProcessRecord, read_table, record_of
from esper_runtime.nissa import read_journal

SECONDS = 50.0


class Running:
    """`esper run` in a process of its own, and what it starts."""

    def __init__(self, manifest: Path, *options: str, name: str = "small") -> None:
        self.folder = RunFolder(manifest.parent / "runs" / name)
        self.said = manifest.parent / "said.txt"
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), *options],
                stdout=said,
                stderr=said,
                cwd=manifest.parent,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        self.seen: set[ProcessRecord] = {record_of("supervisor", self.process.pid)}

    def role(self, role: str) -> ProcessRecord | None:
        """The living process of a role."""
        table = read_table(self.folder.processes)
        children = () if table is None else table.children
        self.seen.update(children)
        return next((child for child in children if child.role == role and child.alive), None)

    def until(self, what: str, holds: Callable[[], object], seconds: float = SECONDS) -> None:
        """Wait until something holds; the test fails where it does not in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"never: {what}\n{self.said.read_text()}"
            time.sleep(0.05)

    def checkpoints(self) -> int:
        """How many checkpoints the journal tells of."""
        try:
            entries = read_journal(self.folder.journal)
        except JournalError:
            return 0
        return sum(entry.event.kind == "Checkpointed" for entry in entries)

    def trained(self, more: int = 1) -> None:
        """Wait for some more checkpoints, and for the bus."""
        wanted = self.checkpoints() + more
        self.until("a checkpoint", lambda: self.checkpoints() >= wanted)
        self.until("the bus", lambda: self.role("bus"))

    def kill(self, role: str) -> ProcessRecord:
        """Kill the process of a role with -9, wait until another one has its place."""
        there = self.role(role)
        assert there is not None
        os.kill(there.pid, signal.SIGKILL)
        self.until(f"another {role}", lambda: (now := self.role(role)) is not None and now != there)
        return there

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop and wait for that."""
        self.role("trainer")
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def left(self) -> list[ProcessRecord]:
        """Processes of this run that still live."""
        return [record for record in self.seen if record.alive]
