"""Blueprints that are invented for trainings: who wants some, and what the generator proposes."""

import hashlib
from typing import Literal

from pydantic import Field

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.blueprint import Blueprint, BlueprintBudget
from esper_runtime.contracts.kernel import InnovationId, KernelInterface, Target

INNOVATION_PREFIX = "iw-"
"""What the keys of these wishes begin with, among those for kernels."""


class InnovationWish(ContractModel):
    """A run wants blueprints invented for its slots. Of each run the last wish counts."""

    run: str = Field(
        max_length=128, pattern=r"^[-a-z0-9]+/[-a-z0-9]+$", description="``NAMESPACE/RUN``, as on the bus."
    )
    slots: tuple[KernelInterface, ...] = Field(
        min_length=1, max_length=16, description="Classes of slots, of exact widths."
    )
    target: Target
    blueprints: int = Field(ge=1, le=256, description="So many in all.")
    budget: BlueprintBudget = Field(default=BlueprintBudget(), description="Most that each may cost.")

    @property
    def wish_id(self) -> str:
        """``iw-`` and 12 hex digits of the SHA-256 of the run's place on the bus."""
        return INNOVATION_PREFIX + hashlib.sha256(self.run.encode()).hexdigest()[:12]


class Proposal(ContractModel):
    """A blueprint that the generator proposes. The planner checks it, and enters it where it is new."""

    kind: Literal["Proposal"] = "Proposal"
    wish: InnovationId
    graph: Blueprint
