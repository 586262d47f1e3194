"""Keep or cull: what each living seed is told, from its readiness and its measured contribution."""

from dataclasses import dataclass
from statistics import NormalDist

from esper_runtime.contracts import Directive, Gates, Measured, Operation, SeedStage, SeedView, SystemState

Evidence = dict[str, float | int | str]


def z_value(confidence: float) -> float:
    """Half-width of the two-sided normal interval in standard errors, e.g. 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


@dataclass(frozen=True)
class Verdict:
    """What a seed's contribution says; ``price`` is the decrease of the loss that it must earn."""

    operation: Operation | None
    text: str
    evidence: Evidence


def price_of(seed: SeedView, state: SystemState, gates: Gates) -> float | None:
    """Decrease of the validation loss that the seed must bring; None while no validation is known.

    ``gates.price`` x growth of the model in percent of the host's parameters x current validation loss.
    """
    if not state.validations:
        return None
    growth = 100 * seed.parameters / state.budget.parameters_start
    return gates.price * growth * abs(state.validations[-1].loss)


def verdict(seed: SeedView, state: SystemState, gates: Gates) -> Verdict | None:
    """Fossilize, Cull, or no operation where the interval holds the price; None if not measured."""
    price = price_of(seed, state, gates)
    if seed.contribution is None or price is None:
        return None
    z = z_value(gates.confidence)
    low, high = seed.contribution.lower(z), seed.contribution.upper(z)
    growth = 100 * seed.parameters / state.budget.parameters_start
    measured = (
        f"with it the validation loss is lower by {interval(seed.contribution, z)} "
        f"({gates.confidence:.0%} interval); its price is {price:.3g} for {growth:.1f} % more parameters"
    )
    evidence: Evidence = {
        "contribution": seed.contribution.mean,
        "contribution_low": low,
        "contribution_high": high,
        "price": price,
    }
    if low >= price:
        return Verdict(Operation.FOSSILIZE, f"{measured}: it earns its place", evidence)
    if high < price:
        return Verdict(Operation.CULL, f"{measured}: it does not pay", evidence)
    return Verdict(None, f"{measured}: not decided by the interval", evidence)


def interval(measured: Measured, z: float) -> str:
    """Mean and half-width of the interval in words."""
    return f"{measured.mean:.3g} +- {z * measured.standard_error:.2g}"


class Judge:
    """Tells living seeds their next stage.

    Args:
        gates: what must be measured, and the price.
        fine_tuning_steps: length of the second chance of an undecided seed; 0: there is none.
        stabilizing_steps: for how long a seed is frozen before it is measured; 0: not at all.
        every: steps between two boundaries at which the controller is asked.
    """

    def __init__(self, gates: Gates, fine_tuning_steps: int, stabilizing_steps: int, every: int) -> None:
        self._gates = gates
        self._fine_tuning_steps = fine_tuning_steps
        self._stabilizing_steps = stabilizing_steps
        self._every = every

    def command(self, seed: SeedView, state: SystemState) -> Directive | None:
        """The next command for the seed, or None when it is to go on as it is."""
        left = state.total_steps - state.step
        ending, last = left <= 2 * self._every, left <= self._every
        match seed.stage:
            case SeedStage.GERMINATED | SeedStage.LOADING:
                if ending:
                    return self._tell(seed, state, Operation.CANCEL, "the run ends before it could learn")
            case SeedStage.TRAINING:
                return self._isolated(seed, state, ending)
            case SeedStage.GRAFTING:
                return self._grafting(seed, state, ending, last)
            case SeedStage.STABILIZING:
                if last:
                    return self._tell(seed, state, Operation.CULL, "the run ends before it could be measured")
                if seed.ready or ending:
                    settled = f"it was frozen for {seed.steps_in_stage} steps and is measured now"
                    return self._tell(seed, state, Operation.EVALUATE, settled)
            case SeedStage.EVALUATING | SeedStage.FINE_TUNING:
                return self._judge(seed, state, ending, last)
        return None

    def _isolated(self, seed: SeedView, state: SystemState, ending: bool) -> Directive | None:
        if ending:
            return self._tell(seed, state, Operation.CANCEL, "the run ends before it could be grafted")
        if not seed.ready or seed.isolated_gain is None:
            return None
        z = z_value(self._gates.confidence)
        gain = f"behind the host it lowers the validation loss by {interval(seed.isolated_gain, z)}"
        evidence: Evidence = {
            "isolated_gain": seed.isolated_gain.mean,
            "isolated_gain_low": seed.isolated_gain.lower(z),
        }
        if seed.isolated_gain.mean > 0:
            return self._tell(seed, state, Operation.GRAFT, f"{gain}: it is let into the host", evidence)
        return self._tell(seed, state, Operation.CULL, f"{gain}: it has learned nothing of use", evidence)

    def _grafting(self, seed: SeedView, state: SystemState, ending: bool, last: bool) -> Directive | None:
        if last or (ending and seed.alpha < 1):
            return self._tell(seed, state, Operation.CULL, "the run ends before it could be measured")
        if ending:
            return self._tell(seed, state, Operation.EVALUATE, "the run ends soon, so it is measured now")
        if not seed.ready or seed.alpha < 1:
            return None
        learned = f"it has learned in the host for {seed.steps_in_stage} steps"
        if self._stabilizing_steps > 0:
            return self._tell(seed, state, Operation.STABILIZE, f"{learned}; normalisation settles next")
        return self._tell(seed, state, Operation.EVALUATE, f"{learned} and is measured now")

    def _judge(self, seed: SeedView, state: SystemState, ending: bool, last: bool) -> Directive | None:
        found = verdict(seed, state, self._gates)
        if found is None:
            unmeasured = "its contribution could not be measured before the run ends: unknown is not kept"
            return self._tell(seed, state, Operation.CULL, unmeasured) if last else None
        evaluating = seed.stage is SeedStage.EVALUATING
        if not evaluating and not (seed.ready or ending):
            return None
        if found.operation is not None:
            return self._tell(seed, state, found.operation, found.text, found.evidence)
        if evaluating and self._fine_tuning_steps > 0 and not ending:
            text = f"{found.text}; it learns for {self._fine_tuning_steps} more steps"
            return self._tell(seed, state, Operation.FINE_TUNE, text, found.evidence)
        pays = found.evidence["contribution"] >= found.evidence["price"]  # type: ignore[operator]
        text = f"{found.text}; the mean is {'above' if pays else 'below'} the price and decides"
        operation = Operation.FOSSILIZE if pays else Operation.CULL
        return self._tell(seed, state, operation, text, found.evidence)

    def _tell(
        self,
        seed: SeedView,
        state: SystemState,
        operation: Operation,
        why: str,
        evidence: Evidence | None = None,
    ) -> Directive:
        return Directive(
            operation=operation,
            seed=seed.seed,
            effective_step=state.step,
            explanation=f"step {state.step} of {state.total_steps}: seed {seed.seed} '{seed.name}' "
            f"at {seed.slot}: {why}",
            evidence=evidence or {},
        )
