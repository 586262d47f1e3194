"""What people command a live run: journalled first, applied between two steps, and never forgotten.

A command is applied when `Steering.apply` is called between two steps. What is done again from before it,
after a rollback or in a new process, is steered again at the step at which it was journalled.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from esper_runtime.contracts import (
    CONTRIBUTING,
    Directive,
    Event,
    JournalEntry,
    Operation,
    SeedStage,
    SlotState,
    Steer,
    Steered,
    SteeringCommand,
    nearest,
)
from esper_runtime.kasmina import Growable, Seed

BEHIND = frozenset({SeedStage.GERMINATED, SeedStage.LOADING, SeedStage.TRAINING})
"""Stages of seeds that do not contribute yet."""


class Inbox(deque[SteeringCommand]):
    """Commands as they arrive; another thread may append, the training thread takes them from the left."""

    def refresh(self) -> None:
        """Called when it is empty, and all that was taken from it is journalled: more may be put in."""


class Steering:
    """The commands of a run so far, and what holds because of them.

    Args:
        inbox: new commands.
        entries: the journal so far.
    """

    def __init__(self, inbox: Inbox | None = None, entries: Iterable[JournalEntry] = ()) -> None:
        self.paused = False
        """Nothing new is planted; living seeds go on."""
        self.pinned = False
        """The structure stays as it is; the controller is not asked."""
        self.stop: str | None = None
        """Why a person stops the run."""
        self._inbox = inbox if inbox is not None else Inbox()
        self._journalled = [
            (entry.sequence, _effective(entry.event, entry.step), entry.event)
            for entry in entries
            if isinstance(entry.event, Steered) and entry.event.refused is None
        ]
        self._seen = {entry.event.message for entry in entries if isinstance(entry.event, Steered)}
        self._due = [(step, event) for _, step, event in sorted(self._journalled, key=_step)]

    @property
    def waiting(self) -> bool:
        """True when a command has arrived that is not journalled yet."""
        return bool(self._inbox)

    @property
    def told_to_stop(self) -> bool:
        """True when a stop has arrived, also before it is journalled."""
        if not self._inbox:
            self._inbox.refresh()
        if self.stop is not None or not self._inbox:
            return self.stop is not None
        return any(command.command is Steer.STOP for command in list(self._inbox))

    @property
    def idle(self) -> bool:
        """True when nothing has arrived and nothing is due."""
        if not self._inbox:
            self._inbox.refresh()
        return not self._inbox and not self._due

    def arrived(self) -> list[SteeringCommand]:
        """Take the new commands out of the inbox, in order; those seen before are dropped."""
        new: list[SteeringCommand] = []
        if not self._inbox:
            self._inbox.refresh()
        while self._inbox:
            command = self._inbox.popleft()
            if command.id not in self._seen:
                self._seen.add(command.id)
                new.append(command)
        return new

    def apply(
        self,
        step: int,
        model: Growable,
        record: Callable[[Event], None],
        sequence: Callable[[], int],
        new: Sequence[SteeringCommand],
        late: bool = False,
    ) -> None:
        """Journal ``new`` commands, and let everything take effect that is due at ``step``.

        Args:
            step: optimizer steps done.
            model: slots are locked at once, what happens to seeds is queued for its next boundary.
            record: writes a journal entry.
            sequence: that of the last entry.
            new: commands that have arrived.
            late: the boundary of ``step`` is over, because the run stops behind it: what is new is due at the
                next one, but for a stop.
        """
        while not late and self._due and self._due[0][0] <= step:
            self._obey(self._due.pop(0)[1], step, model, record)
        for command in new:
            self._seen.add(command.id)
            stops = command.command is Steer.STOP
            event = Steered(
                command=command.command,
                slot=command.slot,
                by=command.by,
                message=command.id,
                refused=self._why_not(command, model),
                effective_step=step + 1 if late and not stops else None,
            )
            record(event)
            if event.refused is not None:
                continue
            self._journalled.append((sequence(), _effective(event, step), event))
            if stops:
                self.stop = f"esper stop{_by(event)}"
            elif late:
                self._due.append((step + 1, event))
            else:
                self._obey(event, step, model, record)

    def _obey(self, event: Steered, step: int, model: Growable, record: Callable[[Event], None]) -> None:
        match event.command:
            case Steer.PAUSE_GROWTH:
                self.paused = True
            case Steer.RESUME_GROWTH:
                self.paused = self.pinned = False
            case Steer.PIN:
                self.pinned = True
                for seed in model.seeds:
                    if seed.stage in BEHIND:
                        why = f"the structure is pinned{_by(event)}"
                        model.submit(_command(Operation.CANCEL, seed, step, why))
            case Steer.VETO:
                slot = event.slot or ""
                why = f"vetoed{_by(event)}"
                model.lock(slot, why, record)
                for seed in model.seeds:
                    if seed.slot == slot and seed.stage is not SeedStage.FOSSILIZED:
                        end = Operation.CANCEL if seed.stage in BEHIND else Operation.CULL
                        model.submit(_command(end, seed, step, why))
            case Steer.UNLOCK:
                why = f"unlocked{_by(event)}"
                model.submit(
                    Directive(
                        operation=Operation.UNLOCK, slot=event.slot, effective_step=step, explanation=why
                    )
                )
            case Steer.STOP:
                pass

    def _why_not(self, command: SteeringCommand, model: Growable) -> str | None:
        """Why a command can have no effect."""
        if command.slot is None:
            return None
        slot = model.slots.get(command.slot)
        if slot is None:
            near = nearest(command.slot, list(model.slots))
            return f"there is no slot {command.slot!r}" + (f"; nearest: {near!r}" if near else "")
        vetoed = any(e.command is Steer.VETO and e.slot == command.slot for _, e in self._due)
        if command.command is Steer.UNLOCK and slot.state is not SlotState.LOCKED and not vetoed:
            return f"slot {command.slot} is {slot.state}, not Locked"
        return None

    def state(self) -> dict[str, Any]:
        """What must survive a resumption, as JSON."""
        due = [[step, event.model_dump(mode="json", by_alias=True)] for step, event in self._due]
        return {"paused": self.paused, "pinned": self.pinned, "due": due}

    def restore(self, data: dict[str, Any], sequence: int) -> None:
        """Go back to what `state` gave after journal entry ``sequence``; what was commanded later is due."""
        self.paused, self.pinned = data.get("paused", False), data.get("pinned", False)
        due = [(int(step), Steered.model_validate(event)) for step, event in data.get("due", [])]
        due += [(step, event) for number, step, event in self._journalled if number > sequence]
        self._due = sorted(due, key=lambda pair: pair[0])


def seeds_to_settle(seeds: Iterable[Seed], step: int, pinned: bool) -> list[Directive]:
    """What becomes of unfossilized seeds at the end of a run.

    Those behind the host are cancelled, the others culled; where the structure is pinned, those that
    contribute are brought to judgement or, once measured, kept.
    """
    commands = []
    for seed in seeds:
        if seed.stage is SeedStage.FOSSILIZED:
            continue
        operation, why = Operation.CULL, f"seed {seed.identity} was not kept for good"
        if seed.stage in BEHIND:
            operation = Operation.CANCEL
        elif pinned and seed.stage in CONTRIBUTING:
            if seed.stage in (SeedStage.EVALUATING, SeedStage.FINE_TUNING):
                if seed.contribution is not None:
                    operation, why = Operation.FOSSILIZE, "the structure is pinned"
            elif seed.alpha == 1.0:
                operation, why = Operation.EVALUATE, "the structure is pinned"
            else:
                why = f"seed {seed.identity} is pinned, but its ramp is not complete"
        commands.append(_command(operation, seed, step, f"step {step}: the run is over and {why}"))
    return commands


def _command(operation: Operation, seed: Seed, step: int, why: str) -> Directive:
    return Directive(operation=operation, seed=seed.identity, effective_step=step, explanation=why)


def _by(event: Steered) -> str:
    return f" by {event.by}" if event.by else " by a person"


def _effective(event: Steered, step: int) -> int:
    """Step of the boundary at which a command takes effect that was journalled at ``step``."""
    return step if event.effective_step is None else event.effective_step


def _step(journalled: tuple[int, int, Steered]) -> int:
    return journalled[1]
