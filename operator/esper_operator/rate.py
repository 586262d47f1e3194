"""A rate that is kept by whatever clock its receiver counts with, in any second and not only on average."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_SLACK = 1.02
"""Clocks of two machines do not go equally fast."""


class Turn:
    """Leave for one call; ``used`` is to be set before it is made."""

    used = False


class Rate:
    """At most so many calls arrive at their receiver in any second.

    When a call arrives lies somewhere between its beginning and its answer. So its place is free again a
    second after its answer: whatever takes that place then arrives more than a second after it.

    Args:
        per_second: calls; less than 1 for one in so many seconds.
    """

    def __init__(self, per_second: float) -> None:
        places = max(1, int(per_second))
        self._period = _SLACK * max(1.0, 1.0 / per_second)
        self._free_at = [0.0] * places
        self._returned = asyncio.Event()
        self._line = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for leave for a call; inside, it may be made. First come, first served."""
        async with self._line:
            while not self._free_at:
                self._returned.clear()
                await self._returned.wait()
            await asyncio.sleep(self._free_at[0] - time.monotonic())
            began = heapq.heappop(self._free_at)
        turn = Turn()
        try:
            yield turn
        finally:
            heapq.heappush(self._free_at, time.monotonic() + self._period if turn.used else began)
            self._returned.set()
