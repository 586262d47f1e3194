"""Decisions of a controller, each with its explanation."""

from enum import StrEnum

from pydantic import Field

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.lifecycle import Operation


class PlanKind(StrEnum):
    """How a seed enters the host."""

    IMMEDIATE = "Immediate"
    ISOLATED = "Isolated"
    TOURNAMENT = "Tournament"


class Initialisation(StrEnum):
    """How the weights before the zero tail are chosen."""

    RANDOM = "Random"
    GRADIENT = "Gradient"


class GraftingPlan(ContractModel):
    """Durations in optimizer steps; 0 skips an optional stage.

    Seeds with the plan Tournament that germinate in one slot at one boundary are rivals: they learn behind
    the host side by side, and at most one of them may be grafted.
    """

    kind: PlanKind = PlanKind.IMMEDIATE
    training_steps: int = Field(default=0, ge=0)
    ramp_steps: int = Field(default=0, ge=0)
    grafting_steps: int = Field(default=0, ge=0)
    stabilizing_steps: int = Field(default=0, ge=0)
    fine_tuning_steps: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    learning_rate_factor: float = Field(default=1.0, gt=0)
    initialisation: Initialisation = Initialisation.RANDOM
    embargo_steps: int = Field(default=0, ge=0)


class Directive(ContractModel):
    """One command: slot, blueprint and plan go with Germinate, slot with Unlock, seed with the others."""

    operation: Operation
    slot: str | None = None
    seed: str | None = None
    blueprint: str | None = None
    plan: GraftingPlan | None = None
    effective_step: int = Field(default=0, ge=0, description="Not applied before this boundary.")
    explanation: str = Field(max_length=2000)
    evidence: dict[str, float | int | str] = Field(default_factory=dict, max_length=32)


class Probe(ContractModel):
    """Trials that a controller asks for: one for each (slot, blueprint) in ``candidates``.

    In a trial a copy of the model learns together with the newborn seed for ``steps`` optimizer steps, on
    the same batches and at the same learning rate as a copy without it; the run itself is not touched.
    Trials of an earlier probe at the same boundary may be continued up to ``steps``.
    """

    steps: int = Field(ge=1)
    candidates: tuple[tuple[str, str], ...] = Field(min_length=1)


class Decision(ContractModel):
    """What a controller answers at a boundary.

    ``probe`` asks for the gains of candidates to be measured; the controller is asked again at the same
    boundary with the measurements filled in, and may then ask for longer trials of fewer candidates.
    ``explanation`` says why, also when nothing is done.
    """

    directives: tuple[Directive, ...] = ()
    probe: Probe | None = None
    explanation: str = Field(max_length=2000)
