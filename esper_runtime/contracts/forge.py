"""What the forge's planner notes about its work, so that another one can go on after its death."""

from typing import Literal

from pydantic import Field

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.kernel import KernelId, Pipeline, Sha256, Target

Work = Literal["compile", "evaluate"]
"""The two kinds of work on a kernel, in their order."""


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

    def attempt(self, work: Work) -> WorkAttempt | None:
        """The latest try of a work."""
        return self.compile if work == "compile" else self.evaluate

    def with_attempt(self, work: Work, attempt: WorkAttempt) -> "KernelNote":
        """This note with another latest try."""
        return self.model_copy(update={work: attempt})


class WorkerFacts(ContractModel):
    """What a worker on some machine would make kernels for, and with what: what wishes must say to be met."""

    target: Target
    toolchains: dict[Pipeline, dict[str, str]] = Field(
        max_length=3, description="Versions that kernels depend on, by each pipeline that is offered there."
    )
