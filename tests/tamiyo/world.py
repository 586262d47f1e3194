"""A small training run without a network: it obeys directives by the contract's tables and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from esper_runtime.contracts import (
    CONTRIBUTING,
    GONE,
    BudgetView,
    Candidate,
    Decision,
    Directive,
    GraftingPlan,
    Interface,
    InterfaceKind,
    Measured,
    Operation,
    PlanKind,
    SeedStage,
    SeedView,
    SlotState,
    SlotView,
    SystemState,
    Validation,
    check_command,
    check_slot_transition,
    check_transition,
)
from esper_runtime.tamiyo import Controller, refuse

INTERFACE = Interface(kind=InterfaceKind.FEATURES, width_in=8, width_out=8)


def falling_then_flat(step: int) -> float:
    """A loss that falls fast for 60 steps and slowly afterwards."""
    return max(2.0 - 0.015 * step, 1.1) - 0.00005 * step


@dataclass
class Prospect:
    """A blueprint in a slot, and what it is truly worth."""

    slot: str
    blueprint: str
    parameters: int
    gain: Measured | None
    contribution: Measured | None
    macs: int = 100

    @property
    def key(self) -> tuple[str, str]:
        return self.slot, self.blueprint


@dataclass
class Living:
    seed: str
    prospect: Prospect
    plan: GraftingPlan
    stage: SeedStage = SeedStage.GERMINATED
    entered: int = 0
    measured: Measured | None = None


@dataclass
class World:
    """``total`` steps with a boundary every ``every``; ``log`` holds each decision that was obeyed."""

    prospects: list[Prospect]
    total: int = 2000
    every: int = 20
    host: int = 1000
    limit: int = 2000
    concurrent: int = 4
    macs_limit: int | None = None
    overlaps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    loss: Callable[[int], float] = falling_then_flat
    locked: frozenset[str] = frozenset()
    step: int = 0
    seeds: list[Living] = field(default_factory=list)
    ended: list[Living] = field(default_factory=list)
    log: list[tuple[int, Decision]] = field(default_factory=list)
    probes: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = dict.fromkeys(p.slot for p in self.prospects)
        self.slots = {name: SlotState.LOCKED if name in self.locked else SlotState.DORMANT for name in names}
        self.until: dict[str, int] = {}
        self.culls = dict.fromkeys(names, 0)
        self.kept = dict.fromkeys(names, 0)
        self.trials: dict[tuple[str, str], int] = {}
        self.born = 0

    def run(self, controller: Controller, until: int | None = None) -> "World":
        """Train up to step ``until`` (default: the end)."""
        end = self.total if until is None else until
        while self.step < end:
            if self.step % self.every == 0:
                self.boundary(controller)
            self.step += 1
        return self

    def boundary(self, controller: Controller) -> Decision:
        for slot, state in self.slots.items():
            if state is SlotState.EMBARGOED and self.step >= self.until[slot]:
                self.slots[slot] = SlotState.DORMANT
        self.trials = {}
        decision = controller.decide(self.state())
        for _ in range(10):
            if decision.probe is None:
                break
            known = {p.key for p in self.prospects}
            assert set(decision.probe.candidates) <= known
            self.probes.append((self.step, decision.probe.steps, len(decision.probe.candidates)))
            self.trials.update(dict.fromkeys(decision.probe.candidates, decision.probe.steps))
            decision = controller.decide(self.state())
        assert decision.probe is None, "the controller asks for trials without end"
        before: list[Directive] = []
        for directive in decision.directives:
            reason = refuse(directive, self.state(), before)
            assert reason is None, reason
            before.append(directive)
        for directive in before:
            self.obey(directive)
        self.log.append((self.step, decision))
        return decision

    def obey(self, directive: Directive) -> None:
        if directive.operation is Operation.GERMINATE:
            assert directive.slot is not None
            assert directive.plan is not None
            prospect = next(p for p in self.prospects if p.key == (directive.slot, directive.blueprint))
            self.born += 1
            seed = Living(f"s{self.born}", prospect, directive.plan)
            if not self.rivals(seed):
                check_slot_transition(directive.slot, self.slots[directive.slot], SlotState.OCCUPIED)
            self.slots[directive.slot] = SlotState.OCCUPIED
            self.seeds.append(seed)
            self.move(seed, SeedStage.LOADING)
            isolated = directive.plan.kind is not PlanKind.IMMEDIATE
            self.move(seed, SeedStage.TRAINING if isolated else SeedStage.GRAFTING)
            return
        seed = next(s for s in self.seeds if s.seed == directive.seed)
        self.move(seed, check_command(directive.operation, seed.seed, seed.stage))

    def move(self, seed: Living, target: SeedStage) -> None:
        check_transition(seed.seed, seed.stage, target)
        seed.stage, seed.entered = target, self.step
        slot = seed.prospect.slot
        if target in GONE:
            self.seeds.remove(seed)
            self.ended.append(seed)
            if any(s.prospect.slot == slot and s.stage is not SeedStage.FOSSILIZED for s in self.seeds):
                return
            self.slots[slot] = SlotState.DORMANT
            if target is SeedStage.CULLED:
                self.culls[slot] += 1
                self.slots[slot] = SlotState.EMBARGOED
                self.until[slot] = self.step + seed.plan.embargo_steps
        if target is SeedStage.FOSSILIZED:
            self.kept[slot] += 1
            self.slots[slot] = SlotState.DORMANT
        if target is SeedStage.EVALUATING:
            seed.measured = seed.prospect.contribution

    def rivals(self, seed: Living) -> list[Living]:
        """Other candidates of the tournament that the seed enters."""
        kind = PlanKind.TOURNAMENT
        young = (s for s in self.seeds if s.stage is SeedStage.TRAINING and s.entered == self.step)
        same = [s for s in young if s.plan.kind is kind and s.prospect.slot == seed.prospect.slot]
        return same if seed.plan.kind is kind else []

    def duration(self, seed: Living) -> int:
        plan = seed.plan
        return {
            SeedStage.TRAINING: plan.training_steps,
            SeedStage.GRAFTING: max(plan.ramp_steps, plan.grafting_steps),
            SeedStage.STABILIZING: plan.stabilizing_steps,
            SeedStage.FINE_TUNING: plan.fine_tuning_steps,
        }.get(seed.stage, 0)

    def view(self, seed: Living) -> SeedView:
        age = self.step - seed.entered
        ramp = seed.plan.ramp_steps
        alpha = 1.0 if seed.stage in CONTRIBUTING else 0.0
        if seed.stage is SeedStage.GRAFTING and ramp > 0:
            alpha = min(1.0, (age + 1) / ramp)
        ready = age >= self.duration(seed)
        isolated = seed.prospect.contribution if seed.stage is SeedStage.TRAINING and ready else None
        return SeedView(
            seed=seed.seed,
            slot=seed.prospect.slot,
            blueprint=seed.prospect.blueprint,
            name=seed.prospect.blueprint,
            stage=seed.stage,
            isolates=seed.plan.kind is not PlanKind.IMMEDIATE,
            competes=seed.plan.kind is PlanKind.TOURNAMENT and seed.stage is SeedStage.TRAINING,
            steps_in_stage=age,
            parameters=seed.prospect.parameters,
            macs_per_example=seed.prospect.macs,
            alpha=alpha,
            ready=ready,
            isolated_gain=isolated,
            contribution=seed.measured,
        )

    def state(self) -> SystemState:
        grown = [s.prospect for s in self.seeds if s.stage in CONTRIBUTING]
        checks = range(0, self.step + 1, max(1, self.total // 50))
        return SystemState(
            step=self.step,
            total_steps=self.total,
            higher_is_better=True,
            validations=tuple(Validation(step=s, loss=self.loss(s), metric=0.5) for s in checks),
            slots=tuple(
                SlotView(
                    slot=name,
                    state=state,
                    position=index,
                    interface=INTERFACE,
                    embargoed_until=self.until.get(name) if state is SlotState.EMBARGOED else None,
                    culls=self.culls[name],
                    seeds_kept=self.kept[name],
                    overlaps=self.overlaps.get(name, ()),
                )
                for index, (name, state) in enumerate(self.slots.items())
            ),
            seeds=tuple(self.view(s) for s in self.seeds),
            candidates=tuple(
                Candidate(
                    slot=p.slot,
                    blueprint=p.blueprint,
                    name=p.blueprint,
                    parameters=p.parameters,
                    macs_per_example=p.macs,
                    gain=p.gain if p.key in self.trials else None,
                    trial_steps=self.trials.get(p.key),
                )
                for p in self.prospects
            ),
            budget=BudgetView(
                parameters_start=self.host,
                parameters_now=self.host + sum(p.parameters for p in grown),
                parameters_limit=self.limit,
                macs_start=1000,
                macs_now=1000 + sum(p.macs for p in grown),
                macs_limit=self.macs_limit,
                living_seeds=sum(s.stage is not SeedStage.FOSSILIZED for s in self.seeds),
                concurrent_seeds=self.concurrent,
            ),
        )

    def commands(self, operation: Operation) -> list[tuple[int, Directive]]:
        return [(at, d) for at, decision in self.log for d in decision.directives if d.operation is operation]

    def copy(self) -> "World":
        """A second world that goes on from here on its own."""
        other = replace(
            self,
            seeds=[replace(s) for s in self.seeds],
            ended=list(self.ended),
            log=list(self.log),
            probes=list(self.probes),
        )
        other.slots, other.until = dict(self.slots), dict(self.until)
        other.culls, other.kept, other.born = dict(self.culls), dict(self.kept), self.born
        return other


def measured(mean: float, error: float = 0.001) -> Measured:
    return Measured(mean=mean, standard_error=error, count=50)


def prospect(
    slot: str,
    blueprint: str,
    parameters: int = 400,
    gain: float | None = 0.05,
    contribution: float | None = 0.5,
    error: float = 0.001,
    macs: int = 100,
) -> Prospect:
    return Prospect(
        slot,
        blueprint,
        parameters,
        None if gain is None else measured(gain, error),
        None if contribution is None else measured(contribution, error),
        macs,
    )
