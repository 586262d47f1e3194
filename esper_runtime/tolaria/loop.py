"""The training loop: steps, the boundaries between them, and what happens when numbers go bad."""

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from esper_runtime.contracts import (
    Checkpointed,
    Event,
    RolledBack,
    RunFailedError,
    TwinChoice,
    Validated,
    Validation,
)
from esper_runtime.kasmina import Changes, Seed
from esper_runtime.tamiyo import Lesson
from esper_runtime.tolaria.agreement import all_random_states, check_equal, own_random_state
from esper_runtime.tolaria.boundary import Boundary
from esper_runtime.tolaria.checkpoint import SavedState
from esper_runtime.tolaria.followers import Checkpoints, Journal
from esper_runtime.tolaria.governor import Fault, GoodState, Governor
from esper_runtime.tolaria.inquiry import Inquiry
from esper_runtime.tolaria.journal import must_be_kept, must_sync
from esper_runtime.tolaria.ledger import Purpose
from esper_runtime.tolaria.news import News
from esper_runtime.tolaria.parts import Parts
from esper_runtime.tolaria.reporting import reports_of
from esper_runtime.tolaria.result import Observer
from esper_runtime.tolaria.steering import Steering
from esper_runtime.tolaria.supply import Supply
from esper_runtime.tolaria.tasks import Batch
from esper_runtime.tolaria.training_state import capture, restore
from esper_runtime.tolaria.trials import TrialsStoppedError
from esper_runtime.tolaria.twins import Twins, TwinSource

MOST_STEPS_BETWEEN_GOOD_STATES = 100
"""Steps that a rollback loses at most, twice over; a good state is kept at least five times in a run."""


