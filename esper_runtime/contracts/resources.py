"""The custom resources: what stands in the status of a run, and Blueprint and CompiledKernel as a whole.

A status is a bounded summary; the truth of a run is its journal, that of the library is Urza's.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints
from pydantic.config import JsonDict

from esper_runtime.contracts.base import ContractModel, Rule
from esper_runtime.contracts.blueprint import Blueprint
from esper_runtime.contracts.kernel import (
    BlueprintId,
    KernelInterface,
    KernelState,
    Measurement,
    Pipeline,
    Sha256,
    Signature,
    Target,
)
from esper_runtime.contracts.lifecycle import SeedStage
from esper_runtime.contracts.manifest import RunSpec

ADAPTATIONS_SHOWN = 20
BY_TYPE: JsonDict = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
STATUS_BYTES = 32 * 1024
"""Largest status of any resource."""

Time = Annotated[str, StringConstraints(max_length=40), Field(json_schema_extra={"format": "date-time"})]
Short = Annotated[str, StringConstraints(max_length=128)]
Text = Annotated[str, StringConstraints(max_length=500)]
Uri = Annotated[str, StringConstraints(max_length=1000)]
Count = Annotated[int, Field(ge=0)]


class Condition(ContractModel):
    """One aspect of a resource's state, as Kubernetes has it."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,40}$", max_length=40)] = Field(
        description="Which aspect."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_]*)$", max_length=64)] = Field(
        description="Why, in one word."
    )
    message: Annotated[str, StringConstraints(max_length=1000)] = Field(
        default="", description="Why, and what to do."
    )
    last_transition_time: Time = Field(description="When its status changed.")
    observed_generation: Count = Field(default=0, description="Generation of the spec that it speaks of.")


class RunCondition(StrEnum):
    """Types of a run's conditions."""

    ACCEPTED = "Accepted"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    GROWING = "Growing"
    CHECKPOINTED = "Checkpointed"
    SUSPENDED = "Suspended"
    DEGRADED = "Degraded"
    SERVED = "Served"
    COMPLETE = "Complete"
    FAILED = "Failed"


class RunPhase(StrEnum):
    """One word for a run, derived from its conditions."""

    PENDING = "Pending"
    REJECTED = "Rejected"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class RunProgress(ContractModel):
    """How far the run is."""

    step: Count = Field(default=0, description="Optimizer steps done.")
    total_steps: Count = Field(default=0, description="Optimizer steps in all.")
    summary: Short = Field(default="", description="'step/total', for the column.")
    metric_name: Short | None = Field(default=None, description="Name of the metric.")
    metric: float | None = Field(default=None, description="Its last value, on validation data.")
    metric_text: Short = Field(default="", description="The metric, for the column.")
    validation_loss: float | None = Field(default=None, description="Last validation loss.")
    train_loss: float | None = Field(
        default=None, description="Mean training loss since the validation before."
    )
    eta_seconds: Count | None = Field(default=None, description="Seconds to go.")
    eta: Short = Field(default="", description="Time to go, for the column.")
    time: Time | None = Field(default=None, description="When this was said.")


class RunParameters(ContractModel):
    """Parameters of the model."""

    start: Count | None = Field(default=None, description="Of the host.")
    now: Count | None = Field(default=None, description="With the seeds that contribute.")
    summary: Short = Field(default="", description="'start>now', for the column.")


class Adaptation(ContractModel):
    """One structural change."""

    step: Count = Field(description="Optimizer steps done.")
    seed: Short | None = Field(default=None, description="The seed.")
    slot: Annotated[str, StringConstraints(max_length=300)] | None = Field(default=None, description="Where.")
    blueprint: Short | None = Field(default=None, description="What.")
    stage: SeedStage | None = Field(default=None, description="The seed's stage after it.")
    reason: Annotated[str, StringConstraints(max_length=300)] = Field(default="", description="Why.")
    time: Time | None = Field(default=None, description="When.")


