"""Between two optimizer steps: what is due is measured, the controller is asked, its commands take effect."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch.nn import Parameter

from esper_runtime.contracts import (
    BudgetView,
    Candidate,
    Decided,
    Decision,
    Directive,
    Event,
    Growth,
    Initialisation,
    Measured,
    Operation,
    Refused,
    SeedStage,
    SystemState,
    Validation,
)
from esper_runtime.kasmina import (
    Changes,
    Found,
    Growable,
    Limits,
    Seed,
    Trial,
    candidates,
    initialise_from_gradients,
    measure_contribution,
    probe_slots,
)
from esper_runtime.tamiyo import Controller, refuse
from esper_runtime.tolaria.group import Alone, Group
from esper_runtime.tolaria.ledger import Ledger, Purpose
from esper_runtime.tolaria.steering import Steering, seeds_to_settle
from esper_runtime.tolaria.training_state import structure_of
from esper_runtime.tolaria.trials import STATISTICS_BATCHES, TrialOptimizer, Trials, TrialSettings

MOST_PROBES = 16
"""A controller that asks for more rounds of trials at one boundary is not asked again there."""
STEPS_BETWEEN_TELEMETRY = 1000
"""A probe costs several steps: at this distance less than 1 % of a run. Shorter runs have none."""


class Groups(Protocol):
    """The part of an optimizer that growth needs: parameters come and go as named groups."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        ...

    def add_group(
        self,
        name: str,
        parameters: Iterable[tuple[str, Parameter]],
        step: int,
        learning_rate_factor: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        """Add a newborn seed's parameters."""
        ...

    def remove_group(self, name: str) -> None:
        """Drop the parameters of a seed that is gone."""
        ...


class Bench(Protocol):
    """Where measurements get their batches and copies from."""

    def validation_trials(self) -> Sequence[Trial]:
        """Validation batches to judge a seed on, the same each time."""
        ...

    def training_trial(self, index: int) -> Trial:
        """The ``index``-th of the training batches to try candidates on at this boundary."""
        ...

    def optimizer_for_trials(self, step: int) -> TrialOptimizer:
        """The optimizer with the learning rates of optimizer step ``step``; it is copied, not used."""
        ...


def limits_of(growth: Growth, parameters: int, macs: int) -> Limits:
    """The manifest's budget in numbers, for a host of so many parameters and MACs per example."""
    budget = growth.budget
    wanted = budget.macs_per_example
    return Limits(
        parameters=_amount(budget.parameters, parameters),
        macs_per_example=None if wanted is None else _amount(wanted, macs),
        concurrent_seeds=budget.concurrent_seeds,
    )


def _amount(given: str | int, base: int) -> int:
    return given if isinstance(given, int) else int(float(given.removesuffix("x")) * base)


@dataclass(frozen=True)
class BoundarySettings:
    """What a run fixes about its boundaries."""

    growth: Growth
    total_steps: int
    higher_is_better: bool
    trials: TrialSettings

    @property
    def every(self) -> int:
        """Steps between two boundaries at which the controller is asked."""
        return self.growth.controller.every_steps or max(1, self.total_steps // 100)


class Boundary:
    """Applies what is due between two steps, and asks the controller from time to time.

    Args:
        model: the model that grows.
        optimizer: gets and loses the seeds' parameters.
        controller: decides.
        settings: of the run.
        bench: batches and copies for measurements.
        journal: takes each event before what it announces happens.
        ledger: counts what is computed.
        stopping: says whether the run is to stop now.
        steering: what people have commanded.
        group: the ranks that train together: rank 0's measurements and decisions hold for all.
    """

    def __init__(
        self,
        model: Growable,
        optimizer: Groups,
        controller: Controller,
        settings: BoundarySettings,
        bench: Bench,
        journal: Callable[[Event], None],
        ledger: Ledger,
        stopping: Callable[[], bool] = lambda: False,
        steering: Steering | None = None,
        group: Group | None = None,
    ) -> None:
        self._group = group or Alone()
        self._stopping = stopping
        self.steering = steering or Steering()
        self.model = model
        self.controller = controller
        self.settings = settings
        self.validations: list[Validation] = []
        self._optimizer = optimizer
        self._bench = bench
        self._journal = journal
        self._ledger = ledger
        self._said = ""
        self._telemetry_at = 0
        self._candidates: tuple[Candidate, ...] | None = None
        self._found_before: Found = {}

    def look_for_candidates(self) -> None:
        """What may be planted where is to be found anew, once it is wanted: kernels came or went."""
        self._candidates = None

    def apply(self, step: int) -> Changes:
        """Apply what is due when ``step`` optimizer steps are done: failed seeds, ramps, queued commands."""
        changes = self.model.boundary(step, self._journal)
        if changes.structural:
            self.take_over(changes, step)
        return changes

    def ask(self, step: int) -> Changes:
        """Measure what a decision needs, ask the controller, and apply what it commands.

        Raises:
            TrialsStoppedError: the run is to stop; the boundary is not complete.
        """
        if self.steering.pinned:
            return Changes()
        self._measure_seeds(step)
        if step - self._telemetry_at >= STEPS_BETWEEN_TELEMETRY:
            self._telemetry_at = step
            self._ledger.measure(
                Purpose.PROBE,
                f"telemetry {structure_of(self.model)}",
                1,
                lambda: probe_slots(self.model, self._bench.training_trial(0)),
            )
        decision, state = self._decide(step)
        if self.steering.paused and not decision.directives:
            decision = Decision(explanation="growth is paused by a person: nothing new is planted")
        if decision.directives or decision.explanation != self._said:
            self._said = decision.explanation
            self._journal(
                Decided(
                    controller=self.controller.name,
                    explanation=decision.explanation,
                    directives=decision.directives,
                )
            )
        accepted: list[Directive] = []
        for directive in decision.directives:
            reason = refuse(directive, state, accepted)
            if reason is None:
                accepted.append(directive)
                self.model.submit(directive)
            else:
                self._journal(Refused(directive=directive, reason=reason))
        if not accepted:
            return Changes()
        changes = self.apply(step)
        gains = {(c.slot, c.blueprint): c.gain for c in state.candidates if c.gain is not None}
        for seed in self.model.seeds:
            if seed.born == step:
                seed.trial_gain = gains.get((seed.slot, seed.blueprint_id))
        return changes

    def _decide(self, step: int) -> tuple[Decision, SystemState]:
        state = self._state(step, {}, None)
        decision = self._decision(state)
        trials: Trials | None = None
        gains: dict[tuple[str, str], Measured | None] = {}
        for _ in range(MOST_PROBES):
            if decision.probe is None:
                return decision, state
            trials = trials or self._new_trials(step)
            gains = self._rank_0s_gains(trials.measure(decision.probe))
            state = self._state(step, gains, decision.probe.steps)
            decision = self._decision(state)
        text = f"the controller asked for trials more than {MOST_PROBES} times at one boundary"
        return Decision(explanation=text), state

    def _decision(self, state: SystemState) -> Decision:
        """What the controller decides; of several ranks, rank 0 alone asks it."""
        if self._group.size == 1:
            return self.controller.decide(state)
        mine = self.controller.decide(state).model_dump(mode="json") if self._group.leads else None
        return Decision.model_validate(self._group.share(mine))

    def _rank_0s(self, measured: Measured | None) -> Measured | None:
        if self._group.size == 1:
            return measured
        shared = self._group.share(None if measured is None else measured.model_dump(mode="json"))
        return None if shared is None else Measured.model_validate(shared)

    def _rank_0s_gains(
        self, gains: dict[tuple[str, str], Measured | None]
    ) -> dict[tuple[str, str], Measured | None]:
        if self._group.size == 1:
            return gains
        return {pair: self._rank_0s(gain) for pair, gain in gains.items()}

    def _new_trials(self, step: int) -> Trials:
        return Trials(
            self.model,
            self._bench.optimizer_for_trials(step),
            self._bench.training_trial,
            step,
            self.settings.trials,
            self._ledger,
            self._stopping,
        )

    def _state(
        self, step: int, gains: dict[tuple[str, str], Measured | None], trial_steps: int | None
    ) -> SystemState:
        model, limits = self.model, self.model.limits
        if self._candidates is None:
            self._candidates = candidates(model, found=self._found_before)
        offered = tuple(
            c.model_copy(update={"gain": gains[c.slot, c.blueprint], "trial_steps": trial_steps})
            if (c.slot, c.blueprint) in gains
            else c
            for c in self._candidates
            if c.blueprint not in model.quarantined and not self.steering.paused
        )
        return SystemState(
            step=step,
            total_steps=self.settings.total_steps,
            higher_is_better=self.settings.higher_is_better,
            validations=tuple(self.validations),
            slots=model.slot_views(),
            seeds=model.seed_views(step),
            candidates=offered,
            budget=BudgetView(
                parameters_start=model.host_parameters,
                parameters_now=model.parameter_count(),
                parameters_limit=limits.parameters or 0,
                macs_start=model.host_macs,
                macs_now=model.macs_per_example(),
                macs_limit=limits.macs_per_example,
                living_seeds=sum(seed.stage is not SeedStage.FOSSILIZED for seed in model.seeds),
                concurrent_seeds=limits.concurrent_seeds or 0,
            ),
        )

    def _measure_seeds(self, step: int) -> None:
        ending = self.settings.total_steps - step <= 2 * self.settings.every
        for seed in list(self.model.seeds):
            if seed.stage is SeedStage.TRAINING and seed.ready(step):
                seed.isolated_gain = self._contribution(seed)
            elif seed.stage is SeedStage.EVALUATING or (
                seed.stage is SeedStage.FINE_TUNING and (ending or seed.ready(step))
            ):
                seed.contribution = self._contribution(seed)

    def _contribution(self, seed: Seed) -> Measured | None:
        trials = self._bench.validation_trials()
        before = self._ledger.total
        with self._autocast():
            measured = self._ledger.measure(
                Purpose.CONTRIBUTION,
                f"{structure_of(self.model)}/{seed.identity}",
                1,
                lambda: measure_contribution(self.model, seed, trials),
            )
        self._ledger.attribute(seed.identity, self._ledger.total - before)
        return self._rank_0s(measured)

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.settings.trials.autocast()

    def take_over(self, changes: Changes, step: int) -> None:
        """Give newborn seeds their weights and an optimizer group; drop the groups of those that are gone."""
        for seed in changes.gone:
            if seed.identity in self._optimizer.groups:
                self._optimizer.remove_group(seed.identity)
        for seed in changes.born:
            if seed.plan.initialisation is Initialisation.GRADIENT:
                batches = [self._bench.training_trial(index) for index in range(STATISTICS_BATCHES)]
                self._ledger.measure(
                    Purpose.INITIALISATION,
                    f"{structure_of(self.model)}/{seed.identity}",
                    1,
                    partial(initialise_from_gradients, self.model, seed, batches),
                )
            self._group.follow((*seed.body.parameters(), *seed.body.buffers()))
            prefix = f"living.{seed.identity}.body."
            named = ((f"{prefix}{name}", parameter) for name, parameter in seed.body.named_parameters())
            plan = seed.plan
            self._optimizer.add_group(
                seed.identity, named, step, plan.learning_rate_factor, plan.warmup_steps
            )

    def finish(self, step: int) -> Changes:
        """End every seed that is not part of the model for good; the run is over.

        Where a person has pinned the structure, seeds that contribute are measured and kept.
        """
        if self.steering.pinned:
            for command in seeds_to_settle(self.model.seeds, step, pinned=True):
                if command.operation is Operation.EVALUATE:
                    self.model.submit(command)
            self.apply(step)
            for seed in self.model.seeds:
                if seed.stage in (SeedStage.EVALUATING, SeedStage.FINE_TUNING):
                    seed.contribution = self._contribution(seed)
        for command in seeds_to_settle(self.model.seeds, step, self.steering.pinned):
            self.model.submit(command)
        return self.apply(step)

    def state(self) -> dict[str, Any]:
        """What must survive a resumption, as JSON."""
        return {
            "controller": self.controller.state(),
            "validations": [validation.model_dump(mode="json") for validation in self.validations],
            "said": self._said,
            "telemetryAt": self._telemetry_at,
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.look_for_candidates()
        self.controller.restore(data["controller"])
        self.validations = [Validation.model_validate(item) for item in data["validations"]]
        self._said = data["said"]
        self._telemetry_at = data["telemetryAt"]
