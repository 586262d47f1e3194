"""What the pods of a run get in with, and what must be ready on the bus before they do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from esper_runtime.contracts import name_on_bus


@dataclass(frozen=True)
class RunOnBus:
    """A run as the bus knows it."""

    namespace: str
    name: str
    uid: str

    @property
    def word(self) -> str:
        """Its name in subjects."""
        return name_on_bus(self.name, self.uid)


class Credentials(Protocol):
    """The bus's side of a run."""

    async def files(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """Have the bus let in an attempt of a run, and those before no more; doing it twice changes nothing.

        Returns:
            The files that its pods find in ``/etc/esper`` beside the manifest, with their texts.

        Raises:
            BusError: the bus cannot be reached, or refuses.
        """


class NoCredentials:
    """For a release without a bus: its runs train alone, and their status says less."""

    async def files(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """None."""
        return {}
