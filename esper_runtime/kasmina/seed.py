"""A living seed: a small module beside the host, its stage, and the guard around its forward pass."""

import logging
import math
from functools import cached_property

import torch
from torch import Tensor, nn

from esper_runtime.blueprint import Cost, cost
from esper_runtime.contracts import (
    CONTRIBUTING,
    Blueprint,
    GraftingPlan,
    Interface,
    Measured,
    PlanKind,
    SeedStage,
)
from esper_runtime.kasmina.recomputation import STOP, backward_pass

log = logging.getLogger(__name__)

UNDECIDED = frozenset({SeedStage.GERMINATED, SeedStage.LOADING, SeedStage.TRAINING})
"""Stages before a seed is let into the host."""


class Seed(nn.Module):
    """One seed. ``contribute`` is what the host's write tap calls while the seed is attached.

    Attributes:
        born: step at which it germinated.
        entered: step at which the present stage began.
        alpha: factor of the contribution, 0 to 1.
        failure: what went wrong in a forward pass, or None; a failed seed contributes nothing.
        apart: it learns in passes of its own: the host cannot be run for several candidates at once.
        trial_gain: what a trial on a copy of the model promised before it was planted.
        kernel: id of the kernel that its body is made of; None where the model has no stock of kernels.
        digest: of the kernel's artifact.
        twin: id and digest of the kernel whose compiled twin of the body runs in its place.
    """

    def __init__(
        self,
        identity: str,
        slot: str,
        blueprint: Blueprint,
        blueprint_id: str,
        plan: GraftingPlan,
        interface: Interface,
        step: int,
    ) -> None:
        super().__init__()
        self.identity = identity
        self.slot = slot
        self.blueprint = blueprint
        self.blueprint_id = blueprint_id
        self.plan = plan
        self.interface = interface
        self.stage = SeedStage.GERMINATED
        self.born = step
        self.entered = step
        self.alpha = 0.0
        self.failure: str | None = None
        self.apart = False
        self.kernel: str | None = None
        self.digest: str | None = None
        self.twin: tuple[str, str] | None = None
        self.isolated_gain: Measured | None = None
        self.contribution: Measured | None = None
        self.trial_gain: Measured | None = None
        self.body: nn.Module = nn.Identity()
        self._idle = False

    @property
    def isolates(self) -> bool:
        """True when the plan lets the seed learn behind the host first."""
        return self.plan.kind is not PlanKind.IMMEDIATE

    @property
    def cohort(self) -> tuple[str, int] | None:
        """Names the tournament that the seed takes part in: slot and step of germination; None for none."""
        return (self.slot, self.born) if self.plan.kind is PlanKind.TOURNAMENT else None

    @property
    def competes(self) -> bool:
        """True while it learns as a candidate of a tournament that is not decided for it yet."""
        return self.cohort is not None and self.stage in UNDECIDED

    @property
    def contributing(self) -> bool:
        """True in the stages in which the seed adds to the host's activations."""
        return self.stage in CONTRIBUTING

    @cached_property
    def price(self) -> Cost:
        """Parameters, and MACs of one example."""
        return cost(self.blueprint, self.interface)

    def contribute(self, x: Tensor, value: Tensor) -> Tensor | None:
        """What to add to ``value`` at the write tap, given ``x`` from the read tap; None for nothing.

        A seed that raises, or yields a wrong shape or a non-finite number, contributes nothing from then on:
        the host takes the identity path within the same forward pass, and the next boundary culls the seed.
        """
        if backward_pass() == -1:
            # What runs again in the backward pass must do what the forward pass did.
            self._idle = self.failure is not None or self.alpha == 0.0
        if self._idle:
            return None
        try:
            y: Tensor = self.body(x)
        except STOP:
            raise
        except Exception as error:  # whatever a seed raises must not end the host's step
            if torch.compiler.is_compiling():
                raise
            self._fail(f"its forward pass raised {type(error).__name__}: {error}")
            return None
        if not torch.compiler.is_compiling():
            if y.shape != value.shape:
                self._fail(f"it yielded shape {tuple(y.shape)} where the host has {tuple(value.shape)}")
                return None
            if not math.isfinite(y.detach().sum(dtype=torch.float32).item()):
                self._fail("its forward pass yielded a non-finite value")
                return None
        if y.dtype != value.dtype:
            y = y.to(value.dtype)
        return y if self.alpha == 1.0 else y * self.alpha

    def _fail(self, reason: str) -> None:
        if self.failure is not None:
            return
        self.failure = reason
        log.warning(
            "seed %s (%s) at %s: %s; identity path", self.identity, self.blueprint.name, self.slot, reason
        )

    def ramp(self, step: int) -> None:
        """Set alpha for the steps that follow boundary ``step``: linear in Grafting, 1 at the ramp's end."""
        if self.stage is SeedStage.GRAFTING and self.alpha < 1.0:
            done = step - self.entered + 1
            self.alpha = 1.0 if done >= self.plan.ramp_steps else done / self.plan.ramp_steps

    def ready(self, step: int) -> bool:
        """True when the planned duration of the present stage has passed at boundary ``step``."""
        return (
            self.stage not in (SeedStage.GERMINATED, SeedStage.LOADING)
            and step - self.entered >= self._duration()
        )

    def _duration(self) -> int:
        match self.stage:
            case SeedStage.TRAINING:
                return self.plan.training_steps
            case SeedStage.GRAFTING:
                return max(self.plan.ramp_steps, self.plan.grafting_steps)
            case SeedStage.STABILIZING:
                return self.plan.stabilizing_steps
            case SeedStage.FINE_TUNING:
                return self.plan.fine_tuning_steps
            case _:
                return 0

    def parameter_count(self) -> int:
        """Number of parameters of the body."""
        return sum(p.numel() for p in self.body.parameters())
