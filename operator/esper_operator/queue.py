"""A queue of keys: each at most once in it, never worked on twice at a time, tried again after an error."""

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from esper_runtime.contracts import EsperError

K = TypeVar("K", bound=Hashable)

LONGEST_WAIT = 60.0
"""Seconds between two tries of a key that fails, at most."""

_log = logging.getLogger(__name__)


class KeyQueue(Generic[K]):
    """Keys of objects that are to be looked at.

    A key that is added while it waits is there once; one that is added while it is worked on is worked on
    again afterwards. A key whose work fails comes back after a wait that doubles with each failure.

    Args:
        first_wait: seconds before the first new try of a key that failed.
    """

    def __init__(self, first_wait: float = 0.5) -> None:
        self._first_wait = first_wait
        self._ready: deque[K] = deque()
        self._since: dict[K, float] = {}  # when a key that waits became ready
        self._working: dict[K, float] = {}
        self._again: set[K] = set()
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._count = 0
        self._wake = asyncio.Event()
        self._line = asyncio.Lock()
        self.failed = 0
        """How often work has failed."""
        self.done = 0
        """How often work has been done."""

    def __len__(self) -> int:
        return len(self._ready) + len(self._working)

    def add(self, key: K, after: float = 0.0) -> None:
        """Have a key looked at: now, or ``after`` seconds if nothing asks for it earlier."""
        if after > 0:
            due = time.monotonic() + after
            if key not in self._due or due < self._due[key]:
                self._due[key] = due
                self._count += 1
                heapq.heappush(self._later, (due, self._count, key))
                self._wake.set()
            return
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = time.monotonic()
            self._ready.append(key)
            self._wake.set()

    def oldest(self) -> float:
        """Seconds for which the key that waits or is worked on for longest has done so."""
        now = time.monotonic()
        starts = [*self._working.values()]
        if self._ready:
            starts.append(self._since[self._ready[0]])
        return max((now - start for start in starts), default=0.0)

    async def run(self, work: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        """Work on keys until cancelled.

        Args:
            work: called with a key; returns seconds after which to look again, or None.
            workers: keys that are worked on at a time.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        while True:
            key = await self._next()
            self._working[key] = self._since.pop(key)
            try:
                after = await work(key)
            except Exception as error:
                self.failed += 1
                tries = self._failures[key] = self._failures.get(key, 0) + 1
                wait = min(LONGEST_WAIT, self._first_wait * 2 ** min(tries - 1, 20))
                _log.warning("%s: tried again in %.1f s: %s", key, wait, error, exc_info=_unexpected(error))
                self.add(key, wait * random.uniform(0.8, 1.2))
            else:
                self.done += 1
                self._failures.pop(key, None)
                if after is not None:
                    self.add(key, max(after, 0.001))
            finally:
                del self._working[key]
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _next(self) -> K:
        async with self._line:  # one waits for a key and the others for it, so that each key wakes only one
            while True:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    due, _, key = heapq.heappop(self._later)
                    if self._due.get(key) == due:  # else it was asked for earlier
                        self.add(key)
                if self._ready:
                    return self._ready.popleft()
                self._wake.clear()
                wait = self._later[0][0] - now if self._later else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()


def _unexpected(error: Exception) -> bool:
    """Whether the log should say where it came from: errors that speak for themselves need no trace."""
    return not isinstance(error, EsperError)
