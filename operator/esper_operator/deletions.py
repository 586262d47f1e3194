"""Up to which version of the blueprints every deletion was carried out, for the process that comes next."""

import time
from collections import deque
from collections.abc import Callable

LAG_SECONDS = 10.0
"""A version that was heard counts after so long: watches of other namespaces may be behind."""


class Deletions:
    """The mark that the Lease carries from one process to the next.

    It stands still while a deletion that was seen is not carried out, and before those were asked for that a
    process before this one did not live to carry out.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newest = 0
        self._coming: deque[tuple[float, int]] = deque()
        self._marked = ""
        self._begun = False

    def begin(self) -> None:
        """All that was deleted before what was heard so far is known, or cannot be known any more."""
        self._begun = True

    def hear(self, version: object) -> None:
        """A list or an event had this resource version."""
        text = str(version or "")
        self._newest = max(self._newest, int(text) if text.isdigit() else 0)

    def mark(self, settled: bool) -> str:
        """The version to go on from; empty where there is none yet.

        Args:
            settled: whether all deletions that were seen are carried out.
        """
        now = self._clock()
        if not settled:
            self._coming.clear()
        elif self._begun and self._newest > (self._coming[-1][1] if self._coming else 0):
            self._coming.append((now, self._newest))
        while self._coming and now - self._coming[0][0] >= LAG_SECONDS:
            self._marked = str(self._coming.popleft()[1])
        return self._marked
