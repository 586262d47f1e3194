"""Tournaments: who learns side by side behind the host in one slot, and who of them is let in."""

from collections import defaultdict
from collections.abc import Sequence

from esper_runtime.contracts import (
    Candidate,
    Directive,
    Gates,
    GraftingPlan,
    Operation,
    SeedView,
    SystemState,
)
from esper_runtime.tamiyo.judge import Evidence, interval, price_of, z_value
from esper_runtime.tamiyo.limits import Limits
from esper_runtime.tamiyo.trials import family
from esper_runtime.tamiyo.when import Timing
from esper_runtime.tamiyo.words import clip

GAINED = "gained_less_than"
"""Evidence of a candidate that gained, but less than the winner: it may enter another tournament."""


def competitors(ranked: Sequence[Candidate], limits: Limits, most: int) -> list[Candidate]:
    """The first candidates of different kinds in one slot, as many as may live at once.

    The slot is that of the first candidate in whose slot there is a choice, else that of the first.

    Args:
        ranked: candidates that may be planted, at least one; the most promising first.
        limits: seeds left.
        most: candidates of a tournament.
    """
    by_slot: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for candidate in ranked:
        by_slot[candidate.slot].setdefault(family(candidate.name), candidate)
    kinds = next((kinds for kinds in by_slot.values() if len(kinds) > 1), by_slot[ranked[0].slot])
    return list(kinds.values())[: min(most, limits.seeds_left)]


def cost_of(chosen: Sequence[Candidate], plan: GraftingPlan, state: SystemState) -> float:
    """Compute of the isolated learning of all candidates, in steps of the ungrown host."""
    macs = sum(state.budget.macs_now + candidate.macs_per_example for candidate in chosen)
    return plan.training_steps * macs / max(1, state.budget.macs_start)


def enter(
    candidate: Candidate,
    chosen: Sequence[Candidate],
    plan: GraftingPlan,
    when: Timing,
    limits: Limits,
    state: SystemState,
) -> Directive:
    """Plant one of the candidates of a tournament."""
    others = ", ".join(f"'{c.name}'" for c in chosen if c is not candidate) or "nobody"
    text = (
        f"step {state.step} of {state.total_steps}: {when.text}; '{candidate.name}' enters a tournament at "
        f"{candidate.slot} against {others}: they learn behind the host for {plan.training_steps} steps, and "
        f"one is let in at most; it would take {candidate.parameters:,} parameters"
    )
    return Directive(
        operation=Operation.GERMINATE,
        slot=candidate.slot,
        blueprint=candidate.blueprint,
        plan=plan,
        effective_step=state.step,
        explanation=clip(text),
        evidence={
            **when.evidence,
            "candidates": len(chosen),
            "parameters": candidate.parameters,
            "macs_per_example": candidate.macs_per_example,
            "parameters_left": limits.parameters_left,
        },
    )


def settle(state: SystemState, gates: Gates, every: int) -> list[Directive]:
    """Commands for the candidates of all tournaments that are ready to be decided, or run out of time.

    Args:
        state: the snapshot of the boundary.
        gates: confidence of the interval, and the price.
        every: steps between two boundaries at which the controller is asked.
    """
    tournaments: dict[str, list[SeedView]] = defaultdict(list)
    for seed in state.seeds:
        if seed.competes:
            tournaments[seed.slot].append(seed)
    ending = state.total_steps - state.step <= 2 * every
    directives: list[Directive] = []
    for rivals in tournaments.values():
        if ending:
            why = "the run ends before its tournament could be decided"
            directives += [_tell(seed, state, Operation.CANCEL, why, {}) for seed in rivals]
        elif all(seed.ready for seed in rivals):
            directives += _decide(rivals, state, gates)
    return directives


def _decide(rivals: Sequence[SeedView], state: SystemState, gates: Gates) -> list[Directive]:
    """Graft the candidate that gains most over its price, cull the others; all where none surely gains."""
    z = z_value(gates.confidence)
    prices = {seed.seed: price_of(seed, state, gates) or 0.0 for seed in rivals}
    surplus = {
        seed.seed: seed.isolated_gain.mean - prices[seed.seed]
        for seed in rivals
        if seed.isolated_gain is not None and seed.isolated_gain.lower(z) > 0
    }
    able = [seed for seed in rivals if surplus.get(seed.seed, -1.0) >= 0]
    winner = max(able, key=lambda seed: surplus[seed.seed]) if able else None
    directives = []
    for seed in rivals:
        evidence = _evidence(seed, z, prices[seed.seed], len(rivals))
        own = _gain(seed, z, prices[seed.seed])
        if winner is None:
            what = f"{own}; none of the {len(rivals)} candidates surely gains its price"
            directives.append(_tell(seed, state, Operation.CULL, what, evidence))
        elif seed is winner:
            others = ", ".join(_short(s) for s in rivals if s is not winner)
            what = f"{own}: it wins against {others}" if others else f"{own}: it is let into the host"
            directives.append(_tell(seed, state, Operation.GRAFT, what, evidence))
        else:
            what = (
                f"it loses the tournament to seed {winner.seed} '{winner.name}': {own}; "
                f"that one {_gain(winner, z, prices[winner.seed])}"
            )
            better: Evidence = {"winner": winner.seed}
            if seed.seed in surplus:
                better[GAINED] = winner.seed
            directives.append(_tell(seed, state, Operation.CULL, what, {**evidence, **better}))
    return directives


def _gain(seed: SeedView, z: float, price: float) -> str:
    if seed.isolated_gain is None:
        return "has a gain that could not be measured"
    amount = interval(seed.isolated_gain, z)
    return f"lowers the validation loss behind the host by {amount} at a price of {price:.3g}"


def _short(seed: SeedView) -> str:
    gain = "not measured" if seed.isolated_gain is None else f"{seed.isolated_gain.mean:.3g}"
    return f"seed {seed.seed} '{seed.name}' ({gain})"


def _evidence(seed: SeedView, z: float, price: float, candidates: int) -> Evidence:
    gain = seed.isolated_gain
    measured: Evidence = (
        {} if gain is None else {"isolated_gain": gain.mean, "isolated_gain_low": gain.lower(z)}
    )
    return {**measured, "price": price, "candidates": candidates}


def _tell(
    seed: SeedView, state: SystemState, operation: Operation, why: str, evidence: Evidence
) -> Directive:
    text = f"step {state.step} of {state.total_steps}: seed {seed.seed} '{seed.name}' at {seed.slot}: {why}"
    return Directive(
        operation=operation,
        seed=seed.seed,
        effective_step=state.step,
        explanation=clip(text),
        evidence=evidence,
    )
