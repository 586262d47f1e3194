"""What people command a live run: journalled, applied between two steps, once, and never forgotten."""

from pathlib import Path
from typing import Any

import pytest

from esper_runtime.contracts import (
    Decided,
    Finished,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
    Steer,
    Steered,
    SteeringCommand,
)
from esper_runtime.nissa import effective, read_journal
from esper_runtime.tolaria import Inbox, Trainer
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Recorder, Script, manifest

SLOT = "6.output"


def command(what: Steer, slot: str | None = None, identity: str = "") -> SteeringCommand:
    return SteeringCommand(id=identity or f"{what}-{slot}", run="small", command=what, slot=slot, by="ada")


class Person(Recorder):
    """Commands at certain steps, and may crash the trainer."""

    def __init__(self, said: dict[int, list[SteeringCommand]], crash_at: int | None = None) -> None:
        super().__init__()
        self.inbox: Inbox = Inbox()
        self.said, self.crash_at = said, crash_at

    def on_step(self, step: int, loss: float) -> None:
        super().on_step(step, loss)
        self.inbox.extend(self.said.get(step, ()))
        if step == self.crash_at:
            raise KeyboardInterrupt


def steer(
    folder: Path, said: dict[int, list[SteeringCommand]], *plants: Any, crash_at: int | None = None
) -> tuple[Person, Any]:
    person = Person(said, crash_at)
    trainer = Trainer(manifest(), folder, person, controller=Script(*plants), commands=person.inbox)
    return person, trainer.run()


def steps_of(person: Person, kind: type, **wanted: object) -> list[int]:
    return [
        entry.step
        for entry in person.entries
        if isinstance(entry.event, kind) and all(getattr(entry.event, k) == v for k, v in wanted.items())
    ]


def test_a_command_is_journalled_before_it_takes_effect_and_the_same_message_counts_once(
    tmp_path: Path,
) -> None:
    slot = SLOT
    twice = command(Steer.VETO, slot)
    person, _ = steer(tmp_path, {12: [twice], 14: [twice]})
    assert steps_of(person, Steered, command=Steer.VETO) == [12]
    locked = steps_of(person, SlotChanged, slot=slot, after=SlotState.LOCKED)
    assert locked == [12]
    kinds = [entry.event.kind for entry in person.entries]
    assert kinds.index("Steered") < kinds.index("SlotChanged")


def test_a_veto_ends_the_seeds_of_its_slot_and_unlock_gives_it_back(tmp_path: Path) -> None:
    probe, _ = steer(tmp_path / "probe", {}, (10, IMMEDIATE))
    slot = probe.of(SeedChanged)[0].slot
    person, _ = steer(
        tmp_path / "run",
        {13: [command(Steer.VETO, slot)], 60: [command(Steer.UNLOCK, slot)]},
        (10, IMMEDIATE),
    )
    assert steps_of(person, SeedChanged, slot=slot, after=SeedStage.CULLED) == [13]
    assert steps_of(person, SlotChanged, slot=slot, after=SlotState.DORMANT) == [60]
    assert "vetoed by ada" in next(e.reason for e in person.of(SeedChanged) if e.after is SeedStage.CULLED)


def test_what_cannot_be_done_is_journalled_with_the_reason(tmp_path: Path) -> None:
    person, _ = steer(tmp_path, {5: [command(Steer.VETO, "6.outptu")], 6: [command(Steer.UNLOCK, SLOT)]})
    unknown, unlocked = (event.refused for event in person.of(Steered))
    assert unknown == "there is no slot '6.outptu'; nearest: '6.output'"
    assert unlocked == "slot 6.output is Dormant, not Locked"


def test_while_growth_is_paused_nothing_is_planted_and_living_seeds_go_on(tmp_path: Path) -> None:
    said = {12: [command(Steer.PAUSE_GROWTH)], 70: [command(Steer.RESUME_GROWTH)]}
    person, _ = steer(tmp_path, said, (10, IMMEDIATE))
    assert steps_of(person, SeedChanged, after=SeedStage.FOSSILIZED), "the living seed went on"
    said_why = [event.explanation for event in person.of(Decided)]
    assert "growth is paused by a person: nothing new is planted" in said_why


def test_a_pinned_structure_keeps_what_contributes(tmp_path: Path) -> None:
    person, result = steer(tmp_path, {18: [command(Steer.PIN)]}, (10, IMMEDIATE), (40, IMMEDIATE))
    changes = person.of(SeedChanged)
    assert {e.seed for e in changes} == {"s1"}, "the controller is not asked any more"
    assert changes[-1].after is SeedStage.FOSSILIZED
    assert changes[-1].contribution is not None
    assert steps_of(person, SeedChanged, after=SeedStage.FOSSILIZED) == [120]
    assert result.finished.parameters > result.finished.parameters_start


def test_a_pinned_structure_takes_no_seed_that_still_learns_behind_the_host(tmp_path: Path) -> None:
    said = {13: [command(Steer.PIN)], 60: [command(Steer.RESUME_GROWTH)]}
    person, _ = steer(tmp_path, said, (10, ISOLATED), (40, IMMEDIATE))
    assert steps_of(person, SeedChanged, seed="s1", after=SeedStage.CANCELLED) == [13]
    assert steps_of(person, SeedChanged, before=None) == [10, 60], "resume-growth lifts the pin"


def test_a_stop_leaves_a_checkpoint_and_does_not_stop_the_next_start(tmp_path: Path) -> None:
    stop = command(Steer.STOP)
    _, result = steer(tmp_path, {33: [stop]})
    assert (result.outcome, result.step) == ("Interrupted", 33)
    assert result.reason == "esper stop by ada"
    again, result = steer(tmp_path, {40: [stop]})
    assert result.outcome == "Complete"
    assert not again.of(Steered), "the bus brings the same message again: it was obeyed before"


@pytest.mark.parametrize("crash", [31, 44])
def test_a_run_killed_after_a_command_ends_as_the_one_that_was_not(tmp_path: Path, crash: int) -> None:
    probe, _ = steer(tmp_path / "probe", {}, (10, IMMEDIATE))
    slot = probe.of(SeedChanged)[0].slot
    said = {30: [command(Steer.VETO, slot)], 43: [command(Steer.UNLOCK, slot), command(Steer.PAUSE_GROWTH)]}
    plants = ((10, IMMEDIATE), (35, IMMEDIATE))
    _, whole = steer(tmp_path / "whole", said, *plants)
    earlier = {step: what for step, what in said.items() if step < crash}
    later = {step: what for step, what in said.items() if step >= crash}
    with pytest.raises(KeyboardInterrupt):
        steer(tmp_path / "killed", earlier, *plants, crash_at=crash)
    _, killed = steer(tmp_path / "killed", later, *plants)
    assert killed.finished.weights_digest == whole.finished.weights_digest
    entries = read_journal(tmp_path / "killed" / "journal.jsonl")
    assert len([e for e in entries if isinstance(e.event, Steered)]) == 3
    assert len([e for e in effective(entries) if isinstance(e.event, Steered)]) == 3
    assert isinstance(entries[-1].event, Finished)
