"""Limits that no controller can break: directives that would break one are refused with the reason."""

from collections import defaultdict
from collections.abc import Iterable

from esper_runtime.contracts import (
    Candidate,
    Directive,
    Operation,
    PlanKind,
    SeedStage,
    SeedView,
    SlotState,
    SlotView,
    SystemState,
    TransitionError,
    check_command,
)

_WAITING = frozenset({SeedStage.GERMINATED, SeedStage.LOADING, SeedStage.TRAINING})


class Limits:
    """The limits as they stand at one boundary; `admit` counts what was accepted at it so far."""

    def __init__(self, state: SystemState) -> None:
        budget = state.budget
        self._state = state
        self._slots = {slot.slot: slot for slot in state.slots}
        self._seeds = {seed.seed: seed for seed in state.seeds}
        self._candidates = {(c.slot, c.blueprint): c for c in state.candidates}
        waiting = [seed for seed in state.seeds if seed.stage in _WAITING]
        groups: dict[str, list[SeedView]] = defaultdict(list)
        for seed in waiting:
            groups[seed.slot if seed.competes else seed.seed].append(seed)
        self.parameters_left = budget.parameters_limit - budget.parameters_now
        self.parameters_left -= sum(max(s.parameters for s in group) for group in groups.values())
        self.macs_left: int | None = None
        if budget.macs_limit is not None:
            self.macs_left = budget.macs_limit - budget.macs_now
            self.macs_left -= sum(max(s.macs_per_example for s in group) for group in groups.values())
        unjudged = [seed for seed in state.seeds if seed.stage is not SeedStage.FOSSILIZED]
        self.seeds_left = budget.concurrent_seeds - len(unjudged)
        self._busy: dict[str, str] = {}
        for seed in unjudged:
            self._take(seed.slot, f"seed {seed.seed} in {seed.slot} is not judged yet")
        self._commanded: set[str] = set()
        self._charged: dict[str, tuple[int, int]] = {}
        """Parameters and MACs charged for tournaments that begin at this boundary, by slot."""

    def _take(self, slot: str, reason: str) -> None:
        """Mark a slot and those that overlap with it as busy."""
        view = self._slots.get(slot)
        for name in (slot, *(view.overlaps if view is not None else ())):
            self._busy.setdefault(name, reason)

    def why_not_slot(self, slot: SlotView) -> str | None:
        """Why no seed may be planted in the slot now; None when one may."""
        if slot.state is SlotState.LOCKED:
            return f"slot {slot.slot} is locked until a person unlocks it"
        if slot.state is SlotState.EMBARGOED:
            until = "" if slot.embargoed_until is None else f" until step {slot.embargoed_until}"
            return f"slot {slot.slot} rests{until} after a cull"
        for name in (slot.slot, *slot.overlaps):
            if name in self._busy:
                return f"one change per region at a time: {self._busy[name]}"
        return None

    def why_not_cost(self, candidate: Candidate) -> str | None:
        """Why the budget does not allow the candidate now; None when it does.

        What is charged already for the candidate's tournament, of which one can stay at most, is allowed.
        """
        parameters, macs = self._more(candidate)
        if self.seeds_left < 1:
            return (
                f"growth.budget.concurrentSeeds allows {self._state.budget.concurrent_seeds} unjudged seeds"
            )
        if parameters > self.parameters_left:
            return (
                f"it needs {parameters:,} parameters and {max(0, self.parameters_left):,} are left "
                f"of growth.budget.parameters ({self._state.budget.parameters_limit:,})"
            )
        if self.macs_left is not None and macs > self.macs_left:
            return (
                f"it needs {macs:,} multiply-accumulates per example and "
                f"{max(0, self.macs_left):,} are left of growth.budget.macsPerExample"
            )
        return None

    def _more(self, candidate: Candidate) -> tuple[int, int]:
        """Parameters and MACs that the candidate needs beyond what its slot's tournament is charged."""
        parameters, macs = self._charged.get(candidate.slot, (0, 0))
        return max(0, candidate.parameters - parameters), max(0, candidate.macs_per_example - macs)

    def plantable(self, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Those of the candidates that no limit forbids now, in their order.

        In the slot of a tournament that begins at this boundary these are candidates that may join it.
        """
        free = {slot.slot for slot in self._state.slots if self.why_not_slot(slot) is None}
        free.update(self._charged)
        return tuple(c for c in candidates if c.slot in free and self.why_not_cost(c) is None)

    def refuse(self, directive: Directive) -> str | None:
        """Why the directive must not be obeyed at this boundary; None when it may."""
        if directive.operation is Operation.GERMINATE:
            return self._refuse_germinate(directive)
        if directive.operation is Operation.UNLOCK:
            return "only a person unlocks a slot, never a controller"
        if directive.seed is None:
            return f"{directive.operation} needs a seed"
        seed = self._seeds.get(directive.seed)
        if seed is None:
            known = ", ".join(sorted(self._seeds)) or "none"
            return f"there is no living seed {directive.seed!r}; living: {known}"
        if seed.seed in self._commanded:
            return f"seed {seed.seed} has been given a command at this boundary already"
        return _refuse_command(directive.operation, seed)

    def _refuse_germinate(self, directive: Directive) -> str | None:
        if directive.slot is None or directive.blueprint is None or directive.plan is None:
            return "Germinate needs a slot, a blueprint and a plan"
        slot = self._slots.get(directive.slot)
        if slot is None:
            return f"there is no slot {directive.slot!r}; `esper slots` lists them"
        candidate = self._candidates.get((directive.slot, directive.blueprint))
        if candidate is None:
            return f"blueprint {directive.blueprint} is not among those that fit slot {directive.slot}"
        joins = directive.plan.kind is PlanKind.TOURNAMENT and directive.slot in self._charged
        return (None if joins else self.why_not_slot(slot)) or self.why_not_cost(candidate)

    def admit(self, directive: Directive) -> None:
        """Count an accepted directive, so that the ones after it are judged with it in mind."""
        if directive.seed is not None:
            self._commanded.add(directive.seed)
        if directive.operation is not Operation.GERMINATE or directive.slot is None:
            return
        candidate = self._candidates[directive.slot, directive.blueprint or ""]
        parameters, macs = self._more(candidate)
        self.parameters_left -= parameters
        if self.macs_left is not None:
            self.macs_left -= macs
        self.seeds_left -= 1
        if directive.plan is not None and directive.plan.kind is PlanKind.TOURNAMENT:
            before = self._charged.get(directive.slot, (0, 0))
            self._charged[directive.slot] = (before[0] + parameters, before[1] + macs)
        self._take(directive.slot, f"a seed is being planted in {directive.slot}")


def _refuse_command(operation: Operation, seed: SeedView) -> str | None:
    try:
        check_command(operation, seed.seed, seed.stage)
    except TransitionError as error:
        return str(error)
    if operation is Operation.GRAFT and seed.isolated_gain is None:
        return f"seed {seed.seed}: the gain of the isolated seed is not measured; Graft needs it"
    if operation in (Operation.STABILIZE, Operation.EVALUATE) and seed.alpha < 1:
        return f"seed {seed.seed}: alpha is {seed.alpha:.2f}; {operation} needs the ramp to be complete"
    if operation is Operation.FOSSILIZE and seed.contribution is None:
        return f"seed {seed.seed}: its contribution is not measured; Fossilize needs it"
    return None


def refuse(directive: Directive, state: SystemState, before: Iterable[Directive] = ()) -> str | None:
    """Why no controller may have this directive obeyed at this boundary; None when it is within the limits.

    Args:
        directive: the command to check.
        state: the snapshot of the boundary.
        before: directives already accepted at the same boundary; they use up budget and regions.
    """
    limits = Limits(state)
    for accepted in before:
        limits.admit(accepted)
    return limits.refuse(directive)


def plantable(state: SystemState) -> tuple[Candidate, ...]:
    """The candidates that a limit does not forbid at this boundary: the ones worth measuring."""
    return Limits(state).plantable(state.candidates)
