"""The bus goes away during a real `esper run`: it completes, the journal's copy is complete, counts add up.

``python -m benchmarks.outage``. Three runs: the run's own bus is killed with -9 three times and started again
by the supervisor; nobody ever listens at the bus's address; somebody listens there only from the middle on.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.line import bar
from esper_runtime.contracts import Finished, JournalError
from esper_runtime.local import RunFolder
from esper_runtime.local.children import Port
from esper_runtime.local.processes import ProcessRecord, read_table
from esper_runtime.nissa import read_journal, verify_journal
from esper_runtime.oona import BundledServer, BusAddress, connect
from tests.cli.manifests import write

COMMAND = "python -m benchmarks.outage"
KILLS = 3
STEPS = 6000
DROPPED = re.compile(r"of ([\d,]+) samples of telemetry ([\d,]+) were delivered and ([\d,]+) dropped")


@dataclass
class Run:
    """`esper run` of a small model that grows, in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: RunFolder
    said: Path

    @classmethod
    def start(cls, place: Path, *options: str) -> "Run":
        """Start it in a folder of its own."""
        place.mkdir()
        manifest = write(place, ("spec.training.steps", STEPS), ("spec.checkpoint.everySteps", 500))
        said = place / "said.txt"
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), *options],
                stdout=out,
                stderr=out,
                cwd=place,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return cls(process, RunFolder(place / "runs" / "small"), said)

    def bus(self) -> ProcessRecord | None:
        """The living bus."""
        table = read_table(self.folder.processes)
        children = () if table is None else table.children
        return next((child for child in children if child.role == "bus" and child.alive), None)

    def step(self) -> int:
        """How far the journal says it is."""
        with contextlib.suppress(JournalError, IndexError):
            return read_journal(self.folder.journal)[-1].step
        return 0

    def until(self, step: int) -> bool:
        """Wait until it is so far; False when it ended before."""
        while self.step() < step:
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end, by its journal, with every link of it whole."""
        last = read_journal(self.folder.journal)[-1].event
        return (
            isinstance(last, Finished)
            and last.outcome == "Complete"
            and not verify_journal(self.folder.journal)
        )


async def stored(address: BusAddress, stream: str, subject: str) -> list[dict[str, Any]]:
    """All events of a subject, in order."""
    client = await connect(address, "bench")
    try:
        reader = await client.jetstream().subscribe(subject, stream=stream, ordered_consumer=True)
        found = []
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            while True:
                found.append(json.loads((await reader.next_msg(timeout=2)).data))
        return found
    finally:
        await client.close()


def compare(run: Run, address: BusAddress) -> tuple[dict[str, bool], dict[str, Any]]:
    """The bus against the journal's file, and the telemetry's numbers against each other."""
    prefix = "esper.run.local.small."
    copied = asyncio.run(stored(address, "EVENTS", f"{prefix}journal"))
    telemetry = asyncio.run(stored(address, "TELEMETRY", f"{prefix}telemetry"))
    written = [entry.digest for entry in read_journal(run.folder.journal)]
    ended = [event["data"] for event in telemetry if "ended" in event["type"]]
    batches = [event["data"] for event in telemetry if "sampled" in event["type"]]
    numbers = [b["first"] + i for b in batches for i in range(len(b["samples"]))]
    last = ended[-1] if ended else {}
    counts = {name: last.get(name) for name in ("produced", "delivered", "dropped", "waiting")}
    checks = {
        "journal copy complete": [event["data"]["digest"] for event in copied] == written,
        "produced = delivered + dropped": bool(last)
        and last["produced"] == last["delivered"] + last["dropped"]
        and last["produced"] >= STEPS,
        "samples on the bus = delivered": bool(last)
        and len(set(numbers)) == len(numbers) == last["delivered"],
    }
    return checks, {"journal entries": len(written), "on the bus": len(copied), **counts}


def killed(place: Path) -> None:
    """The run's own bus is killed three times."""
    run, gaps = Run.start(place), []
    for number in range(1, KILLS + 1):
        run.until(number * STEPS // (KILLS + 2))
        while (bus := run.bus()) is None and run.process.poll() is None:
            time.sleep(0.02)
        if bus is None:
            break
        os.kill(bus.pid, signal.SIGKILL)
        began = time.monotonic()
        while ((now := run.bus()) is None or now == bus) and run.process.poll() is None:
            time.sleep(0.02)
        gaps.append(round(time.monotonic() - began, 2))
    code = run.process.wait()
    with BundledServer(run.folder.bus_store) as server:
        checks, detail = compare(run, server.address)
    report(
        "bus killed -9 three times during a run",
        {"kills": len(gaps) == KILLS, "exit code 0": code == 0, "run complete": run.complete, **checks},
        {"kills": len(gaps), "seconds until it was there again": gaps, **detail},
    )


def never(place: Path) -> None:
    """Nobody ever listens."""
    port = Port()
    run = Run.start(place, "--bus", f"nats://127.0.0.1:{port.number}")
    code = run.process.wait()
    port.close()
    found = DROPPED.search(run.said.read_text())
    produced, delivered, dropped = (
        (int(text.replace(",", "")) for text in found.groups()) if found else (0, 0, -1)
    )
    report(
        "bus away from start to end of a run",
        {
            "exit code 0": code == 0,
            "run complete": run.complete,
            "produced = delivered + dropped": produced == delivered + dropped and produced >= STEPS,
        },
        {"produced": produced, "delivered": delivered, "dropped": dropped},
    )


def late(place: Path) -> None:
    """Somebody listens only from the middle of the run on."""
    port = Port()
    address = BusAddress(url=f"nats://127.0.0.1:{port.number}", token=secrets.token_urlsafe(32))
    store = place.with_name("late-bus")
    store.mkdir()
    file = place.with_name("address.json")
    address.store(file)
    server = BundledServer(store)
    address.store(server.address_file)
    run = Run.start(place, "--bus", str(file))
    run.until(STEPS // 2)
    server.start()
    try:
        code = run.process.wait()
        checks, detail = compare(run, address)
    finally:
        server.stop()
        port.close()
    report(
        "bus away for the first half of a run",
        {"exit code 0": code == 0, "run complete": run.complete, **checks},
        detail,
    )


def report(name: str, checks: dict[str, bool], detail: dict[str, Any]) -> None:
    """Write the line of a bar."""
    bar(
        name,
        command=COMMAND,
        figure=checks,
        bound="every check holds",
        passed=all(checks.values()),
        detail={"steps": STEPS, **detail},
    )


def main() -> None:
    """Run all three."""
    with tempfile.TemporaryDirectory() as place:
        for bench in (killed, never, late):
            bench(Path(place) / bench.__name__)


if __name__ == "__main__":
    main()