class Loop:
    """Trains from a step to the last one.

    Args:
        parts: model, data, optimizer and the rest.
        journal: of the run.
        store: takes the checkpoints.
        observer: is told of steps and events.
        steering: what people command.
        supply: kernels that come and go.
    """

    def __init__(
        self,
        parts: Parts,
        journal: Journal,
        store: Checkpoints,
        observer: Observer,
        steering: Steering | None = None,
        supply: Supply | None = None,
    ) -> None:
        self.parts = parts
        self._group = parts.group
        self.steering = steering or Steering()
        self.supply = supply or Supply()
        self.governor = Governor()
        self._inquiry = Inquiry(parts, self.governor)
        self.step = 0
        self.total_steps = parts.total_steps
        self.stop: str | None = None
        """Why to stop at the next boundary, set from outside."""
        self.budget_used = False
        """Whether it stops because the run has used up `spec.budget`."""
        self.boundary = Boundary(
            parts.model,
            parts.optimizer,
            parts.controller,
            parts.settings,
            parts,
            self.record,
            parts.ledger,
            lambda: self._group.any(self._must_stop() is not None),
            self.steering,
            parts.group,
        )
        self._news = News(parts.group, self.steering, self.supply)
        self.twins = self._new_twins()
        parts.learner.wants = lambda: (self._must_stop() is not None, self._news.waiting)
        self._told = False
        self._cut_short = False
        self._journal = journal
        self._store = store
        self._observer = observer
        self._lessons: list[RolledBack] = []
        self._losses: list[float] = []
        self._best, self._worse = math.inf, 0
        self.converged: str | None = None
        """Why the run is over before its last step."""
        self._checkpointed = -1
        self._clock = (time.monotonic(), time.process_time())
        self._spent = (0.0, 0.0)
        training, checkpoint = parts.run.spec.training, parts.run.spec.checkpoint
        self._validate_every = training.validation.every_steps or max(1, self.total_steps // 50)
        self._checkpoint_every = checkpoint.every_steps or max(1, self.total_steps // 10)
        self._budget = parts.run.spec.budget
        self._ask_every = parts.settings.every
        self._keep_every = max(1, min(MOST_STEPS_BETWEEN_GOOD_STATES, self.total_steps // 5))

    def train(self) -> str | None:
        """Go on until the last step; returns why it stopped earlier, if it was told to stop."""
        learner, feed, governor = self.parts.learner, self.parts.feed, self.governor
        self._told = self._told or self._group.any(self._must_stop() is not None)
        self._news.told = self._news.told or self._told
        while self.step < self.total_steps and self.converged is None:
            if (reason := self._agreed_stop()) is not None:
                self._steer(late=True)
                return self.steering.stop or reason
            number = feed.upcoming()
            batch = feed.batch(number)
            gradients = learner.gradients(batch, self.step)
            if learner.heard:
                self._told, self._news.told = learner.heard
            fault = governor.judge(gradients, number)
            if fault is None:
                learner.update()
                self.step += 1
                feed.position = number + 1
                self._losses.append(gradients.loss)
                self._observer.on_step(self.step, gradients.loss)
                fault = self.between_steps()
            if fault is not None:
                self._roll_back(fault, batch)
        return None

    def between_steps(self) -> Fault | None:
        """What is due between two steps; a fault where the validation went bad.

        Left half done when the run is told to stop while candidates are tried.
        """
        try:
            return self._between_steps()
        except TrialsStoppedError:
            self._cut_short = self._told = self._news.told = True
            return None

    def _between_steps(self) -> Fault | None:
        step = self.step
        self._steer()
        last = step >= self.total_steps
        changes = self._noticed(self.boundary.finish(step) if last else self.boundary.apply(step))
        if last or step % self._validate_every == 0:
            fault = self._validate()
            if fault is not None:
                return fault
            last = last or self.converged is not None
        if not last and step % self._ask_every == 0:
            changes = self._noticed(self.boundary.ask(step))
            self._keep_place()
        if self.twins is not None:
            self.twins.look(step)
        self.learn_what_is_due()
        if step % self._keep_every == 0 and self.governor.calm and (step == 0 or not changes.structural):
            self.governor.keep(self.good_state())
        if step and (last or (step % self._checkpoint_every == 0 and self._inquiry.next_step_is_sound())):
            self.checkpoint()
        return None

    def _new_twins(self) -> Twins | None:
        """Compiled twins on the CPU, where the manifest wants them and something finds their kernels."""
        parts, supply = self.parts, self.supply
        training = parts.run.spec.training
        if parts.run.spec.growth.kernels.twins is TwinChoice.NEVER:
            return None
        if supply.cache is None or supply.wish is None or parts.device.type != "cpu":
            return None
        batch = training.batch_size // training.accumulate
        return Twins(parts.model, TwinSource(supply.cache, supply.wish, batch), self.record)

    def _steer(self, late: bool = False) -> None:
        """Journal what has come from outside; it takes effect at this boundary, or else at the next."""
        if self._news.idle:
            return
        commands, offers = self._news.take(late)
        model, journal = self.parts.model, self._journal
        self.steering.apply(self.step, model, self.record, lambda: journal.sequence, commands, late)
        if not late and self.supply.apply(self.step, model, self.record, lambda: journal.sequence, offers):
            self.boundary.look_for_candidates()

    def _keep_place(self) -> None:
        """Rank 0's journal has entries that only it knows of, such as those of a remote controller."""
        sequence = self._group.share(self._journal.sequence)
        if not self._group.leads:
            self._journal.sequence = sequence

    def _noticed(self, changes: Changes) -> Changes:
        """Let the learner and the governor know what the boundary changed."""
        if not (changes.moved or changes.gone):
            return changes
        if changes.moved:
            self.parts.learner.structure_changed()
            check_equal(self._group, self.parts.model, self.parts.optimizer, self.step)
        self.report_kernels(changes.gone)
        if any(seed.alpha > 0 for seed in changes.gone):
            self.governor.band.settle_anew()
        return changes

    def report_kernels(self, seeds: Iterable[Seed]) -> None:
        """Journal what the kernels of these seeds have done."""
        for event in reports_of(seeds, self.parts.run.metadata.name, self.step):
            self.record(event)

    def _agreed_stop(self) -> str | None:
        """Why to stop now; of several ranks, all stop at the step after one of them asked for it."""
        if self._group.size == 1:
            return self._must_stop()
        if not self._told:
            return None
        return self._must_stop() or "another rank was told to stop"

    def _must_stop(self) -> str | None:
        if self.stop is not None:
            return self.stop
        if self.steering.told_to_stop:
            return self.steering.stop or "esper stop"
        return self._budget_used()

    def _budget_used(self) -> str | None:
        budget = self._budget
        if not (budget.wall_seconds or budget.device_seconds):
            return None
        wall, device = self.seconds()
        said = None
        if budget.wall_seconds and wall > budget.wall_seconds:
            said = f"budget.wallSeconds ({budget.wall_seconds:g}) is used up"
        elif budget.device_seconds and device > budget.device_seconds:
            said = f"budget.deviceSeconds ({budget.device_seconds:g}) is used up"
        self.budget_used = said is not None
        return said

    def _validate(self) -> Fault | None:
        parts, step = self.parts, self.step
        loss, metric = self._group.share(parts.evaluate(parts.task.validation, Purpose.VALIDATION))
        if not (math.isfinite(loss) and math.isfinite(metric)):
            return Fault("validation", f"the validation loss is {loss}, the metric {metric}")
        train_loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        self.boundary.validations.append(
            Validation(step=step, train_loss=train_loss, loss=loss, metric=metric)
        )
        self.record(
            Validated(
                train_loss=train_loss,
                loss=loss,
                metric=metric,
                parameters=parts.model.parameter_count(),
                learning_rate=parts.optimizer.set_learning_rates(min(step, self.total_steps - 1)),
                macs=parts.ledger.total,
            )
        )
        if self.converged is not None:
            return None
        self._worse = 0 if loss < self._best else self._worse + 1
        self._best = min(self._best, loss)
        self.converged = self._out_of_patience()
        if self.converged is not None and self._noticed(self.boundary.finish(step)).structural:
            return self._validate()  # of the model without the seeds that were not kept
        return None

    def _out_of_patience(self) -> str | None:
        """Why the run is over before its last step, None where it is not."""
        patience = self.parts.run.spec.training.validation.patience
        if patience is None or self._worse < patience or self.step >= self.total_steps:
            return None
        return f"{patience} validations in a row were not below {self._best:.4g}"

    # Numbers gone bad

    def _roll_back(self, fault: Fault, batch: Batch) -> None:
        """Restore the last good state and see to it that the same fault does not come again."""
        blame = self._inquiry.blame(fault, batch, self.step)
        good = self.governor.good
        skip = self._inquiry.batches_to_skip(fault, blame, batch, good)
        event = RolledBack(
            fault=f"{fault.what}; {blame.why}",
            blame=blame.who,
            seed=blame.seed.identity if blame.seed else None,
            slot=blame.seed.slot if blame.seed else None,
            blueprint=blame.seed.blueprint_id if blame.seed else None,
            batch=skip[0] if skip else None,
            batches=skip[-1] - skip[0] + 1 if skip else 0,
            to_step=good.step,
            after_sequence=good.sequence,
        )
        fault_step = self.step
        self.record(event)
        self.restore(good.saved)
        self.bar_batches(event)
        if not self.governor.note_rollback(fault_step):
            raise RunFailedError(
                f"the numbers went bad again and again without progress, last at step {fault_step}: "
                f"{event.fault}. A lower learning rate or training.clipNorm may help; the last good state is "
                f"that of step {good.step}, and the same command goes on from the last checkpoint"
            )
        self._learn(event)
        self.governor.replace(self.good_state())
        self._drop_undone_checkpoints(good.step)
        self._checkpointed = -1
        if self.step:
            self.checkpoint()

    def learn_what_is_due(self) -> None:
        """Apply what earlier rollbacks taught, at the step that they went back to."""
        while self._lessons and self.step >= self._lessons[0].to_step:
            self._learn(self._lessons.pop(0))

    def _learn(self, event: RolledBack) -> None:
        """Lock the slot of a seed that was to blame, and let the controller know."""
        if event.blame != "seed" or event.seed is None or event.slot is None:
            return
        model, reason = self.parts.model, f"rolled back at step {event.to_step}: {event.fault}"
        if any(seed.identity == event.seed for seed in model.seeds):
            changes = model.roll_back_seed(event.seed, self.step, reason, self.record)
            self.boundary.take_over(changes, self.step)
            self._noticed(changes)
        else:
            model.lock(event.slot, reason, self.record)
        self.parts.controller.lesson(
            Lesson(step=event.to_step, slot=event.slot, blueprint=event.blueprint or "", fault=event.fault)
        )

    def remember(self, faults: tuple[RolledBack, ...]) -> None:
        """Take over what rollbacks taught that the present state does not know of yet.

        Batches are barred at once. The rest is done again when the step is reached that the rollback went
        back to, so that a resumed run is bit for bit the one that was never interrupted.
        """
        for event in faults:
            self.bar_batches(event)
        self._lessons = list(faults)

    def bar_batches(self, event: RolledBack) -> None:
        """Never use the batches again that a rollback skips."""
        if event.batch is not None:
            self.parts.feed.barred.update(range(event.batch, event.batch + event.batches))

    def _drop_undone_checkpoints(self, step: int) -> None:
        present = self._store.saved()
        mine = [saved for saved in present if saved.incarnation == self._journal.incarnation]
        self._store.delete(saved.name for saved in mine if saved.step > step)

    # State

    def good_state(self) -> GoodState:
        """The present state, as one to go back to."""
        return GoodState(self.step, self._journal.sequence, self.saved_state())

    def saved_state(self) -> SavedState:
        """Everything needed to go on from here, copied."""
        parts = self.parts
        facts = {
            "step": self.step,
            "sequence": self._journal.sequence,
            "position": parts.feed.position,
            "barred": sorted(parts.feed.barred),
            "boundary": self.boundary.state(),
            "steering": self.steering.state(),
            "band": self.governor.band.state(),
            "governor": self.governor.state(),
            "ledger": parts.ledger.state(),
            "lossScale": parts.learner.scales(),
            "losses": list(self._losses),
            "patience": [None if math.isinf(self._best) else self._best, self._worse],
            "seconds": list(self.seconds()),
        }
        return capture(parts.model, parts.optimizer, facts)

    def restore(self, saved: SavedState) -> None:
        """Go on from a saved state; what outlives a rollback (ledger, barred batches, time) stays."""
        parts, facts = self.parts, saved.facts
        restore(saved, parts.model, parts.optimizer)
        if self.twins is not None:
            self.twins.reattach()
        self.step = facts["step"]
        parts.feed.position = facts["position"]
        self.supply.restore(facts["sequence"], parts.model)
        self.boundary.restore(facts["boundary"])
        self.steering.restore(facts.get("steering", {}), facts["sequence"])
        self.governor.band.restore(facts["band"])
        parts.learner.set_scales(facts["lossScale"])
        self._losses = list(facts["losses"])
        best, self._worse = facts["patience"]
        self._best = math.inf if best is None else best
        self.converged = self._out_of_patience()
        parts.learner.structure_changed()

    def resume(self, saved: SavedState) -> None:
        """Go on from a checkpoint in a new process."""
        seed, step = self.parts.run.spec.training.random_seed, saved.facts["step"]
        random = own_random_state(self._group, saved.random, seed, step)
        self.restore(replace(saved, random=random))
        self.governor.resume(saved.facts.get("governor", {}))
        self.parts.feed.barred.update(saved.facts["barred"])
        self.parts.ledger.restore(saved.facts["ledger"])
        self._spent = tuple(saved.facts["seconds"])
        self._checkpointed = self.step

    def checkpoint(self) -> None:
        """Write a checkpoint of the present state, unless there is one already."""
        if self._checkpointed == self.step:
            return
        self._write(self.saved_state(), self.step, self._journal.sequence)
        self._checkpointed = self.step

    def last_checkpoint(self) -> None:
        """Leave a checkpoint to go on from: of now, or of the last good state if a boundary was cut short."""
        if not self._cut_short:
            self.checkpoint()
        elif self.step and self.governor.good.step > self._checkpointed:
            good = self.governor.good
            self._write(good.saved, good.step, good.sequence)

    def _write(self, saved: SavedState, step: int, sequence: int) -> None:
        whole = replace(saved, random=all_random_states(self._group, saved.random))
        name, digest = self._store.write(whole, step, self._journal.incarnation, sequence)
        self.record(Checkpointed(checkpoint=name, digest=digest))

    def count_earlier(self, wall: float) -> None:
        """Count what processes before this one have trained since their last checkpoint, too.

        Args:
            wall: seconds of all of them, by the journal's clock.
        """
        self._spent = (max(self._spent[0], wall), self._spent[1])

    def seconds(self) -> tuple[float, float]:
        """Wall and CPU seconds of the run so far, all processes together."""
        wall, cpu = self._clock
        return self._spent[0] + time.monotonic() - wall, self._spent[1] + time.process_time() - cpu

    def record(self, event: Event) -> None:
        """Write a journal entry, and tell the observer."""
        entry = self._journal.append(event, self.step, sync=must_sync(event))
        if must_be_kept(event):
            self._store.keep_journal()
        self._observer.on_event(entry)
