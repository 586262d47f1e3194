import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from esper_runtime.contracts import (
    Decided,
    JournalError,
    ManifestError,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
    Steer,
    Steered,
    SteeringCommand,
)
from esper_runtime.kasmina import Seed
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.replay import replay_run
from esper_runtime.nissa import completed, read_journal, recording_of
from esper_runtime.tolaria import Inbox, ReplayTrainer, Trainer
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Recorder, Script, digits, manifest, train

STEPS = 120
ENDED = {SeedStage.CULLED, SeedStage.CANCELLED}


def replayed(folder, task=None):
    """Replay a complete run beside it; returns the two weights' digests, and the replay's entries."""
    entries = read_journal(folder / "journal.jsonl")
    end = completed(entries)
    again = folder.with_name(f"{folder.name}-again")
    result = ReplayTrainer(recording_of(entries, end.step), again, task=task).run()
    return end.event.weights_digest, result.finished.weights_digest, read_journal(again / "journal.jsonl")


def test_a_run_that_grew_is_repeated_without_asking_a_controller_or_trying_anything(tmp_path):
    run = manifest(STEPS, training={"optimizer": {"learningRate": 0.01}})
    folder = tmp_path / "run"
    result = Trainer(run, folder).run()
    assert result.finished.ledger["probe"] > 0
    recorded, again, entries = replayed(folder)
    assert again == recorded
    assert "probe" not in completed(entries).event.ledger
    assert [e.event.directives for e in entries if isinstance(e.event, Decided)]


@pytest.mark.parametrize("plan", [IMMEDIATE, ISOLATED], ids=["immediate", "isolated"])
def test_each_plan_is_repeated(tmp_path, plan):
    train(manifest(STEPS), tmp_path / "run", Script((10, plan), (40, plan), cull=("s2",)))
    recorded, again, entries = replayed(tmp_path / "run")
    assert again == recorded
    stages = {e.event.after for e in entries if isinstance(e.event, SeedChanged)}
    assert SeedStage.FOSSILIZED in stages


def test_a_fault_that_does_not_come_again_is_not_needed_to_repeat_its_rollback(tmp_path):
    def poison(losses, batch):
        return losses * math.nan if bool((batch["number"] == 700).any()) and len(losses) == 32 else losses

    recorder, _, _ = train(
        manifest(STEPS), tmp_path / "run", Script((10, IMMEDIATE)), Poisoned(digits(), poison)
    )
    assert recorder.of(RolledBack)
    clean = Poisoned(digits(), lambda losses, batch: losses)
    recorded, again, entries = replayed(tmp_path / "run", clean)
    assert again == recorded
    assert not [e for e in entries if isinstance(e.event, RolledBack)]


class Explodes(Recorder):
    """Ruins the weights of a seed at a step, once, as a broken accelerator would."""

    def on_step(self, step, loss):
        super().on_step(step, loss)
        for seed in self.trainer._loop.parts.model.seeds if step == 33 and not self.of(RolledBack) else ():
            with torch.no_grad():
                for parameter in seed.body.parameters():
                    parameter.mul_(1e3).add_(1e4)


def test_the_lock_of_a_seed_that_was_blamed_comes_at_its_step(tmp_path):
    recorder = Explodes()
    recorder.trainer = Trainer(
        manifest(STEPS), tmp_path / "run", recorder, controller=Script((30, IMMEDIATE), (60, IMMEDIATE))
    )
    recorder.trainer.run()
    assert [event.blame for event in recorder.of(RolledBack)] == ["seed"]
    recorded, again, entries = replayed(tmp_path / "run")
    assert again == recorded
    assert [e for e in entries if isinstance(e.event, SlotChanged) and e.event.after is SlotState.LOCKED]


def test_a_kernel_failure_that_does_not_recur_is_repeated_from_the_journal(tmp_path, monkeypatch):
    contribute, calls = Seed.contribute, []

    def failing(seed, x, value):
        if torch.is_grad_enabled() and seed.alpha > 0 and seed.failure is None:
            calls.append(seed.identity)
            if len(calls) == 12:
                seed.body(x)
                seed._fail("a cosmic ray")
        return contribute(seed, x, value)

    monkeypatch.setattr(Seed, "contribute", failing)
    recorder, _, _ = train(manifest(STEPS), tmp_path / "run", Script((10, IMMEDIATE), (60, IMMEDIATE)))
    monkeypatch.undo()
    culled = [event for event in recorder.of(SeedChanged) if event.failure is not None]
    assert [event.failure for event in culled] == ["a cosmic ray"]
    recorded, again, entries = replayed(tmp_path / "run")
    assert again == recorded
    assert [e.event.failure for e in entries if isinstance(e.event, SeedChanged) and e.event.failure] == [
        "a cosmic ray"
    ]


