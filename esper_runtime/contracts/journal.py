"""Journal entries: the run's truth, one JSON line each, chained by hashes."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from esper_runtime.contracts.base import ContractModel, canonical_json
from esper_runtime.contracts.blueprint import Blueprint, Interface
from esper_runtime.contracts.directive import Directive
from esper_runtime.contracts.kernel import FieldReport, KernelId, KernelSummary, Sha256
from esper_runtime.contracts.lifecycle import SeedStage, SlotState
from esper_runtime.contracts.signals import Measured
from esper_runtime.contracts.steering import Steer

GENESIS = "0" * 64


class ModuleSummary(ContractModel):
    """One module of the host as the report draws it."""

    name: str
    kind: str
    parameters: int
    output_shape: tuple[int, ...] | None = None


class SlotSummary(ContractModel):
    """A slot as listed at the start of a run: its taps in words and its interface."""

    slot: str
    read: str
    write: str
    position: int
    interface: Interface


class Started(ContractModel):
    """First entry of a run."""

    kind: Literal["Started"] = "Started"
    run: str
    manifest: dict[str, Any]
    manifest_digest: str
    environment: dict[str, str]
    total_steps: int
    parameters: int
    macs_per_example: int
    metric_name: str
    higher_is_better: bool
    modules: tuple[ModuleSummary, ...]
    slots: tuple[SlotSummary, ...]


class Resumed(ContractModel):
    """A new incarnation. Entries after ``after_sequence`` and before this one are superseded."""

    kind: Literal["Resumed"] = "Resumed"
    incarnation: int
    checkpoint: str | None
    from_step: int
    after_sequence: int
    torn_bytes: int = 0
    environment: dict[str, str]
    differences: dict[str, str] = Field(default_factory=dict)


class Decided(ContractModel):
    """The controller was asked and commanded something, or gave a new reason for doing nothing."""

    kind: Literal["Decided"] = "Decided"
    controller: str
    explanation: str
    directives: tuple[Directive, ...] = ()


class Refused(ContractModel):
    """A directive that was not obeyed, and why."""

    kind: Literal["Refused"] = "Refused"
    directive: Directive
    reason: str


class ControllerChanged(ContractModel):
    """From now on another one decides. ``epoch`` is the new one; answers of earlier epochs are not obeyed."""

    kind: Literal["ControllerChanged"] = "ControllerChanged"
    before: Literal["Embedded", "Service"]
    after: Literal["Embedded", "Service"]
    epoch: int
    reason: str


class AnswerRefused(ContractModel):
    """An answer of a controller service that was not obeyed as a whole, and why.

    ``count`` such answers came since the last boundary. What of the answer is unknown is absent.
    """

    kind: Literal["AnswerRefused"] = "AnswerRefused"
    reason: str
    controller: str | None = None
    epoch: int | None = None
    in_reply_to: int | None = None
    count: int = Field(default=1, ge=1)


class SeedChanged(ContractModel):
    """A seed is about to go from one stage to the next (written and synced before it happens)."""

    kind: Literal["SeedChanged"] = "SeedChanged"
    seed: str
    slot: str
    blueprint: str
    name: str
    before: SeedStage | None
    after: SeedStage
    parameters: int
    alpha: float
    reason: str
    contribution: Measured | None = None
    isolated_gain: Measured | None = None
    failure: str | None = Field(default=None, description="What failed in it, where that ends it.")
    graph: Blueprint | None = Field(default=None, description="Given where the seed germinates.")
    kernel: KernelId | None = Field(default=None, description="The kernel that it runs, where it has one.")
    digest: Sha256 | None = Field(default=None, description="Of the kernel's artifact.")


class KernelsArrived(ContractModel):
    """From now on these kernels may be planted: each carries a validation whose signature was verified.

    It outlives rollbacks and resumptions: what is done again from before it, has them from its step on.
    """

    kind: Literal["KernelsArrived"] = "KernelsArrived"
    kernels: tuple[KernelSummary, ...]
    reason: str
    refused: dict[str, str] = Field(
        default_factory=dict, description="Kernels that were wanted too and may not be used, and why."
    )
    remade: dict[str, str] = Field(
        default_factory=dict,
        description="Kernels of which an artifact lay on the shelf that was refused, and why; they were made "
        "anew.",
    )


class KernelsGone(ContractModel):
    """From now on these kernels may not be planted any more, for the reasons given by their ids."""

    kind: Literal["KernelsGone"] = "KernelsGone"
    kernels: dict[str, str]


class TwinChanged(ContractModel):
    """A compiled twin is about to run in place of a seed's own graph, or no longer.

    ``speedup`` is what was measured in place, just before: seconds of the graph over those of the twin.
    """

    kind: Literal["TwinChanged"] = "TwinChanged"
    seed: str
    kernel: KernelId | None = Field(default=None, description="The twin's; absent where there is none now.")
    digest: Sha256 | None = None
    speedup: float | None = Field(default=None, gt=0)
    reason: str


class KernelReported(ContractModel):
    """What a kernel did: written when its seed has ended, or the run has."""

    kind: Literal["KernelReported"] = "KernelReported"
    report: FieldReport


class SlotChanged(ContractModel):
    """A slot changed its state by lock, unlock, embargo or its end."""

    kind: Literal["SlotChanged"] = "SlotChanged"
    slot: str
    before: SlotState
    after: SlotState
    reason: str


class Validated(ContractModel):
    """A validation. ``macs`` is the total since the start of the run, as the ledger counts it."""

    kind: Literal["Validated"] = "Validated"
    train_loss: float | None
    loss: float
    metric: float
    parameters: int
    learning_rate: float
    macs: int


class Checkpointed(ContractModel):
    """A checkpoint is complete."""

    kind: Literal["Checkpointed"] = "Checkpointed"
    checkpoint: str
    digest: str


class RolledBack(ContractModel):
    """The governor restored the last good state."""

    kind: Literal["RolledBack"] = "RolledBack"
    fault: str
    blame: Literal["seed", "data", "unknown"]
    seed: str | None = None
    slot: str | None = None
    blueprint: str | None = None
    batch: int | None = Field(default=None, description="First batch that is skipped from now on.")
    batches: int = Field(default=0, ge=0, description="How many batches from there on are skipped.")
    to_step: int
    after_sequence: int


class Absorbed(ContractModel):
    """A fossilized seed is about to become part of two host layers; ``refused`` says why it stays a seed."""

    kind: Literal["Absorbed"] = "Absorbed"
    seed: str
    slot: str
    name: str
    producer: str | None = None
    consumer: str | None = None
    units: int = Field(default=0, ge=0, description="Hidden units or channels that the layers have more.")
    parameters: int = Field(default=0, ge=0, description="That the host has more.")
    refused: str | None = None


class Steered(ContractModel):
    """A person's command arrived and takes effect at this step's boundary; ``refused`` says why it has none.

    It outlives rollbacks and resumptions: what is done again from before it, is steered again at its step.
    """

    kind: Literal["Steered"] = "Steered"
    command: Steer
    slot: str | None = None
    by: str
    message: str = Field(description="Id of the message; the same one takes effect once.")
    refused: str | None = None
    effective_step: int | None = Field(
        default=None, description="Step of the boundary at which it takes effect, where this one's is over."
    )


class Interrupted(ContractModel):
    """The process was told to stop and left a checkpoint."""

    kind: Literal["Interrupted"] = "Interrupted"
    reason: str


class Finished(ContractModel):
    """Last entry of a run that is complete."""

    kind: Literal["Finished"] = "Finished"
    outcome: Literal["Complete", "Failed"]
    reason: str
    validation_loss: float | None = None
    validation_metric: float | None = None
    test_loss: float | None = None
    test_metric: float | None = None
    parameters_start: int
    parameters: int
    macs_per_example: int
    ledger: dict[str, int] = Field(default_factory=dict, description="MACs by purpose.")
    cpu_seconds: float
    wall_seconds: float
    weights_digest: str | None = None
    modules: tuple[ModuleSummary, ...] = ()


class Compared(ContractModel):
    """One arm of ``--compare``: the same data and steps with another model."""

    kind: Literal["Compared"] = "Compared"
    arm: str
    description: str
    learning_rate: float
    parameters: int
    macs: int
    validation_metric: float
    test_metric: float
    test_loss: float


Event = Annotated[
    Started
    | Resumed
    | Decided
    | Refused
    | ControllerChanged
    | AnswerRefused
    | SeedChanged
    | KernelsArrived
    | KernelsGone
    | TwinChanged
    | KernelReported
    | SlotChanged
    | Validated
    | Checkpointed
    | RolledBack
    | Absorbed
    | Steered
    | Interrupted
    | Finished
    | Compared,
    Field(discriminator="kind"),
]


class JournalEntry(ContractModel):
    """One link: ``digest`` is the SHA-256 of the canonical JSON of all the other fields."""

    sequence: int = Field(ge=0)
    time: str = Field(description="UTC, RFC 3339.")
    incarnation: int = Field(ge=0)
    step: int = Field(ge=0, description="Optimizer steps done when it was written.")
    event: Event
    previous: str = Field(pattern="^[0-9a-f]{64}$")
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    def computed_digest(self) -> str:
        """SHA-256 over the canonical JSON of this entry without ``digest``."""
        data = self.model_dump(mode="json", by_alias=True, exclude={"digest"})
        return hashlib.sha256(canonical_json(data)).hexdigest()

    def follows_its_digest(self) -> bool:
        """Whether the digest is that of the entry, also where it was written before some field was known."""
        written = self.model_dump(mode="json", by_alias=True, exclude={"digest"}, exclude_unset=True)
        return self.digest in (self.computed_digest(), hashlib.sha256(canonical_json(written)).hexdigest())

    def sealed(self) -> "JournalEntry":
        """A copy that carries its digest."""
        return self.model_copy(update={"digest": self.computed_digest()})
