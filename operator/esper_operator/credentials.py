"""What the pods of a run get in with, and what must be ready on the bus before they do."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RunOnBus:
    """A run as the bus knows it."""

    namespace: str
    name: str
    uid: str


class Credentials(Protocol):
    """The bus's side of a run."""

    async def prepare(self, namespace: str) -> None:
        """Make the account of a namespace and its streams; doing it twice changes nothing.

        Raises:
            BusError: the bus cannot be reached, or refuses.
        """

    async def files(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """The files that an attempt's pods find in ``/etc/esper`` beside the manifest, with their texts."""

    async def keep_only(self, runs: Collection[RunOnBus]) -> None:
        """Withdraw what was given to runs that have ended or are gone: to all but these."""


class NoCredentials:
    """For a release without a bus: its runs train alone, and their status says less."""

    async def prepare(self, namespace: str) -> None:
        """Nothing is to be made."""

    async def files(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """None."""
        return {}

    async def keep_only(self, runs: Collection[RunOnBus]) -> None:
        """Nothing was given."""
