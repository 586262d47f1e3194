"""Tournaments for tests: a script that holds one, and the growth settings that go with it."""

from esper_runtime.contracts import (
    Decision,
    Directive,
    GraftingPlan,
    Operation,
    PlanKind,
    SystemState,
)
from tests.tolaria.runs import Script

PLANTED, LEARNING = 20, 20
PLAN = GraftingPlan(
    kind=PlanKind.TOURNAMENT, training_steps=LEARNING, ramp_steps=5, grafting_steps=10, embargo_steps=10
)
SLOT = "4.output"
SMALL = {"controller": {"everySteps": 5}, "budget": {"parameters": "4x"}}


class Tournament(Script):
    """Holds one tournament of four at a step, lets the best in and culls the others."""

    def decide(self, state: SystemState) -> Decision:
        """Plant at its time; decide when all are ready; treat the winner as `Script` does."""
        directives: list[Directive] = []
        rivals = [seed for seed in state.seeds if seed.competes]
        if self.done == 0 and state.step >= PLANTED:
            self.done = 1
            fitting = [c for c in state.candidates if c.slot == SLOT and c.macs_per_example > 0][::2][:4]
            directives = [
                Directive(
                    operation=Operation.GERMINATE,
                    slot=SLOT,
                    blueprint=candidate.blueprint,
                    plan=PLAN,
                    explanation="a candidate",
                )
                for candidate in fitting
            ]
        elif rivals and all(seed.ready for seed in rivals):
            best = max(rivals, key=lambda seed: seed.isolated_gain.mean if seed.isolated_gain else -9.0)
            for seed in rivals:
                operation = Operation.GRAFT if seed is best else Operation.CULL
                directives.append(Directive(operation=operation, seed=seed.seed, explanation="decided"))
        else:
            young = [seed for seed in state.seeds if not seed.competes]
            directives = [d for seed in young if (d := self._command(seed, state.step)) is not None]
        return Decision(directives=tuple(directives), explanation="the script says so")