class RunCheckpoint(ContractModel):
    """The last checkpoint that is complete."""

    uri: Uri = Field(description="Where.")
    step: Count = Field(description="Optimizer steps done.")
    digest: Short | None = Field(default=None, description="Of its manifest.")
    architecture_generation: Count = Field(default=0, description="Structural changes before it.")


class RunResult(ContractModel):
    """How the run ended."""

    uri: Uri | None = Field(default=None, description="Where the model is.")
    weights_digest: Short | None = Field(default=None, description="SHA-256 of the weights.")
    test_metric: float | None = Field(default=None, description="On test data, touched once.")
    test_loss: float | None = Field(default=None, description="On test data, touched once.")
    reason: Text = Field(default="", description="Why it ended.")


class RunUsage(ContractModel):
    """What the run has used."""

    attempts: Count = Field(default=0, description="Jobs made.")
    retries: Count = Field(default=0, description="Failures that count against retry.limit.")
    restarts: Count = Field(default=0, description="New starts of any kind.")
    wall_seconds: float | None = Field(default=None, ge=0, description="Of training.")
    device_seconds: float | None = Field(default=None, ge=0, description="Of CPU or GPU.")


class RunStatus(ContractModel):
    """Status of a MorphogeneticRun."""

    phase: RunPhase | None = Field(default=None, description="One word, derived from the conditions.")
    observed_generation: Count = Field(default=0, description="Generation of the spec that was acted on.")
    conditions: tuple[Condition, ...] = Field(
        default=(), max_length=16, json_schema_extra=BY_TYPE, description="By type."
    )
    progress: RunProgress | None = Field(default=None, description="How far it is.")
    parameters: RunParameters | None = Field(default=None, description="Parameters of the model.")
    seeds: dict[Short, Count] = Field(
        default_factory=dict, max_length=16, description="How many in which stage."
    )
    seeds_summary: Short = Field(default="", description="Seeds in a few characters, for the column.")
    adaptations: tuple[Adaptation, ...] = Field(
        default=(), max_length=ADAPTATIONS_SHOWN, description="The last ones; the journal has all."
    )
    checkpoint: RunCheckpoint | None = Field(default=None, description="The last complete one.")
    result: RunResult | None = Field(default=None, description="Once it has ended.")
    usage: RunUsage = Field(default=RunUsage(), description="What it has used.")
    attempt: Count = Field(default=0, description="Number of the Job that is or was the last one.")
    started_at: Time | None = Field(default=None, description="When the first Job was made.")
    identity: Short | None = Field(
        default=None, description="Digest of host, task and random seed, which do not change."
    )


