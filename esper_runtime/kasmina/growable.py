"""The lifecycle: commands are queued, and take effect only at a step boundary, journalled first."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from esper_runtime.blueprint import canonical_id, catalogue, misfit
from esper_runtime.contracts import (
    Blueprint,
    BlueprintError,
    Directive,
    EsperError,
    KernelError,
    Operation,
    PlanKind,
    Refused,
    SeedStage,
    SeedView,
    SlotChanged,
    SlotState,
    SlotView,
    TransitionError,
    UsableKernel,
    check_command,
    check_transition,
)
from esper_runtime.kasmina.changes import Changes, Journal, nowhere, seed_changed
from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.kernels import Stock
from esper_runtime.kasmina.limits import Limits
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.slot import Slot
from esper_runtime.kasmina.survey import Survey

log = logging.getLogger(__name__)


class Growable(GraftedModel):
    """A host that can grow: slots, seeds, and the commands that move them.

    A seed never moves itself. `submit` queues a directive; `boundary`, called between two optimizer steps,
    applies what is due. Every change is handed to ``journal`` before it happens.
    """

    def __init__(
        self,
        host: nn.Module,
        survey: Survey,
        *,
        blueprints: Mapping[str, Blueprint] | None = None,
        limits: Limits | None = None,
        macs_per_example: int = 0,
        random_seed: int = 0,
        freeze_fossils: bool = False,
    ) -> None:
        super().__init__(host, {place.id: place for place in survey.places})
        chosen = catalogue() if blueprints is None else blueprints
        self.slots = {place.id: Slot(place) for place in survey.places}
        self.blueprints = {canonical_id(blueprint): blueprint for blueprint in chosen.values()}
        self.quarantined: dict[str, str] = {}
        self.limits = limits or Limits()
        self.host_parameters = sum(p.numel() for p in host.parameters())
        self.host_macs = macs_per_example
        self.random_seed = random_seed
        self.freeze_fossils = freeze_fossils
        self.stock: Stock | None = None
        """The validated kernels that seeds are made of. Without a stock they are built from ``blueprints``
        as they are; whatever trains a model attaches one."""
        self.loaded_at: Mapping[str, int] = {}
        """Steps before which seeds are not taken for loaded, by seed; a replay repeats the waiting."""
        self._germinated = 0
        self._queue: list[Directive] = []
        self._running = 0
        self._resting: bool | None = None  # whether a slot is embargoed; None: to be looked up

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the host; no boundary may fall inside."""
        self._running += 1
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._running -= 1

    # What the controller sees

    def slot_views(self) -> tuple[SlotView, ...]:
        """All slots in the order of the forward pass."""
        return tuple(slot.view() for slot in self.slots.values())

    def seed_views(self, step: int) -> tuple[SeedView, ...]:
        """All living seeds in the order of their germination."""
        return tuple(
            SeedView(
                seed=seed.identity,
                slot=seed.slot,
                blueprint=seed.blueprint_id,
                name=seed.blueprint.name,
                stage=seed.stage,
                isolates=seed.isolates,
                competes=seed.competes,
                steps_in_stage=step - seed.entered,
                parameters=seed.price.parameters,
                macs_per_example=seed.price.macs,
                alpha=seed.alpha,
                ready=seed.ready(step),
                isolated_gain=seed.isolated_gain,
                contribution=seed.contribution,
            )
            for seed in self.seeds
        )

    def parameter_count(self) -> int:
        """Parameters of the host and of the seeds that contribute."""
        grown = sum(seed.parameter_count() for seed in self.seeds if seed.contributing)
        return self.host_parameters + sum(a.parameters for a in self.absorbed) + grown

    def macs_per_example(self) -> int:
        """Multiply-accumulates of one forward pass of one example, contributing seeds included."""
        grown = sum(seed.price.macs for seed in self.seeds if seed.contributing)
        return self.host_macs + sum(a.macs for a in self.absorbed) + grown

    def isolating(self) -> list[Seed]:
        """Seeds that learn behind the host now."""
        return [seed for seed in self.seeds if seed.stage is SeedStage.TRAINING and seed.failure is None]

    # Commands

    def submit(self, directive: Directive) -> None:
        """Queue a directive for the next boundary at or after its effective step."""
        self._queue.append(directive)

    def boundary(self, step: int, journal: Journal = nowhere) -> Changes:
        """Apply what is due between two optimizer steps; ``step`` optimizer steps are done.

        Raises:
            TransitionError: called while the host's forward pass is running.
        """
        if self._running:
            raise TransitionError("a boundary was called inside a forward pass; call it between steps")
        changes = Changes()
        if self._nothing_is_due():
            return changes
        for seed in list(self.seeds):
            if seed.failure is not None:
                self._cull_failed(seed, step, journal, changes)
            else:
                seed.ramp(step)
        for slot in self.slots.values():
            if slot.state is SlotState.EMBARGOED and slot.until is not None and step >= slot.until:
                self._move_slot(slot, SlotState.DORMANT, "the embargo is over", journal)
        for seed in [s for s in self.seeds if s.stage is SeedStage.LOADING and s.failure is None]:
            self._load(seed, step, journal, changes)
        due = [d for d in self._queue if d.effective_step <= step]
        self._queue = [d for d in self._queue if d.effective_step > step]
        for directive in due:
            try:
                self._obey(directive, step, journal, changes)
            except EsperError as refusal:
                changes.refused.append((directive, str(refusal)))
                journal(Refused(directive=directive, reason=str(refusal)))
        for seed in [s for s in self.seeds if s.stage is SeedStage.LOADING and s.failure is not None]:
            self._cull_failed(seed, step, journal, changes)
        return changes

    def _nothing_is_due(self) -> bool:
        """True between most steps of most runs: there this must cost next to nothing."""
        if self._queue or len(self.living):
            return False
        if self._resting is None:
            self._resting = any(slot.state is SlotState.EMBARGOED for slot in self.slots.values())
        return not self._resting

    def _obey(self, directive: Directive, step: int, journal: Journal, changes: Changes) -> None:
        if directive.operation is Operation.GERMINATE:
            self._germinate(directive, step, journal, changes)
            return
        if directive.operation is Operation.UNLOCK:
            slot = self._slot(directive.slot)
            if slot.state is not SlotState.LOCKED:
                raise TransitionError(f"slot {slot.place.id} is {slot.state}, not Locked")
            self._move_slot(slot, SlotState.DORMANT, directive.explanation, journal)
            return
        seed = self.seed(directive.seed or "")
        target = check_command(directive.operation, seed.identity, seed.stage)
        self._check_gate(seed, target)
        self._move(seed, target, step, directive.explanation, journal, changes)

    def _check_gate(self, seed: Seed, target: SeedStage) -> None:
        """What must have been measured before a step forward."""
        if target is SeedStage.GRAFTING and seed.isolated_gain is None:
            raise TransitionError(f"seed {seed.identity}: its gain in isolation has not been measured")
        if target is SeedStage.GRAFTING and seed.cohort is not None:
            winner = next((s for s in self.seeds if s.cohort == seed.cohort and s.contributing), None)
            if winner is not None:
                raise TransitionError(
                    f"seed {seed.identity}: seed {winner.identity} of the same tournament at {seed.slot} is "
                    f"in the host already, and only one of them may be; cull {seed.identity}"
                )
        if target in (SeedStage.STABILIZING, SeedStage.EVALUATING) and seed.alpha < 1.0:
            raise TransitionError(
                f"seed {seed.identity}: its ramp is not complete, alpha is {seed.alpha:.3g}"
            )
        if target is SeedStage.FOSSILIZED and seed.contribution is None:
            raise TransitionError(f"seed {seed.identity}: its contribution has not been measured")

    # Germination and loading

    def _slot(self, name: str | None) -> Slot:
        return self.slots[self.place(name or "").id]

    def find_blueprint(self, blueprint_id: str) -> Blueprint:
        """The blueprint of that id, or `BlueprintError` when it may not run here."""
        if blueprint_id in self.quarantined:
            raise BlueprintError("quarantine", f"{blueprint_id}: {self.quarantined[blueprint_id]}")
        if blueprint_id not in self.blueprints:
            raise BlueprintError("validated", f"{blueprint_id} is not among the blueprints this run may use")
        return self.blueprints[blueprint_id]

    def admit(self, kernels: Iterable[UsableKernel]) -> None:
        """Let seeds be made of more kernels, also of blueprints that are new to the model."""
        assert self.stock is not None, "a model without a stock takes no kernels"
        admitted = list(kernels)
        for kernel in admitted:
            self.blueprints.setdefault(kernel.blueprint, kernel.graph)
        self.stock.admit(admitted)

    def _germinate(self, directive: Directive, step: int, journal: Journal, changes: Changes) -> None:
        slot = self._slot(directive.slot)
        self._check_free(slot, directive, step)
        blueprint = self.find_blueprint(directive.blueprint or "")
        if directive.plan is None:
            raise TransitionError("Germinate needs a grafting plan")
        if (reason := misfit(blueprint, slot.place.interface)) is not None:
            raise BlueprintError("interface", f"{blueprint.name} does not fit {slot.place.id}: {reason}")
        seed = Seed(
            f"s{self._germinated + 1}",
            slot.place.id,
            blueprint,
            directive.blueprint or "",
            directive.plan,
            slot.place.interface,
            step,
        )
        self._name_kernel(seed)
        parameters = self.host_parameters + sum(a.parameters for a in self.absorbed)
        macs = self.host_macs + sum(a.macs for a in self.absorbed)
        self.limits.check(seed, list(self.seeds), parameters, macs)
        journal(seed_changed(seed, None, SeedStage.GERMINATED, directive.explanation, graph=blueprint))
        self._germinated += 1
        if slot.state is not SlotState.OCCUPIED:
            slot.move(SlotState.OCCUPIED)
        self.add(seed)
        self._move(seed, SeedStage.LOADING, step, "its turn has come", journal, changes)
        self._load(seed, step, journal, changes)

    def _check_free(self, slot: Slot, directive: Directive, step: int) -> None:
        """Raise `TransitionError` unless the slot is Dormant, or its tournament begins at this boundary."""
        name, state = slot.place.id, slot.state
        if state is SlotState.DORMANT:
            return
        kind = directive.plan.kind if directive.plan is not None else None
        rivals = [s for s in self.seeds if s.slot == name and s.competes]
        if kind is not PlanKind.TOURNAMENT or not rivals:
            raise TransitionError(f"slot {name} is {state}; only a Dormant slot takes a seed")
        if rivals[0].born != step:
            raise TransitionError(
                f"the tournament at {name} began at step {rivals[0].born} with "
                f"{', '.join(s.identity for s in rivals)}; now, at step {step}, nobody joins it any more: "
                f"candidates of one tournament germinate at the same boundary"
            )

    def _name_kernel(self, seed: Seed) -> None:
        """Settle which kernel the seed will be made of; raise `KernelError` where none may be used."""
        if self.stock is None:
            return
        kernel = self.stock.find(seed.blueprint_id, seed.interface)
        if kernel is None:
            raise KernelError(self.stock.why_not(seed.blueprint_id, seed.interface))
        seed.kernel, seed.digest = kernel.kernel, kernel.digest

    def _load(self, seed: Seed, step: int, journal: Journal, changes: Changes) -> None:
        """Give the seed its body and let it begin, unless its kernel is still being loaded.

        One that cannot be built is culled when the boundary ends.
        """
        if step < self.loaded_at.get(seed.identity, step):
            return
        try:
            make = None
            if self.stock is not None:
                make = self.stock.cached(seed.blueprint_id, seed.interface)
                if make is None:
                    return
            number = seed_number(self.random_seed, seed.identity)
            seed.body = self.make_body(seed.blueprint, seed.slot, number, make)
        except (EsperError, RuntimeError) as error:
            seed.failure = f"loading failed: {error}"
            return
        target = SeedStage.TRAINING if seed.isolates else SeedStage.GRAFTING
        self._move(seed, target, step, "loaded and built", journal, changes)

    # Moves

    def _move(
        self, seed: Seed, target: SeedStage, step: int, reason: str, journal: Journal, changes: Changes
    ) -> None:
        check_transition(seed.identity, seed.stage, target)
        journal(seed_changed(seed, seed.stage, target, reason))
        before, seed.stage, seed.entered = seed.stage, target, step
        changes.moved += 1
        log.debug("seed %s %s -> %s: %s", seed.identity, before, target, reason)
        if before is SeedStage.LOADING and target in (SeedStage.TRAINING, SeedStage.GRAFTING):
            changes.born.append(seed)
        match target:
            case SeedStage.GRAFTING:
                seed.alpha = 1.0 if seed.plan.ramp_steps == 0 else 1.0 / seed.plan.ramp_steps
                self.connect(seed)
            case SeedStage.STABILIZING:
                seed.body.requires_grad_(False)
            case SeedStage.EVALUATING:
                seed.body.requires_grad_(True)
            case SeedStage.FOSSILIZED:
                self._fossilize(seed, journal)
            case SeedStage.CULLED:
                self._end(seed, SlotState.EMBARGOED, step, reason, journal, changes)
            case SeedStage.CANCELLED | SeedStage.EXCISED:
                self._end(seed, SlotState.DORMANT, step, reason, journal, changes)
            case SeedStage.ROLLED_BACK:
                self._end(seed, SlotState.LOCKED, step, reason, journal, changes)

    def _fossilize(self, seed: Seed, journal: Journal) -> None:
        if self.freeze_fossils:
            seed.body.requires_grad_(False)
        slot = self.slots[seed.slot]
        slot.kept += 1
        if slot.state is SlotState.OCCUPIED and not self._in_use(slot):
            self._move_slot(slot, SlotState.DORMANT, f"seed {seed.identity} is part of the model", journal)

    def _end(
        self, seed: Seed, state: SlotState, step: int, reason: str, journal: Journal, changes: Changes
    ) -> None:
        self.discard(seed)
        if seed in changes.born:
            changes.born.remove(seed)
        else:
            changes.gone.append(seed)
        slot = self.slots[seed.slot]
        shared = self._in_use(slot)
        slot.culls += seed.stage is SeedStage.CULLED and not shared
        if state is SlotState.EMBARGOED and seed.plan.embargo_steps == 0:
            state = SlotState.DORMANT
        if state is SlotState.LOCKED or (slot.state is SlotState.OCCUPIED and not shared):
            until = step + seed.plan.embargo_steps if state is SlotState.EMBARGOED else None
            self._move_slot(slot, state, reason, journal, until)

    def _in_use(self, slot: Slot) -> bool:
        """True while a seed that is not fossilized is in the slot."""
        return any(s.slot == slot.place.id and s.stage is not SeedStage.FOSSILIZED for s in self.seeds)

    def _move_slot(
        self, slot: Slot, target: SlotState, reason: str, journal: Journal, until: int | None = None
    ) -> None:
        if slot.state is not target:
            journal(SlotChanged(slot=slot.place.id, before=slot.state, after=target, reason=reason))
            slot.move(target, until)
            self._resting = None

    def _cull_failed(self, seed: Seed, step: int, journal: Journal, changes: Changes) -> None:
        reason = seed.failure or "failed"
        self.quarantined[seed.blueprint_id] = f"quarantined at step {step}: {reason}"
        self._move(seed, SeedStage.CULLED, step, reason, journal, changes)

    def roll_back_seed(self, identity: str, step: int, reason: str, journal: Journal = nowhere) -> Changes:
        """Take a seed out that is to blame for a fault, and lock its slot."""
        changes = Changes()
        self._move(self.seed(identity), SeedStage.ROLLED_BACK, step, reason, journal, changes)
        return changes

    def lock(self, slot: str, reason: str, journal: Journal = nowhere) -> None:
        """Lock a slot until a person submits an Unlock for it."""
        self._move_slot(self._slot(slot), SlotState.LOCKED, reason, journal)

    # Architecture

    def settle_places(self) -> None:
        """Give every place and slot the widths that the host has now."""
        super().settle_places()
        for name, slot in self.slots.items():
            slot.place = self.places[name]

    def architecture(self) -> dict[str, Any]:
        """Seeds, slots and queue as JSON; with the state dict, all that is needed to go on bit for bit."""
        return {
            **super().architecture(),
            "slots": {name: slot.record() for name, slot in self.slots.items()},
            "germinated": self._germinated,
            "quarantined": self.quarantined,
            "queue": [d.model_dump(mode="json", by_alias=True) for d in self._queue],
        }

    def rebuild(self, architecture: dict[str, Any]) -> None:
        """Replace seeds, slots and queue by those of ``architecture``; weights are loaded afterwards."""
        super().rebuild(architecture)
        for name, record in architecture["slots"].items():
            self._slot(name).restore(record)
        self._resting = None
        self._germinated = architecture["germinated"]
        self.quarantined = dict(architecture["quarantined"])
        self._queue = [Directive.model_validate(d) for d in architecture["queue"]]


def seed_number(random_seed: int, identity: str) -> int:
    """Seed of a newborn's weights: the same for the same run seed and seed id, on every machine."""
    digest = hashlib.sha256(f"{random_seed}/{identity}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
