"""What is measured in training and handed to the controller. A quantity not measured is absent."""

from pydantic import Field

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.blueprint import Interface
from esper_runtime.contracts.kernel import KernelId
from esper_runtime.contracts.lifecycle import SeedStage, SlotState


class Measured(ContractModel):
    """A mean with its standard error over ``count`` samples."""

    mean: float
    standard_error: float = Field(ge=0)
    count: int = Field(ge=1)

    def lower(self, z: float = 1.96) -> float:
        """Lower end of the normal interval, ``mean - z * standard_error``."""
        return self.mean - z * self.standard_error

    def upper(self, z: float = 1.96) -> float:
        """Upper end of the normal interval."""
        return self.mean + z * self.standard_error


class SlotTelemetry(ContractModel):
    """Health of the activation at a slot's read tap, from probe steps; every field may be unmeasured."""

    activation_variance: float | None = None
    gradient_norm: float | None = None
    dead_fraction: float | None = None
    effective_rank: float | None = None


class Candidate(ContractModel):
    """A blueprint that fits a slot, what it would cost and, where measured, what it promises.

    ``gain`` is the decrease of the training loss (loss units) that a trial of ``trial_steps`` steps showed:
    the loss of the copy without the seed minus that of the copy with it, batch by batch over the last half
    of the trial. Both are None until a probe has measured them; with ``trial_steps`` alone the trial failed.
    ``kernel`` is the validated kernel that would run, with its tags, its risk and the median time of a
    forward pass that Urabrask measured; absent where seeds are built without kernels.
    """

    slot: str
    blueprint: str
    name: str
    parameters: int
    macs_per_example: int
    gain: Measured | None = None
    trial_steps: int | None = None
    kernel: KernelId | None = None
    tags: tuple[str, ...] = ()
    risk: float | None = Field(default=None, ge=0, le=1)
    forward_us: float | None = Field(default=None, ge=0)


class SlotView(ContractModel):
    """A slot as the controller sees it. ``position`` counts slots in order of the forward pass.

    ``overlaps`` names the other slots whose taps lie between this slot's two taps, so that a change in
    one alters what the other reads or adds to; empty where none does.
    """

    slot: str
    state: SlotState
    position: int
    interface: Interface
    embargoed_until: int | None = None
    culls: int = 0
    seeds_kept: int = 0
    overlaps: tuple[str, ...] = ()
    telemetry: SlotTelemetry = SlotTelemetry()


class SeedView(ContractModel):
    """A living seed as the controller sees it.

    ``ready`` says that the stage's planned duration has passed. ``isolated_gain`` and ``contribution``
    are decreases of the validation loss with the seed against without it (loss units). ``competes`` says that
    it learns as a candidate of a tournament: those that compete in one slot are rivals, of which at most one
    will contribute.
    """

    seed: str
    slot: str
    blueprint: str
    name: str
    stage: SeedStage
    isolates: bool
    competes: bool = False
    steps_in_stage: int
    parameters: int
    macs_per_example: int
    alpha: float
    ready: bool
    isolated_gain: Measured | None = None
    contribution: Measured | None = None


class Validation(ContractModel):
    """One validation of the model as it is at a boundary; losses are means per example."""

    step: int
    train_loss: float | None = None
    loss: float
    metric: float


class BudgetView(ContractModel):
    """What growth may still use.

    ``..._now`` count the host and the seeds that contribute; seeds before Grafting are not in them.
    ``living_seeds`` counts the seeds that are not fossilized.
    """

    parameters_start: int
    parameters_now: int
    parameters_limit: int
    macs_start: int
    macs_now: int
    macs_limit: int | None = None
    living_seeds: int
    concurrent_seeds: int


class SystemState(ContractModel):
    """Snapshot at a step boundary: all that a controller may use."""

    step: int
    total_steps: int
    higher_is_better: bool
    validations: tuple[Validation, ...] = ()
    slots: tuple[SlotView, ...] = ()
    seeds: tuple[SeedView, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    budget: BudgetView
