"""Ranks that train together, seen through to the end of the last of them."""

import math
import time
from collections.abc import Callable, Sequence

from esper_runtime.local.children import Child
from esper_runtime.planning import group_outcome

PEER_SECONDS = 10.0
"""How long the ranks of a group may take to end by themselves when one of them is gone."""
LATE_SECONDS = 5.0
"""A trainer ends itself when its grace is over; so much later it is killed."""
WAKE_SECONDS = 0.5
EXIT_STOPPED = 75


def see_through(
    ranks: Sequence[Child],
    look: Callable[[float], None],
    grace_seconds: float,
    late: Callable[[], float | None],
) -> tuple[list[int], int]:
    """Wait until all ranks have ended; where one is gone, the others are not waited for without end.

    Args:
        ranks: that were started.
        look: waits for so many seconds at most, and returns early when there is news.
        grace_seconds: time that a rank may take for a last checkpoint.
        late: when they are to be killed because they were told to stop (`time.monotonic`); None where they
            were not.

    Returns:
        Exit code of each rank, and how the group ended (`group_outcome`), of which those that had to be
        killed here say nothing.
    """
    doomed = math.inf
    killed: set[int] = set()
    while any(rank.ended is None for rank in ranks):
        look(WAKE_SECONDS)
        ends = {rank.ended for rank in ranks} - {None, 0}
        if ends:
            # Where the others were told to stop, the first rank may still write the checkpoint.
            patience = grace_seconds + LATE_SECONDS if ends == {EXIT_STOPPED} else PEER_SECONDS
            doomed = min(doomed, time.monotonic() + patience)
        kill_at = late()
        if time.monotonic() > (doomed if kill_at is None else kill_at):
            for number, rank in enumerate(ranks):
                if rank.ended is None:
                    killed.add(number)
                    rank.kill()
    for rank in ranks:
        rank.wait(LATE_SECONDS)
    codes = [rank.ended for rank in ranks if rank.ended is not None]
    counted = [code for number, code in enumerate(codes) if number not in killed]
    return codes, group_outcome(counted or codes)
