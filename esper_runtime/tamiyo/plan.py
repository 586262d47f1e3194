"""The grafting plan of a seed: durations as shares of the run, shortened to what is left of it."""

from esper_runtime.contracts import GraftingPlan, Lifecycle, PlanChoice, PlanKind

TRAINING, RAMP, GRAFTING, EMBARGO, WARMUP = 0.05, 0.02, 0.1, 0.1, 0.025
SHORTEST_GRAFTING = 0.02
"""A derived learning time is not shortened below this share of the run: a judgement would be chance."""

KINDS = {
    PlanChoice.AUTO: PlanKind.IMMEDIATE,
    PlanChoice.IMMEDIATE: PlanKind.IMMEDIATE,
    PlanChoice.ISOLATED: PlanKind.ISOLATED,
    PlanChoice.TOURNAMENT: PlanKind.TOURNAMENT,
}
"""What the heuristic makes of the manifest's choice."""


def boundaries(lifecycle: Lifecycle, kind: PlanKind) -> int:
    """Boundaries at which the controller has to be asked between planting a seed and judging it."""
    stages = 2 if kind is PlanKind.IMMEDIATE else 3
    return stages + (lifecycle.stabilizing_steps > 0) + (lifecycle.fine_tuning_steps > 0) + 1


def duration(plan: GraftingPlan) -> int:
    """Steps from planting to the last judgement, waiting for boundaries not counted."""
    learning = max(plan.ramp_steps, plan.grafting_steps)
    return plan.training_steps + learning + plan.stabilizing_steps + plan.fine_tuning_steps


def make_plan(
    lifecycle: Lifecycle, step: int, total_steps: int, every: int, culls: int
) -> GraftingPlan | None:
    """The plan of a seed planted now, or None when it could not be judged before the end of the run.

    Args:
        lifecycle: settings; durations that are given are kept, absent ones are shares of the run.
        step: optimizer steps done.
        total_steps: length of the run.
        every: steps between two boundaries at which the controller is asked.
        culls: seeds culled in the slot so far; the slot's rest after a cull doubles with each.
    """
    kind = KINDS[lifecycle.plan]
    isolates = kind is not PlanKind.IMMEDIATE
    rest = lifecycle.embargo_steps
    plan = GraftingPlan(
        kind=kind,
        training_steps=_steps(lifecycle.training_steps, TRAINING, total_steps) if isolates else 0,
        ramp_steps=_steps(lifecycle.ramp_steps, RAMP, total_steps) if isolates else 0,
        grafting_steps=_steps(lifecycle.grafting_steps, GRAFTING, total_steps),
        stabilizing_steps=lifecycle.stabilizing_steps,
        fine_tuning_steps=lifecycle.fine_tuning_steps,
        warmup_steps=_steps(lifecycle.warmup_steps, WARMUP, total_steps),
        learning_rate_factor=lifecycle.learning_rate_factor,
        initialisation=lifecycle.initialisation,
        embargo_steps=_steps(rest, EMBARGO, total_steps) * 2 ** min(culls, 30),
    )
    excess = step + duration(plan) + boundaries(lifecycle, kind) * every - total_steps
    if excess <= 0:
        return plan
    shorter = plan.grafting_steps - excess
    if lifecycle.grafting_steps is not None or shorter < max(1, round(SHORTEST_GRAFTING * total_steps)):
        return None
    return plan.model_copy(update={"grafting_steps": shorter})


def _steps(given: int | None, share: float, total_steps: int) -> int:
    return given if given is not None else max(1, round(share * total_steps))
