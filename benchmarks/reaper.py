"""Killing processes with -9 at random, drawn from a seed, as work goes on; for `benchmarks.work`."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from esper_runtime.local.processes import ProcessRecord

SETTLED_SECONDS = 2.0
"""Only processes that have lived so long are killed: one that has just been started has nothing in hand."""
MEMORY = 1_500_000_000
"""Bytes of a worker above which it is killed, as by a container's limit; what they need is a fifth of it."""
LONGEST_PAUSE = 15.0
"""Seconds after which the next one is killed though the work has not gone on."""


class Reaper:
    """Kills processes in an order and at points of the work that are drawn from a seed.

    Args:
        seed: of the random generator.
        kills: how many processes of each part are to be killed.
        total: pieces of work that there are; the kills are spread over them.
    """

    def __init__(self, seed: int, kills: Mapping[str, int], total: int) -> None:
        self.killed: Counter[str] = Counter()
        """How many of each part were killed."""
        self.out_of_memory = 0
        """Workers that were killed because they took too much of it."""
        self._random = random.Random(seed)
        self._deck = [part for part, times in kills.items() for _ in range(times)]
        self._random.shuffle(self._deck)
        self._every = 0.8 * total / max(1, len(self._deck))
        self._mark = self._random.expovariate(1 / self._every)
        self._last = time.monotonic()
        self._since: dict[ProcessRecord, float] = {}

    def look(self, running: Mapping[str, Sequence[ProcessRecord]], done: int) -> None:
        """Kill the next one where it is due.

        Args:
            running: living processes by part.
            done: pieces of work that are done.
        """
        now = time.monotonic()
        for records in running.values():
            for record in records:
                self._since.setdefault(record, now)
        if not self._deck or (done < self._mark and now - self._last < LONGEST_PAUSE):
            return
        part = self._deck[-1]
        old = [r for r in running[part] if now - self._since[r] >= SETTLED_SECONDS and r.alive]
        if not old:
            return
        os.kill(self._random.choice(sorted(old, key=lambda r: r.pid)).pid, signal.SIGKILL)
        self.killed[self._deck.pop()] += 1
        self._mark = done + self._random.expovariate(1 / self._every)
        self._last = now

    def limit_memory(self, workers: Sequence[ProcessRecord]) -> None:
        """Kill each worker that takes too much memory."""
        for worker in workers:
            if _resident(worker.pid) > MEMORY:
                os.kill(worker.pid, signal.SIGKILL)
                self.out_of_memory += 1


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