class BlueprintSpec(ContractModel):
    """A blueprint as a resource. It never changes: another graph is another blueprint."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a blueprint does not change; apply the new graph under another name"),
        Rule(
            "self.graph.nodes.all(n, !has(n.inputs) || n.inputs.all(i, i == 'input' || "
            "self.graph.nodes.exists(m, i == m.id || i.startsWith(m.id + '.'))))",
            "a node reads an input that is neither 'input' nor the id of a node",
        ),
        Rule(
            "self.graph.nodes.exists(n, self.graph.output == n.id || "
            "self.graph.output.startsWith(n.id + '.'))",
            "graph.output must be the id of a node",
        ),
        Rule(
            "self.graph.nodes.all(n, self.graph.nodes.exists_one(m, m.id == n.id))",
            "two nodes have the same id",
        ),
        Rule(
            "self.graph.nodes.all(n, n.id != 'input')",
            "'input' is the graph's input and cannot be the id of a node",
        ),
    )

    graph: Blueprint = Field(description="The graph: nodes, output, interface.")
    pipelines: tuple[Pipeline, ...] = Field(
        default=(Pipeline.FAST,), min_length=1, max_length=3, description="How it is made ready."
    )


class BlueprintPhase(StrEnum):
    """One word for a blueprint, derived from its conditions."""

    PENDING = "Pending"
    INVALID = "Invalid"
    FORGING = "Forging"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    QUARANTINED = "Quarantined"


class BlueprintCondition(StrEnum):
    """Types of a blueprint's conditions.

    Evaluated says that the tests are over, its reason how they ended. Served says what the others cannot:
    whether the library offers it, and whether pools make its kernels.
    """

    VALID = "Valid"
    COMPILED = "Compiled"
    EVALUATED = "Evaluated"
    QUARANTINED = "Quarantined"
    SERVED = "Served"


class Score(ContractModel):
    """Mean contribution of its kernels in real trainings, with a 95 % interval."""

    mean: float = Field(description="Decrease of the validation loss, relative.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")
    count: Count = Field(description="Trainings.")


class BlueprintStatus(ContractModel):
    """Status of a Blueprint."""

    phase: BlueprintPhase | None = Field(default=None, description="One word, derived from the conditions.")
    observed_generation: Count = Field(default=0, description="Generation of the spec that was acted on.")
    conditions: tuple[Condition, ...] = Field(
        default=(), max_length=8, json_schema_extra=BY_TYPE, description="By type."
    )
    id: Short | None = Field(
        default=None, description="bp- and 12 hex digits of the canonical graph's SHA-256."
    )
    library: Short | None = Field(
        default=None, description="Incarnation of the library that it is entered in."
    )
    kernels: dict[Short, Count] = Field(default_factory=dict, max_length=16, description="How many by state.")
    kernels_summary: Short = Field(default="", description="Validated of all, for the column.")
    score: Score | None = Field(default=None, description="What it brought in real trainings.")


class CompiledKernelSpec(ContractModel):
    """A kernel of the library, shown read-only. It never changes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a kernel does not change; the library is its source"),
    )

    blueprint: BlueprintId = Field(description="Id of its blueprint.")
    interface: KernelInterface = Field(description="The slots that it fits.")
    target: Target = Field(description="What it runs on.")
    pipeline: Pipeline = Field(description="How it was made ready.")
    uri: Uri = Field(description="Where the artifact is.")
    digest: Sha256 = Field(description="SHA-256 of the artifact.")
    bytes: Count = Field(description="Size of the artifact.")


class KernelCondition(StrEnum):
    """Types of a kernel's conditions."""

    KEPT = "Kept"
    COMPILED = "Compiled"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    QUARANTINED = "Quarantined"


class CompiledKernelStatus(ContractModel):
    """Status of a CompiledKernel."""

    phase: KernelState | None = Field(default=None, description="State of the kernel.")
    observed_generation: Count = Field(default=0, description="Generation of the spec that was acted on.")
    conditions: tuple[Condition, ...] = Field(
        default=(), max_length=8, json_schema_extra=BY_TYPE, description="By type."
    )
    measurements: dict[Short, Measurement] = Field(
        default_factory=dict, max_length=32, description="By name; the unit is in the name."
    )
    numbers: dict[Short, float] = Field(
        default_factory=dict, max_length=32, description="Single figures by name."
    )
    tags: tuple[Short, ...] = Field(default=(), max_length=32, description="Of Urabrask.")
    risk: float | None = Field(default=None, ge=0, le=1, description="That it fails in a training.")
    equivalence: float | None = Field(
        default=None, ge=0, description="Largest difference to the eager graph, relative."
    )
    speed: Short = Field(default="", description="Speed against eager, for the column.")
    signature: Signature | None = Field(default=None, description="Urabrask's.")


class RunResourceSpec(RunSpec):
    """What to train and how it may grow."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.host == oldSelf.host", "spec.host does not change; make a new run under another name"),
        Rule("self.task == oldSelf.task", "spec.task does not change; make a new run under another name"),
        Rule(
            "self.training.randomSeed == oldSelf.training.randomSeed",
            "spec.training.randomSeed does not change; make a new run under another name",
        ),
    )