def test_a_kernel_failure_that_the_journal_does_not_know_of_is_a_difference(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train(manifest(STEPS), folder, Script((10, IMMEDIATE)))
    contribute = Seed.contribute

    def failing(seed, x, value):
        seed.failure = "only here"
        return contribute(seed, x, value)

    monkeypatch.setattr(Seed, "contribute", failing)
    trainer, comparison = replay_run(RunFolder(folder))
    trainer.run()
    found = comparison.outcome()
    assert not found.equal
    assert found.first.startswith("step 1")
    assert any("weights" in text for text in found.differences)


def test_early_stopping_is_repeated(tmp_path):
    run = manifest(
        400, training={"validation": {"everySteps": 5, "patience": 3}, "optimizer": {"learningRate": 0.05}}
    )
    _, _, result = train(run, tmp_path / "run", Script((10, IMMEDIATE)))
    assert result.step < 400
    recorded, again, _ = replayed(tmp_path / "run")
    assert again == recorded


def test_a_run_stopped_and_resumed_is_repeated_in_one_go(tmp_path):
    for stop in (33, 61, None):
        train(manifest(STEPS), tmp_path / "run", Script((10, IMMEDIATE), (50, ISOLATED)), stop_at=stop)
    recorded, again, entries = replayed(tmp_path / "run")
    assert again == recorded
    assert not [e for e in entries if isinstance(e.event, Resumed)]


def test_a_run_that_was_killed_and_whose_second_process_decided_otherwise_is_repeated(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from tests.tolaria.runs import *\n"
        "class Dies(Recorder):\n"
        "    def on_step(self, step, loss):\n"
        "        if step == 70: os.kill(os.getpid(), 9)\n"
        "script = Script((10, IMMEDIATE), (55, IMMEDIATE))\n"
        "Trainer(manifest(120), Path(sys.argv[1]), Dies(), controller=script).run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    train(manifest(STEPS), tmp_path / "run", Script((10, IMMEDIATE), (65, ISOLATED)))
    recorded, again, _ = replayed(tmp_path / "run")
    assert again == recorded


def test_what_people_commanded_is_repeated(tmp_path):
    inbox = Inbox()

    class Commands(Script):
        def decide(self, state):
            taken = next((seed.slot for seed in state.seeds), None)
            if state.step == 15:
                inbox.append(
                    SteeringCommand(id="m1", run="small", command=Steer.VETO, slot=taken, by="a test")
                )
            return super().decide(state)

    controller = Commands((10, IMMEDIATE), (50, IMMEDIATE))
    Trainer(manifest(STEPS), tmp_path / "run", controller=controller, commands=inbox).run()
    recorded, again, entries = replayed(tmp_path / "run")
    assert again == recorded
    assert [e for e in entries if isinstance(e.event, SeedChanged) and e.event.after is SeedStage.CULLED]


def test_an_interrupted_run_is_repeated_to_its_last_checkpoint(tmp_path):
    train(manifest(STEPS), tmp_path / "run", Script((10, IMMEDIATE)), stop_at=63)
    trainer, comparison = replay_run(RunFolder(tmp_path / "run"))
    trainer.run()
    found = comparison.outcome()
    assert found.equal, found
    assert found.step == 63


def test_the_replay_says_where_another_history_parts(tmp_path):
    folder = tmp_path / "run"
    train(manifest(STEPS), folder, Script((10, IMMEDIATE)))
    trainer, comparison = replay_run(RunFolder(folder))
    feed = Poisoned(digits(), lambda losses, batch: losses * 1.5)
    trainer._task = feed
    trainer.run()
    found = comparison.outcome()
    assert not found.equal
    assert "validation loss" in found.first


def test_a_damaged_journal_is_refused(tmp_path):
    folder = tmp_path / "run"
    train(manifest(40), folder, Script((10, IMMEDIATE)))
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["step"] += 1
    lines[3] = json.dumps(changed)
    path.write_text(os.linesep.join(lines))
    with pytest.raises(JournalError, match="line 4"):
        replay_run(RunFolder(folder))


def test_a_recorded_manifest_that_this_version_refuses_is_told_as_any_other(tmp_path):
    folder = tmp_path / "run"
    train(manifest(40), folder, Script((10, IMMEDIATE)))
    entries = read_journal(folder / "journal.jsonl")
    recording = recording_of(entries, completed(entries).step)
    recorded = recording.started.manifest
    spec = recorded["spec"] | {"training": recorded["spec"]["training"] | {"steps": 0}}
    started = recording.started.model_copy(update={"manifest": recorded | {"spec": spec}})
    with pytest.raises(ManifestError, match=r"the manifest in the journal: 1 field is wrong\n.*steps"):
        ReplayTrainer(dataclasses.replace(recording, started=started), tmp_path / "again").run()


class Interrupts(Script):
    """A person who commands something and stops the run while the controller decides."""

    def __init__(self, *plants, at, command, inbox):
        super().__init__(*plants)
        self.at, self.inbox = at, inbox
        self.commands = [command, SteeringCommand(id="stop", run="small", command=Steer.STOP, by="a test")]

    def decide(self, state):
        if state.step == self.at:
            self.inbox += self.commands
        return super().decide(state)


@pytest.mark.parametrize(
    ("command", "first", "second"), [(Steer.VETO, IMMEDIATE, ISOLATED), (Steer.PIN, ISOLATED, IMMEDIATE)]
)
def test_what_is_commanded_with_a_stop_after_the_boundary_takes_effect_at_the_next_one(
    tmp_path, command, first, second
):
    plants = (25, first), (30, second), (40, IMMEDIATE)
    recorder, _, _ = train(manifest(STEPS), tmp_path / "probe", Script(*plants), stop_at=30)
    slot = recorder.of(SeedChanged)[0].slot if command is Steer.VETO else None
    told = SteeringCommand(id="m", run="small", command=command, slot=slot, by="a test")
    folder, inbox, before = tmp_path / "run", Inbox(), Recorder()
    controller = Interrupts(*plants, at=30, command=told, inbox=inbox)
    result = Trainer(manifest(STEPS), folder, before, controller=controller, commands=inbox).run()
    assert (result.outcome, result.step) == ("Interrupted", 30)
    assert [event.effective_step for event in before.of(Steered)] == [31, None]
    after, _, _ = train(manifest(STEPS), folder, Script(*plants))
    ended = {e.step for e in after.entries if isinstance(e.event, SeedChanged) and e.event.after in ENDED}
    assert min(ended) == 31
    recorded, again, _ = replayed(folder)
    assert again == recorded
