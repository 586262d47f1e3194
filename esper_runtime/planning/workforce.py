"""How many workers of each role a forge should have."""

from collections.abc import Mapping
from dataclasses import dataclass

from esper_runtime.contracts import Role

WORKERS = (Role.URABRASK, Role.TEZZERET, Role.KARN)
"""Roles that work, those that go first when there are too few: what is nearly done is of use sooner."""
IDLE_SECONDS = 60.0
MOST_IDLE = 2
"""Idle workers that may stay where fewer than so many may work."""


@dataclass(frozen=True)
class Depth:
    """What one role has to do.

    Attributes:
        items: waiting or worked on; None where that is not known.
        idle_seconds: how long nothing was there.
    """

    items: int | None
    idle_seconds: float = 0.0


def workers_wanted(depths: Mapping[Role, Depth], running: Mapping[Role, int], limit: int) -> dict[Role, int]:
    """How many workers of each role there should be.

    A role whose depth is not known keeps what it has. Where something is compiled there is one to test it
    soon after. One that has nothing to do keeps its workers for `IDLE_SECONDS`, unless another one needs the
    place. Where the limit is 1 each role that has work gets one
    all the same: they share a core.

    Args:
        depths: for each role of `WORKERS`; a missing one is not known.
        running: workers that there are now.
        limit: how many may work; 0: none.
    """
    if limit <= 0:
        return dict.fromkeys(WORKERS, 0)
    wanted = dict.fromkeys(WORKERS, 0)
    busy = []
    for role in WORKERS:
        depth = depths.get(role, Depth(None))
        if depth.items is None:
            wanted[role] = running.get(role, 0)
        elif depth.items > 0:
            wanted[role] = 1
            busy.append(role)
        elif role is Role.URABRASK and _items(depths, Role.TEZZERET):
            wanted[role] = 1
    while busy and sum(wanted.values()) < limit:
        role = max(busy, key=lambda role: (_items(depths, role) / wanted[role], role is WORKERS[0]))
        if _items(depths, role) <= wanted[role]:
            break
        wanted[role] += 1
    for role in WORKERS:
        depth = depths.get(role, Depth(None))
        if depth.items == 0 and not wanted[role] and depth.idle_seconds < IDLE_SECONDS:
            room = max(limit, MOST_IDLE) - sum(wanted.values())
            wanted[role] = max(0, min(running.get(role, 0), room))
    return wanted


def _items(depths: Mapping[Role, Depth], role: Role) -> int:
    return (depths.get(role) or Depth(None)).items or 0
