"""What ranks other than 0 have in place of the run's files, and how rank 0 tells them where to begin."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from esper_runtime.contracts import GENESIS, Event, JournalEntry, RolledBack
from esper_runtime.planning import SavedCheckpoint
from esper_runtime.tolaria.checkpoint import SavedState, checkpoint_name, from_bytes, to_bytes
from esper_runtime.tolaria.group import Group


class Journal(Protocol):
    """Where a loop writes what happens."""

    incarnation: int
    sequence: int

    def append(self, event: Event, step: int, sync: bool = True) -> JournalEntry:
        """Add an entry."""
        ...


class Checkpoints(Protocol):
    """Where a loop leaves states to go on from."""

    def write(self, state: SavedState, step: int, incarnation: int, sequence: int) -> tuple[str, str]:
        """Write one; returns its name and digest."""
        ...

    def saved(self) -> list[SavedCheckpoint]:
        """All that are there."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete some."""
        ...

    def keep_journal(self) -> None:
        """Copy the journal to them, where they are not on this machine."""
        ...


class JournalPosition:
    """Counts the entries that rank 0 writes, so that states know their place among them.

    Args:
        incarnation: of the run.
        sequence: of the last entry.
    """

    def __init__(self, incarnation: int, sequence: int) -> None:
        self.incarnation = incarnation
        self.sequence = sequence

    def append(self, event: Event, step: int, sync: bool = True) -> JournalEntry:
        """Count it; the entry is neither sealed nor written."""
        self.sequence += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return JournalEntry(
            sequence=self.sequence,
            time=now,
            incarnation=self.incarnation,
            step=step,
            event=event,
            previous=GENESIS,
        )


class NoCheckpoints:
    """Keeps nothing: rank 0 writes them."""

    def write(self, state: SavedState, step: int, incarnation: int, sequence: int) -> tuple[str, str]:
        """Write nothing; the name is the one that rank 0 uses."""
        return checkpoint_name(step, incarnation), GENESIS

    def saved(self) -> list[SavedCheckpoint]:
        """None."""
        return []

    def delete(self, names: Iterable[str]) -> None:
        """Delete nothing."""

    def keep_journal(self) -> None:
        """Copy nothing."""


@dataclass(frozen=True)
class Beginning:
    """Where a run stands when its ranks begin together, as rank 0 found it.

    Attributes:
        incarnation: number of this group in the life of the run.
        sequence: of the last journal entry.
        known_to_all: entries that other ranks must know of: what people have commanded, and which kernels
            came and went.
        faults: rollbacks that ``saved`` does not know of.
        saved: to go on from; None: from the start.
    """

    incarnation: int
    sequence: int
    known_to_all: tuple[JournalEntry, ...]
    faults: tuple[RolledBack, ...]
    saved: SavedState | None


def hand_over(group: Group, beginning: Beginning) -> None:
    """Tell the other ranks how to begin."""
    if group.size == 1:
        return
    saved = beginning.saved
    group.share(
        {
            "incarnation": beginning.incarnation,
            "sequence": beginning.sequence,
            "knownToAll": [e.model_dump(mode="json", by_alias=True) for e in beginning.known_to_all],
            "faults": [event.model_dump(mode="json", by_alias=True) for event in beginning.faults],
            "facts": None if saved is None else saved.facts,
        }
    )
    if saved is not None:
        for tensors in saved.parts().values():
            group.share_bytes(to_bytes(tensors))


def take_over(group: Group) -> Beginning:
    """What rank 0 gave to `hand_over`."""
    told = group.share(None)
    saved = None
    if told["facts"] is not None:
        model, optimizer, random = (from_bytes(group.share_bytes(b"")) for _ in range(3))
        saved = SavedState(model, optimizer, random, told["facts"])
    return Beginning(
        told["incarnation"],
        told["sequence"],
        tuple(JournalEntry.model_validate(entry) for entry in told["knownToAll"]),
        tuple(RolledBack.model_validate(event) for event in told["faults"]),
        saved,
    )
