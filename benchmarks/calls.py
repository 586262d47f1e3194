"""What the training thread asks of the kernel while a run trains on the bus, traced for it alone.

``python -m benchmarks.calls``. The training thread is the main thread of the process that is called trainer
in processes.json: its thread id is that process id. `strace -p` is attached to this one thread, so that the
others are as fast as ever. Counted is what it does between the journal's first entry and its last one; what
it does before (making the bridge's event loop) shows that the tracer sees such calls. Its waits are those for
the interpreter lock, which the bridge's thread holds at times. Control: the run with --no-bus.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.line import bar
from esper_runtime.local import RunFolder
from esper_runtime.local.processes import read_table
from esper_runtime.nissa import read_journal
from tests.cli.manifests import write

COMMAND = "python -m benchmarks.calls"
STEPS = 1500
LONGEST_WAIT = 0.005
TRACED = "%network,futex,poll,ppoll,select,pselect6,epoll_wait,epoll_pwait,epoll_pwait2"
LINE = re.compile(r"^(\d+\.\d+) (\w+)(.*)$")
SPENT = re.compile(r"<(\d+\.\d+)>$")


@dataclass
class Calls:
    """System calls of one thread within a stretch of time."""

    network: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    outside: Counter[str] = field(default_factory=Counter)


def traced(place: Path, *options: str) -> tuple[int, Calls, int]:
    """Trace the training thread of a run; its exit code, what was found, and the thread's id."""
    place.mkdir()
    manifest = write(place, ("spec.training.steps", STEPS), ("spec.growth.controller.everySteps", 50))
    folder, trace = RunFolder(place / "runs" / "small"), place / "trace"
    with subprocess.Popen(
        [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), *options],
        stdout=subprocess.DEVNULL,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        tid = 0
        while not tid and process.poll() is None:
            table = read_table(folder.processes)
            tid = table.children[0].pid if table is not None and table.children else 0
            time.sleep(0.01)
        strace = ["strace", "-p", str(tid), "-ttt", "-T", "-e", f"trace={TRACED}", "-o", str(trace)]
        subprocess.run(strace, stderr=subprocess.DEVNULL, check=False)
    entries = read_journal(folder.journal)
    begin, end = (datetime.fromisoformat(entry.time).timestamp() for entry in (entries[0], entries[-1]))
    return process.returncode, calls_of(trace, begin, end), tid


def calls_of(trace: Path, begin: float, end: float) -> Calls:
    """Read the trace of one thread: network calls and waits from ``begin`` to ``end`` (Unix time)."""
    found = Calls()
    with trace.open(errors="replace") as lines:
        for line in lines:
            match = LINE.match(line)
            if match is None:
                continue
            at, name, rest = float(match[1]), match[2], match[3]
            spent = SPENT.search(rest)
            if not begin <= at <= end:
                found.outside[name] += name != "futex"
            elif name == "futex":
                found.waits.append(float(spent[1]) if spent else 0.0)
            else:
                found.network[name] += 1
    return found


def figures(calls: Calls) -> dict[str, Any]:
    """What was found, for the line."""
    return {
        "network calls": calls.network.total(),
        "by name": dict(calls.network),
        "waits on a futex": len(calls.waits),
        "longest, ms": round(1000 * max(calls.waits, default=0.0), 3),
        "longer than 5 ms": sum(wait > LONGEST_WAIT for wait in calls.waits),
    }


def main() -> None:
    """Trace both runs and write the line."""
    with tempfile.TemporaryDirectory() as place:
        code, with_bus, tid = traced(Path(place) / "bus")
        code_alone, alone, _ = traced(Path(place) / "alone", "--no-bus")
    shown = figures(with_bus)
    bar(
        "system calls of the training thread on the bus",
        command=COMMAND,
        figure=shown,
        bound="0 network calls, 0 waits on a futex over 5 ms while it trains",
        passed=code == code_alone == 0
        and shown["network calls"] == 0
        and shown["longer than 5 ms"] == 0
        and with_bus.outside.total() > 0,
        control={"--no-bus": figures(alone)},
        detail={"thread": tid, "steps": STEPS, "outside of the training": dict(+with_bus.outside)},
    )


if __name__ == "__main__":
    main()
