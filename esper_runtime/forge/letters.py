"""The dead letters: work that was given up, with its reason, until a person retries or drops it."""

from collections.abc import Sequence
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.contracts import BusError, CompileWork, DeadWork, EvaluateWork
from esper_runtime.oona import Tail

STREAM = "DEAD"


@dataclass(frozen=True)
class Letter:
    """A dead letter and its number on the list."""

    number: int
    dead: DeadWork

    @property
    def kernel(self) -> str | None:
        """What it is about; None where it is about none, or could not be read."""
        return kernel_of(self.dead)


def kernel_of(dead: DeadWork) -> str | None:
    """The kernel that a dead letter is about; None where it is about none, or could not be read."""
    match dead.item:
        case EvaluateWork(kernel=kernel):
            return kernel
        case CompileWork(spec=spec):
            return spec.kernel_id
    return None


class DeadLetters:
    """The list, kept up to date by `refresh`.

    Args:
        client: a connection of the planner's.
    """

    def __init__(self, client: Client) -> None:
        self._js = client.jetstream()
        self._tail = Tail(self._js, STREAM)
        self._letters: dict[int, Letter] = {}
        self._unreadable: set[int] = set()

    @property
    def all(self) -> Sequence[Letter]:
        """In the order in which they were given up."""
        return tuple(self._letters.values())

    async def refresh(self) -> None:
        """Read what is new, and everything again where something was removed.

        Raises:
            BusError: the bus does not answer.
        """
        await self._read()
        if self._tail.messages < len(self._letters) + len(self._unreadable):
            self._tail.rewind()
            self._letters.clear()
            self._unreadable.clear()
            await self._read()

    async def remove(self, number: int) -> None:
        """Take one off the list, where it is still there.

        Raises:
            BusError: the bus does not answer.
        """
        self._letters.pop(number, None)
        try:
            await self._js.delete_msg(STREAM, number)
        except nats.errors.TimeoutError as error:
            raise BusError(f"dead letter {number} cannot be removed: the bus does not answer") from error
        except nats.errors.Error:
            return  # it is gone already

    async def _read(self) -> None:
        found = await self._tail.read()
        if self._tail.began_anew:
            self._letters.clear()
            self._unreadable.clear()
        for kept in found:
            try:
                dead = DeadWork.model_validate_json(kept.data)
            except ValidationError:
                self._unreadable.add(kept.sequence)
            else:
                self._letters[kept.sequence] = Letter(kept.sequence, dead)
