"""The heuristic controller: when, where and what to plant, and what to keep, by rules a person can follow."""

from collections.abc import Sequence
from typing import Any

from esper_runtime.contracts import (
    Candidate,
    Decision,
    Directive,
    Growth,
    Operation,
    PlanChoice,
    SeedStage,
    SystemState,
)
from esper_runtime.tamiyo import words
from esper_runtime.tamiyo.choose import LEAST_GAIN, Option, best_set, first_choice, options, overlaps_of
from esper_runtime.tamiyo.judge import Judge, z_value
from esper_runtime.tamiyo.kernels import in_words
from esper_runtime.tamiyo.limits import Limits
from esper_runtime.tamiyo.memory import Memory
from esper_runtime.tamiyo.plan import make_plan
from esper_runtime.tamiyo.protocol import Lesson
from esper_runtime.tamiyo.tournament import GAINED, competitors, cost_of, enter, settle
from esper_runtime.tamiyo.trials import entrants, first_round, large_enough, next_round, trial_steps
from esper_runtime.tamiyo.when import Timing, timing

COOLDOWN = 0.02
"""Share of the run between two probes; doubled by each that found nothing."""


class HeuristicController:
    """Plants early the measured set that promises most within the budget, keeps what earns its price.

    Args:
        growth: the manifest's settings of growth.
        total_steps: length of the run in optimizer steps.
    """

    name = "Heuristic"

    def __init__(self, growth: Growth, total_steps: int) -> None:
        self._growth = growth
        self._total_steps = total_steps
        self._every = growth.controller.every_steps or max(1, total_steps // 100)
        self._cooldown = max(self._every, round(COOLDOWN * total_steps))
        lifecycle = growth.lifecycle
        self._judge = Judge(
            growth.gates, lifecycle.fine_tuning_steps, lifecycle.stabilizing_steps, self._every
        )
        self._z = z_value(growth.gates.confidence)
        self._memory = Memory()

    def state(self) -> dict[str, Any]:
        """What it remembers, as JSON."""
        return self._memory.dump()

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from what `state` gave; raises `CheckpointError` on anything else."""
        self._memory = Memory.load(data)

    def lesson(self, lesson: Lesson) -> None:
        """Never plant this blueprint in this slot again; after faults in two slots, nowhere."""
        self._memory = self._memory.with_lesson(lesson)

    def decide(self, state: SystemState) -> Decision:
        """Commands for living seeds first; where there are none, whether and what to plant."""
        single = [seed for seed in state.seeds if not seed.competes]
        commands = [d for seed in single if (d := self._judge.command(seed, state)) is not None]
        commands += settle(state, self._growth.gates, self._every)
        if commands:
            return self._command(commands, state)
        return self._plant(state)

    def _command(self, commands: Sequence[Directive], state: SystemState) -> Decision:
        pairs = {seed.seed: (seed.slot, seed.blueprint) for seed in state.seeds}
        culled = tuple(
            pairs[d.seed]
            for d in commands
            if d.operation is Operation.CULL and d.seed is not None and GAINED not in d.evidence
        )
        self._memory = self._memory.with_culled(culled)
        return self._act(commands)

    def _act(self, directives: Sequence[Directive]) -> Decision:
        self._note(reason="", said="")
        text = "\n".join(directive.explanation for directive in directives)
        return Decision(directives=tuple(directives), explanation=words.clip(text))

    def _idle(self, state: SystemState, reason: str, text: str) -> Decision:
        """Do nothing; the words change only with the kind of the reason."""
        if reason != self._memory.reason:
            said = words.clip(f"step {state.step} of {state.total_steps}: {text}")
            self._note(reason=reason, said=said)
        return Decision(explanation=self._memory.said)

    def _plant(self, state: SystemState) -> Decision:
        when = timing(state, self._growth, self._total_steps)
        if not when.plant:
            return self._idle(state, when.reason, f"waiting: {when.text}")
        limits = Limits(state)
        free = limits.plantable(self._worth(state))
        if not free:
            return self._idle(state, *self._nothing_free(state, limits))
        if self._resting(state):
            reason = "no gain" if self._memory.fruitless else "resting"
            return self._idle(state, reason, "waiting: the last trials were a moment ago")
        if make_plan(self._growth.lifecycle, state.step, self._total_steps, self._every, 0) is None:
            return self._idle(state, "unpayable", "a seed planted now could not be judged before the end")
        if self._growth.lifecycle.plan is PlanChoice.TOURNAMENT:
            return self._compete(state, when, limits, free)
        return self._try(state, when, limits, free)

    def _compete(
        self, state: SystemState, when: Timing, limits: Limits, free: Sequence[Candidate]
    ) -> Decision:
        """Plant several candidates in one slot, without trials: isolated learning is what selects."""
        if any(seed.competes for seed in state.seeds):
            return self._idle(state, "tournament", "waiting: one tournament at a time")
        most = self._growth.lifecycle.candidates
        chosen = competitors(entrants(free, state), limits, most)
        culls = next(slot.culls for slot in state.slots if slot.slot == chosen[0].slot)
        plan = make_plan(self._growth.lifecycle, state.step, self._total_steps, self._every, culls)
        assert plan is not None, "the same question was asked before"
        left = self._growth.controller.trial_share * self._total_steps - self._memory.trial_compute
        least = min(2, len(chosen))
        while len(chosen) > least and cost_of(chosen, plan, state) > left:
            chosen.pop()
        spent = cost_of(chosen, plan, state)
        if spent > left:
            text = (
                f"a tournament of {len(chosen)} takes the compute of {spent:.0f} steps of the host, and "
                f"growth.controller.trialShare leaves {left:.0f}"
            )
            return self._idle(state, "trials", text)
        directives = []
        for candidate in chosen:
            directives.append(enter(candidate, chosen, plan, when, limits, state))
            limits.admit(directives[-1])
        self._note(trial_compute=self._memory.trial_compute + spent)
        return self._act(directives)

    def _worth(self, state: SystemState) -> list[Candidate]:
        """Candidates large enough to be worth a trial that may be tried after what was learned."""
        return self._memory.allowed(large_enough(state))

    def _try(self, state: SystemState, when: Timing, limits: Limits, free: Sequence[Candidate]) -> Decision:
        """Ask for trials, round by round, and choose when the last round is measured."""
        memory, total = self._memory, self._total_steps
        if not self._answered(state):
            left = self._growth.controller.trial_share * total - memory.trial_compute
            probe, spent = first_round(free, state, total, left)
            if probe is None:
                text = f"the compute for trials is used: {memory.trial_compute:.0f} steps of the ungrown host"
                return self._idle(state, "trials", text)
            spent += memory.trial_compute
            self._note(probed_at=state.step, rounds=1, trial_compute=spent)
            return Decision(probe=probe, explanation=f"{when.text}: {words.trying(probe)}")
        asked_for = trial_steps(memory.rounds - 1, total)
        tried = [c for c in free if c.gain is not None and c.trial_steps == asked_for]
        probe = next_round(tried, memory.rounds, total)
        if probe is not None:
            self._note(rounds=memory.rounds + 1)
            return Decision(probe=probe, explanation=f"the better of {len(tried)}: {words.trying(probe)}")
        return self._choose(state, when, limits, tried)

    def _note(self, **changes: Any) -> None:
        self._memory = self._memory.model_copy(update=changes)

    def _answered(self, state: SystemState) -> bool:
        """True when the trials asked for last have been made: at this boundary, or at one before it."""
        memory = self._memory
        if memory.probed_at is None:
            return False
        asked_for = trial_steps(memory.rounds - 1, self._total_steps)
        return memory.probed_at == state.step or any(c.trial_steps == asked_for for c in state.candidates)

    def _resting(self, state: SystemState) -> bool:
        """True within the cooldown after an earlier probe; each that found nothing doubles it."""
        last = self._memory.probed_at
        if last is None or self._answered(state):
            return False
        return state.step - last < self._cooldown << min(self._memory.fruitless, 20)

    def _nothing_free(self, state: SystemState, limits: Limits) -> tuple[str, str]:
        """Kind and words for why no candidate may be planted."""
        if not state.candidates:
            return "nothing fits", "no blueprint fits any slot; `esper slots` says why"
        if limits.seeds_left < 1:
            return "seeds", f"waiting: {state.budget.concurrent_seeds} seeds are to be judged first"
        if not any(limits.why_not_cost(candidate) is None for candidate in self._worth(state)):
            return "budget", (
                f"the budget is used: {max(0, limits.parameters_left):,} parameters are left of "
                f"{state.budget.parameters_limit:,}, and no candidate worth trying needs so few"
            )
        if any(seed.stage is not SeedStage.FOSSILIZED for seed in state.seeds):
            return "regions", "waiting: the seeds in the free slots' regions are to be judged first"
        return "barred", "every slot is locked, rests after a cull, or has no candidate left that it may try"

    def _choose(
        self, state: SystemState, when: Timing, limits: Limits, tried: Sequence[Candidate]
    ) -> Decision:
        now = state.validations[-1]
        loss = now.loss if now.train_loss is None else now.train_loss
        found = options(tried, self._z, loss, self._growth.kernels.preferred)
        if not found:
            text = (
                f"none of the candidates tried surely lowers the training loss by {LEAST_GAIN:.1%} or more "
                f"({self._growth.gates.confidence:.0%} interval of its gain above zero)"
            )
            self._note(fruitless=self._memory.fruitless + 1)
            return self._idle(state, "no gain", text)
        self._note(fruitless=0)
        first = first_choice(found, state.budget.macs_now)
        why = when.text if first is found[0] else f"{when.text}; {words.passed_over(first, found[0], state)}"
        directives = [self._germinate(state, when, why, limits, first, found)]
        limits.admit(directives[0])
        open_ = [o for o in found if o.candidate in limits.plantable([o.candidate])]
        for option in best_set(open_, limits, overlaps_of(state)):
            directives.append(self._germinate(state, when, "it fits beside the first", limits, option, found))
            limits.admit(directives[-1])
        return self._act(directives)

    def _germinate(
        self,
        state: SystemState,
        when: Timing,
        why: str,
        limits: Limits,
        option: Option,
        found: Sequence[Option],
    ) -> Directive:
        candidate = option.candidate
        culls = next(slot.culls for slot in state.slots if slot.slot == candidate.slot)
        rival = next((o for o in found if o.candidate.slot != candidate.slot), None)
        return Directive(
            operation=Operation.GERMINATE,
            slot=candidate.slot,
            blueprint=candidate.blueprint,
            plan=make_plan(self._growth.lifecycle, state.step, self._total_steps, self._every, culls),
            effective_step=state.step,
            explanation=words.planting(
                option,
                rival,
                why,
                limits.parameters_left,
                self._z,
                state,
                in_words(candidate, self._growth.kernels.preferred),
            ),
            evidence={
                **when.evidence,
                "gain": option.gain.mean,
                "gain_low": option.value,
                "parameters": candidate.parameters,
                "macs_per_example": candidate.macs_per_example,
                "parameters_left": limits.parameters_left,
                "trial_steps": candidate.trial_steps or 0,
            },
        )
