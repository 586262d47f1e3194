"""The forge's work: what lies in its queues, what was given up, and what the planner notes of it."""

from typing import Literal

from pydantic import Field

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.blueprint import Blueprint, BlueprintBudget
from esper_runtime.contracts.kernel import (
    InnovationId,
    KernelId,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Sha256,
    Target,
)

KernelWork = Literal["compile", "evaluate"]
"""The two kinds of work on a kernel, in their order."""
Work = Literal["compile", "evaluate", "generate"]
"""All kinds of work; the last one invents blueprints."""


class CompileWork(ContractModel):
    """An item of the queue ``esper.forge.compile.<target>``."""

    spec: KernelSpec
    graph: Blueprint
    attempt: int = Field(default=1, ge=1, description="Counted by the planner.")


class EvaluateWork(ContractModel):
    """An item of the queue ``esper.forge.evaluate.<target>``."""

    kernel: KernelId
    digest: Sha256
    attempt: int = Field(default=1, ge=1, description="Counted by the planner.")


class GenerateWork(ContractModel):
    """An item of the queue ``esper.forge.generate.<target>``: blueprints are to be proposed."""

    wish: InnovationId
    slots: KernelInterface = Field(description="That they have to fit.")
    budget: BlueprintBudget = Field(default=BlueprintBudget(), description="Most that each may cost there.")
    parents: tuple[Blueprint, ...] = Field(
        default=(), max_length=8, description="Good ones, the best first, that may be changed."
    )
    number: int = Field(ge=1, le=16, description="So many.")
    seed: int = Field(ge=0, le=2**53 - 1, description="That all draws follow from.")


WorkSpec = CompileWork | EvaluateWork | GenerateWork


class DeadWork(ContractModel):
    """An item that was given up, with its reason; kept on the dead-letter stream."""

    work: Work
    target: str = Field(max_length=63)
    item: WorkSpec | None = Field(default=None, description="Absent where it could not be read.")
    payload: str | None = Field(default=None, max_length=65_536, description="Where it could not be read.")
    reason: str = Field(max_length=2000)
    deliveries: int = Field(ge=0)
    time: str = Field(max_length=64)


class WorkAttempt(ContractModel):
    """The latest try of one work on one kernel.

    It is noted before it is published, under an id made of kernel, work and number: a planner that dies
    between the two leaves ``sequence`` absent, and the next one publishes the same try.
    """

    number: int = Field(ge=1)
    sequence: int | None = Field(default=None, ge=1, description="In the stream FORGE, once published.")
    digest: Sha256 | None = Field(default=None, description="Of the artifact to be evaluated.")
    forgiven: int = Field(default=0, ge=0, description="Tries up to this one that no longer count.")


class KernelNote(ContractModel):
    """What the planner knows of its own work on a kernel; results are in the library."""

    kernel: KernelId
    compile: WorkAttempt | None = None
    evaluate: WorkAttempt | None = None
    dropped: str | None = Field(default=None, max_length=500, description="Why a person wants none of it.")
    pardoned: tuple[str, ...] = Field(
        default=(), max_length=1024, description="Runs whose reports of failure no longer count."
    )

    def attempt(self, work: KernelWork) -> WorkAttempt | None:
        """The latest try of a work."""
        return self.compile if work == "compile" else self.evaluate

    def with_attempt(self, work: KernelWork, attempt: WorkAttempt) -> "KernelNote":
        """This note with another latest try."""
        return self.model_copy(update={work: attempt})


class WorkerFacts(ContractModel):
    """What a worker on some machine would make kernels for, and with what: what wishes must say to be met."""

    target: Target
    toolchains: dict[Pipeline, dict[str, str]] = Field(
        max_length=3, description="Versions that kernels depend on, by each pipeline that is offered there."
    )
