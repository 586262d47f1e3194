"""A rate that is kept by whatever clock its receiver counts with, in any second and not only on average."""

import asyncio
import heapq
import time

_SLACK = 1.02
"""Clocks of two machines do not go equally fast."""


class Rate:
    """At most so many calls arrive at their receiver in any second.

    When a call arrives lies somewhere between its beginning and its answer. So its place is free again a
    second after its answer: whatever takes that place then arrives more than a second after it.

    Args:
        per_second: calls; less than 1 for one in so many seconds.
    """

    def __init__(self, per_second: float) -> None:
        self._period = _SLACK * max(1.0, 1.0 / per_second)
        self._free_at = [0.0] * max(1, int(per_second))
        self._given = asyncio.Event()
        self._line = asyncio.Lock()

    async def take(self) -> None:
        """Return when a call may be made, first come, first served; `give` is due once it is answered."""
        async with self._line:
            while not self._free_at:
                self._given.clear()
                await self._given.wait()
            await asyncio.sleep(self._free_at[0] - time.monotonic())
            heapq.heappop(self._free_at)

    def give(self, used: bool = True) -> None:
        """Give back the place that was taken, where no call was made for others to take at once."""
        heapq.heappush(self._free_at, time.monotonic() + (self._period if used else 0.0))
        self._given.set()
