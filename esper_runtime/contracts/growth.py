"""The part of the manifest that says when, where and what may grow."""

import re
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from esper_runtime.contracts.base import ContractModel, Rule, Says
from esper_runtime.contracts.directive import Initialisation

Glob = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tag = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,46}[a-z0-9])?$", max_length=48)]
Factor = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?x$", max_length=12),
    Says("a factor such as 2x or 1.5x"),
]


class ControllerKind(StrEnum):
    """Who decides."""

    HEURISTIC = "Heuristic"
    OFF = "Off"


class Placement(StrEnum):
    """Where the controller runs."""

    EMBEDDED = "Embedded"
    SERVICE = "Service"


class PlanChoice(StrEnum):
    """How seeds enter the host; Auto leaves it to the controller."""

    AUTO = "Auto"
    IMMEDIATE = "Immediate"
    ISOLATED = "Isolated"
    TOURNAMENT = "Tournament"


class AbsorbWhen(StrEnum):
    """When seeds that widen two layers become part of them."""

    NEVER = "Never"
    AT_END = "AtEnd"


class Controller(ContractModel):
    """The controller and its settings."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            # The API server checks the default, an empty mapping, before it fills in those below it.
            "!has(self.earliest) || !has(self.latest) || self.earliest <= self.latest",
            "'earliest' must not be after 'latest'",
        ),
    )

    kind: ControllerKind = Field(
        default=ControllerKind.HEURISTIC, description="Heuristic, or Off: never grow."
    )
    every_steps: int | None = Field(
        default=None, ge=1, description="How often it is asked; default: a hundredth of the run, at least 1."
    )
    earliest: float = Field(
        default=0.02, ge=0, le=1, description="Share of the run before which nothing is planted."
    )
    latest: float = Field(
        default=0.5, ge=0, le=1, description="Share of the run after which nothing is planted."
    )
    deadline: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of the run by which the first seed is planted even if the loss still falls fast, "
        "because a late seed has too little time to pay.",
    )
    trial_share: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Most compute for trying candidates on copies of the model or in tournaments, as a share "
        "of training the ungrown host for the whole run.",
    )
    placement: Placement = Field(
        default=Placement.EMBEDDED,
        description="Embedded: it decides in the training process. Service: `esper tamiyo serve` decides, "
        "over the bus; training does not wait for it, and the embedded one takes over while it is silent.",
    )
    patience_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86400,
        description="How long the service may go without an answer that can be obeyed (Service).",
    )

    @property
    def asks_service(self) -> bool:
        """True when a controller service decides, and not this process."""
        return self.kind is not ControllerKind.OFF and self.placement is Placement.SERVICE

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.earliest > self.latest:
            raise ValueError(f"'earliest' ({self.earliest:g}) must not be after 'latest' ({self.latest:g})")
        return self


class Lifecycle(ContractModel):
    """How a seed lives, in optimizer steps; where absent the controller derives them from the run."""

    plan: PlanChoice = Field(
        default=PlanChoice.AUTO,
        description="How seeds enter the host: Immediate (at "
        "once, exact through the zero tail), Isolated (learn behind it first, then ramp), Tournament "
        "(several in one slot learn behind it side by side, the best one goes on as Isolated), or Auto: the "
        "controller's choice; the heuristic takes Immediate, isolation cost it about 2 points.",
    )
    candidates: int = Field(
        default=4, ge=2, le=16, description="Most seeds of a Tournament; each counts as a concurrent seed."
    )
    training_steps: int | None = Field(
        default=None, ge=1, description="Learning behind the host (Isolated, Tournament)."
    )
    ramp_steps: int | None = Field(
        default=None, ge=0, description="Alpha from 0 to 1 (Isolated, Tournament)."
    )
    grafting_steps: int | None = Field(
        default=None, ge=0, description="Learning in the host before it is judged."
    )
    stabilizing_steps: int = Field(default=0, ge=0, description="Seed frozen while normalisation settles.")
    fine_tuning_steps: int = Field(default=0, ge=0, description="More learning before the last judgement.")
    embargo_steps: int | None = Field(default=None, ge=0, description="Slot rests after a cull.")
    warmup_steps: int | None = Field(default=None, ge=0, description="Newborn learning-rate warm-up.")
    learning_rate_factor: float = Field(
        default=1.0, gt=0, le=100, description="Newborn learning rate over the host's."
    )
    initialisation: Initialisation = Field(
        default=Initialisation.RANDOM,
        description="Weights before the zero tail: Random, or Gradient statistics.",
    )
    freeze_fossils: bool = Field(default=False, description="Fossilized seeds stop learning.")
    absorb: AbsorbWhen = Field(
        default=AbsorbWhen.NEVER,
        description="Never, or AtEnd: before the model is saved, fossilized widenings are merged into the "
        "two layers that they lie beside, where that changes nothing; the others stay seeds.",
    )


class Gates(ContractModel):
    """What must have been measured before a step forward."""

    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Of the two-sided interval of contributions and gains."
    )
    price: float = Field(
        default=0.0002,
        ge=0,
        le=1,
        description="Share of the validation loss that a seed must earn for each growth of the model by 1 % "
        "of the host's parameters.",
    )
    validation_examples: int = Field(
        default=2000, ge=16, le=10_000_000, description="At most so many are used to measure a seed."
    )


class GrowthBudget(ContractModel):
    """Limits that no controller can break."""

    parameters: Factor | Annotated[int, Field(ge=1)] = Field(
        default="2x", description="Most parameters of the grown model: a number, or a factor of the host's."
    )
    macs_per_example: Factor | Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most multiply-accumulates of a forward pass; number or factor."
    )
    concurrent_seeds: int = Field(
        default=4, ge=1, le=1000, description="Most seeds that are not yet fossilized."
    )


class SlotSelector(ContractModel):
    """Which slots may be used, by globs over their ids (see `esper slots`)."""

    include: tuple[Glob, ...] = Field(default=("*",), min_length=1, max_length=64, description="Used.")
    exclude: tuple[Glob, ...] = Field(default=(), max_length=64, description="Left out.")


class BlueprintSelector(ContractModel):
    """Which blueprints may be planted, by globs over names."""

    include: tuple[Glob, ...] = Field(default=("*",), min_length=1, max_length=64, description="Used.")
    exclude: tuple[Glob, ...] = Field(default=(), max_length=64, description="Left out.")

    def allows(self, name: str) -> bool:
        """Whether a blueprint of this name may be planted."""
        included = any(fnmatchcase(name, glob) for glob in self.include)
        return included and not any(fnmatchcase(name, glob) for glob in self.exclude)

    @property
    def allows_invented(self) -> bool:
        """Whether any that Karn invents may be: ``karn-`` and 12 hex digits, tried with every two digits
        after those that a glob begins with."""
        begun = {"karn-"} | {found[0] for glob in self.include if (found := re.match("karn-[0-9a-f]*", glob))}
        return any(
            self.allows(f"{begin}{digits:02x}5b0e93a7c4"[:17]) for begin in begun for digits in range(256)
        )


class TwinChoice(StrEnum):
    """Whether compiled twins run in place of seeds that were kept."""

    NEVER = "Never"
    WHERE_FASTER = "WhereFaster"


class KernelSelector(ContractModel):
    """Which validated kernels may be planted, by what Urabrask found (`esper library ls` has the tags)."""

    required: tuple[Tag, ...] = Field(default=(), max_length=16, description="Tags that each must have.")
    excluded: tuple[Tag, ...] = Field(default=(), max_length=16, description="Tags that none may have.")
    preferred: tuple[Tag, ...] = Field(
        default=(),
        max_length=16,
        description="Tags that are liked: a candidate with all of them counts as if it had gained 10 % more.",
    )
    twins: TwinChoice = Field(
        default=TwinChoice.NEVER,
        description="Never, or WhereFaster: seeds that were kept get a compiled twin, from the shelf or made "
        "by the library's workers, once measurement in place says that it is faster. When that is depends on "
        "the workers, and its results differ in the last bits, so that two such runs are not the same bit "
        "for bit. On CUDA there are no twins.",
    )
    most_risk: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Highest risk of failing, from 0 to 1, that a kernel may have; below 1, one of unknown "
        "risk is left out.",
    )


class Growth(ContractModel):
    """When, where and what may grow."""

    controller: Controller = Field(default=Controller(), description="Who decides, and when.")
    slots: SlotSelector = Field(default=SlotSelector(), description="Where.")
    blueprints: BlueprintSelector = Field(default=BlueprintSelector(), description="What.")
    kernels: KernelSelector = Field(default=KernelSelector(), description="Which kernels of them.")
    lifecycle: Lifecycle = Field(default=Lifecycle(), description="How a seed lives.")
    gates: Gates = Field(default=Gates(), description="What must be measured.")
    budget: GrowthBudget = Field(default=GrowthBudget(), description="How much.")
