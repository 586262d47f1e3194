"""Waiting for news, or until it is time to look anyway."""

import asyncio
import contextlib

GATHER_SECONDS = 0.05
"""News of so long are looked at together."""


class News:
    """Wakes who waits for something to have changed. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """There is news."""
        self._event.set()

    async def heard(self, _: object) -> None:
        """`ring`, for a message of a subscription."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until there is news, or the time is over."""
        with contextlib.suppress(TimeoutError):  # wait_for of Python 3.11 may lose a cancellation
            async with asyncio.timeout(seconds):
                await self._event.wait()
            await asyncio.sleep(GATHER_SECONDS)
        self._event.clear()
