"""What a person commands a live run: carried over the bus, journalled before it takes effect."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from esper_runtime.contracts.base import ContractModel

STEERING_TYPE = "dev.esper.steering.commanded.v1"
"""CloudEvent type of a command."""


class Steer(StrEnum):
    """What may be commanded."""

    STOP = "Stop"
    PAUSE_GROWTH = "PauseGrowth"
    RESUME_GROWTH = "ResumeGrowth"
    PIN = "Pin"
    VETO = "Veto"
    UNLOCK = "Unlock"


WITH_SLOT = frozenset({Steer.VETO, Steer.UNLOCK})
"""Commands that are about one slot."""


class SteeringCommand(ContractModel):
    """One command of a person; ``id`` is that of its message, so that it takes effect once."""

    id: str = Field(min_length=1, max_length=100)
    run: str = Field(min_length=1, max_length=64)
    journal: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Digest of the journal's first entry: tells the run from an earlier one of its name.",
    )
    command: Steer
    slot: str | None = Field(default=None, max_length=400)
    by: str = Field(default="", max_length=100, description="Who commanded it.")

    @model_validator(mode="after")
    def _slot_where_needed(self) -> Self:
        if (self.slot is not None) != (self.command in WITH_SLOT):
            wanted = "needs a slot" if self.command in WITH_SLOT else "is about no slot"
            raise ValueError(f"{self.command} {wanted}")
        return self
