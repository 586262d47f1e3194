"""What a controller service may be obeyed in: answers to the present question, within the limits."""

from dataclasses import dataclass

from esper_runtime.contracts import Answer, Decision, Growth, Operation, Probe, SystemState
from esper_runtime.tamiyo.limits import Limits

MOST_LEARNING_RATE = 100.0
"""Factor of a newborn's learning rate; the manifest allows no more either."""
BOUNDARIES_PER_DECISION = 2
"""An answer takes effect one boundary after its question at the earliest."""
TRIALS_ANEW = 1.5
"""A second round of trials begins anew where it is asked for over the bus; it costs at most so much more."""


@dataclass(frozen=True)
class Asker:
    """Who asks: the run, the number of this process in its life, and a word that no other process has."""

    run: str
    incarnation: int
    word: str


def why_stale(answer: Answer, asker: Asker, epoch: int, number: int | None) -> str | None:
    """Why the answer is not one to the question that is open now; None when it is.

    Args:
        answer: what came.
        asker: this process.
        epoch: the present one.
        number: of the open question, None where there is none.
    """
    if answer.run != asker.run:
        return f"it is for run {answer.run!r}, this is {asker.run!r}"
    if answer.incarnation != asker.incarnation:
        return f"it is for incarnation {answer.incarnation} of the run, this is {asker.incarnation}"
    if answer.asker != asker.word:
        return "it is for another process that trained a run of this name"
    if answer.epoch != epoch:
        passed = "is over" if answer.epoch < epoch else "has not begun"
        return f"its epoch {answer.epoch} {passed}, the present one is {epoch}"
    if number is None or answer.in_reply_to != number:
        open_ = "no question is open" if number is None else f"question {number} is the open one"
        return f"it answers question {answer.in_reply_to}, {open_}"
    return None


def why_illegal(decision: Decision, state: SystemState, trials_left: float) -> str | None:
    """Why the decision must not be obeyed at this boundary; None when all of it may.

    Args:
        decision: what the service wants.
        state: the snapshot of the boundary at which it would take effect.
        trials_left: compute that trials may still use, in steps of the ungrown host.
    """
    if decision.probe is not None:
        if decision.directives:
            return "it commands and asks for trials at once"
        return _why_no_trials(decision.probe, state, trials_left)
    limits = Limits(state)
    for directive in decision.directives:
        what = f"{directive.operation} {directive.seed or directive.slot}"
        if directive.effective_step > state.step:
            return f"{what}: it is for step {directive.effective_step}, this is {state.step}"
        reason = limits.refuse(directive)
        if reason is not None:
            return f"{what}: {reason}"
        plan = directive.plan
        if directive.operation is Operation.GERMINATE and plan is not None:
            longest = max(plan.training_steps, plan.ramp_steps, plan.grafting_steps)
            if state.step + longest > state.total_steps:
                return f"{what}: its plan has a stage of {longest} steps, which goes past the run's end"
            if plan.learning_rate_factor > MOST_LEARNING_RATE:
                return f"{what}: its plan multiplies the learning rate by {plan.learning_rate_factor:g}"
        limits.admit(directive)
    return None


def _why_no_trials(probe: Probe, state: SystemState, trials_left: float) -> str | None:
    offered = {(c.slot, c.blueprint): c for c in state.candidates}
    chosen = set(probe.candidates)
    if len(chosen) < len(probe.candidates):
        return "it asks for two trials of one candidate"
    for slot, blueprint in probe.candidates:
        if (slot, blueprint) not in offered:
            return f"it asks for a trial of blueprint {blueprint} in slot {slot}, which is not offered"
    allowed = {(c.slot, c.blueprint) for c in Limits(state).plantable(state.candidates)}
    if not chosen <= allowed:
        slot, blueprint = min(chosen - allowed)
        return f"it asks for a trial of blueprint {blueprint} in slot {slot}, where it must not be planted"
    cost = cost_of(probe, state)
    if cost > trials_left:
        return (
            f"its trials cost {cost:.0f} steps of the ungrown host and {max(0.0, trials_left):.0f} are left "
            f"of growth.controller.trialShare"
        )
    return None


def cost_of(probe: Probe, state: SystemState) -> float:
    """Compute of a probe whose trials begin anew, in steps of the ungrown host."""
    offered = {(c.slot, c.blueprint): c.macs_per_example for c in state.candidates}
    host = state.budget.macs_now
    macs = host + sum(host + offered[pair] for pair in probe.candidates)
    return probe.steps * macs / state.budget.macs_start


def narrowed(growth: Growth, total_steps: int) -> Growth:
    """The settings for a service, which decides at every second boundary and repeats trials.

    With them what it decides on time is also carried out on time, and its trials stay within the budget.
    """
    settings = growth.controller
    every = settings.every_steps or max(1, total_steps // 100)
    changes = {
        "every_steps": BOUNDARIES_PER_DECISION * every,
        "trial_share": settings.trial_share / TRIALS_ANEW,
    }
    return growth.model_copy(update={"controller": settings.model_copy(update=changes)})
