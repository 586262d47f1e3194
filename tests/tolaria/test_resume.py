import itertools
import multiprocessing
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch

from esper_runtime.contracts import (
    Decision,
    Finished,
    InputError,
    Interrupted,
    Probe,
    Resumed,
    SeedChanged,
    SeedStage,
    Steer,
    Steered,
    SteeringCommand,
)
from esper_runtime.nissa import effective, read_journal, verify_journal
from esper_runtime.tolaria import Inbox, Trainer, checkpoint
from esper_runtime.tolaria.environment import random_state, seed_all, set_random_state
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Recorder, Script, manifest, train

STEPS = 120
SCRIPT = ((10, IMMEDIATE), (30, ISOLATED), (66, IMMEDIATE))


def script():
    return Script(*SCRIPT, cull=("s1",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    recorder, _, result = train(manifest(STEPS), folder, script())
    return folder, recorder, result


def life(entries):
    """What happened to the seeds, as far as it counts."""
    return [
        (entry.step, entry.event.seed, entry.event.slot, entry.event.after)
        for entry in effective(entries)
        if isinstance(entry.event, SeedChanged)
    ]


def test_the_uninterrupted_run_grows_culls_isolates_and_fossilizes(whole):
    _, recorder, result = whole
    stages = {(event.seed, event.after) for event in recorder.of(SeedChanged)}
    assert ("s1", SeedStage.CULLED) in stages
    assert ("s2", SeedStage.TRAINING) in stages
    assert ("s2", SeedStage.FOSSILIZED) in stages
    assert ("s3", SeedStage.FOSSILIZED) in stages
    assert result.outcome == "Complete"
    assert result.finished.parameters > result.finished.parameters_start
    assert len(recorder.losses) == STEPS


def test_the_same_run_twice_is_bit_for_bit_the_same(whole, tmp_path):
    _, recorder, result = whole
    again, _, second = train(manifest(STEPS), tmp_path, script())
    assert again.losses == recorder.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert second.finished.ledger == result.finished.ledger


@pytest.mark.parametrize("moments", [(1,), (24, 25), (12, 36, 47), (41, 42, 43), (61, 80, 119)])
def test_stopped_and_resumed_it_is_bit_for_bit_the_run_never_interrupted(whole, tmp_path, moments):
    _, recorder, result = whole
    losses: dict[int, float] = {}
    for moment in moments:
        part, _, stopped = train(manifest(STEPS), tmp_path, script(), stop_at=moment)
        assert stopped.outcome == "Interrupted"
        assert stopped.step == moment
        assert isinstance(part.entries[-1].event, Interrupted)
        losses |= part.losses
    part, _, finished = train(manifest(STEPS), tmp_path, script())
    assert losses | part.losses == recorder.losses
    assert not losses.keys() & part.losses.keys()
    assert finished.finished.weights_digest == result.finished.weights_digest
    assert finished.finished.test_loss == result.finished.test_loss
    assert finished.finished.ledger == result.finished.ledger
    assert verify_journal(tmp_path / "journal.jsonl") == []
    assert life(read_journal(tmp_path / "journal.jsonl")) == life(recorder.entries)


class Doomed:
    """Ends the process with SIGKILL at a step or after an entry."""

    def __init__(self, where: str, moment: int) -> None:
        self.where, self.moment = where, moment

    def on_step(self, step, loss):
        if self.where == "step" and step == self.moment:
            die()

    def on_preparing(self, text, done, total):
        """Nothing to keep."""

    def on_event(self, entry):
        if self.where == "entry" and entry.sequence == self.moment:
            die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder, where, moment):
    """In a process of its own: train until killed at a step, after an entry, or in the middle of a write."""
    calls = itertools.count(1)
    write, write_synced = os.write, checkpoint.write_synced

    def torn_write(handle, data):
        if next(calls) == moment:
            write(handle, data[: len(data) // 2])
            die()
        return write(handle, data)

    def torn_file(path, blob):
        if next(calls) == moment:
            path.write_bytes(blob[: len(blob) // 2])
            die()
        write_synced(path, blob)

    if where == "journal":
        os.write = torn_write
    if where == "checkpoint":
        checkpoint.write_synced = torn_file
    Trainer(manifest(STEPS), folder, Doomed(where, moment), controller=script()).run()


def kill(folder, where, moment):
    process = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(folder, where, moment)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "kills",
    [
        [("step", 11), ("step", 38)],
        [("entry", 7), ("entry", 25)],
        [("journal", 3), ("journal", 20)],
        [("checkpoint", 3), ("checkpoint", 8)],
        [("step", 61), ("journal", 1), ("checkpoint", 1)],
        [("journal", 1), ("journal", 2)],
    ],
)
def test_killed_with_9_and_resumed_it_is_bit_for_bit_the_run_never_interrupted(whole, tmp_path, kills):
    _, recorder, result = whole
    for where, moment in kills:
        kill(tmp_path, where, moment)
    part, _, finished = train(manifest(STEPS), tmp_path, script())
    assert part.losses == {step: recorder.losses[step] for step in part.losses}
    assert finished.finished.weights_digest == result.finished.weights_digest
    assert finished.finished.test_loss == result.finished.test_loss
    entries = read_journal(tmp_path / "journal.jsonl")
    assert verify_journal(tmp_path / "journal.jsonl") == []
    assert sum(isinstance(entry.event, Resumed) for entry in entries) >= len(kills) - 1
    assert life(entries) == life(recorder.entries)


def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(whole, tmp_path):
    _, recorder, result = whole
    train(manifest(STEPS), tmp_path, script(), stop_at=77)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    path = newest / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    part, _, finished = train(manifest(STEPS), tmp_path, script())
    resumed = part.of(Resumed)[0]
    assert resumed.from_step == 75
    assert "SHA-256" in resumed.differences[f"checkpoint {newest.name}"]
    assert part.losses == {step: recorder.losses[step] for step in range(76, STEPS + 1)}
    assert finished.finished.weights_digest == result.finished.weights_digest


def test_without_any_checkpoint_it_begins_again_and_the_journal_says_so(whole, tmp_path):
    _, recorder, result = whole
    train(manifest(STEPS), tmp_path, script(), stop_at=50)
    shutil.rmtree(tmp_path / "checkpoints")
    part, _, finished = train(manifest(STEPS), tmp_path, script())
    assert part.of(Resumed)[0].checkpoint is None
    assert part.losses == recorder.losses
    assert finished.finished.weights_digest == result.finished.weights_digest
    assert life(read_journal(tmp_path / "journal.jsonl")) == life(recorder.entries)


def test_a_complete_run_is_not_trained_again(whole):
    folder, _, result = whole
    before = (folder / "journal.jsonl").read_bytes()
    again, _, second = train(manifest(STEPS), folder, script())
    assert not second.trained
    assert second.finished == result.finished
    assert second.step == STEPS
    assert again.losses == {}
    assert (folder / "journal.jsonl").read_bytes() == before


def test_another_host_task_or_seed_is_refused_and_nothing_is_written(whole):
    folder, _, _ = whole
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="randomSeed"):
        train(manifest(STEPS, training={"randomSeed": 5}), folder)
    with pytest.raises(InputError, match=r"spec\.host"):
        train(manifest(STEPS, host={"builtin": "mlp"}), folder)
    assert (folder / "journal.jsonl").read_bytes() == before


def test_changed_settings_are_said_when_a_run_is_resumed(tmp_path):
    train(manifest(40), tmp_path, Script(), stop_at=20)
    part, _, result = train(manifest(60), tmp_path, Script())
    assert part.of(Resumed)[0].differences["spec.training.steps"] == "40 -> 60"
    assert result.step == 60


def test_random_states_go_on_where_they_were(tmp_path):
    seed_all(3)
    random.gauss(0, 1)
    np.random.normal()
    state = random_state()
    drawn = [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        torch.rand(3).tolist(),
    ]
    set_random_state(state)
    again = [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        torch.rand(3).tolist(),
    ]
    assert drawn == again


def test_the_journal_ends_with_the_result(whole):
    folder, _, result = whole
    last = read_journal(folder / "journal.jsonl")[-1].event
    assert isinstance(last, Finished)
    assert last == result.finished


class Prober(Script):
    """Tries candidates at a step; may have the run stopped while they are tried."""

    def __init__(self, trainer=None, at=30):
        super().__init__((10, IMMEDIATE))
        self.trainer = trainer
        self.at = at
        self.tried = False

    def decide(self, state):
        if state.step == self.at and not self.tried:
            self.tried = True
            if self.trainer is not None:
                self.trainer[0].request_stop("while candidates are tried")
            pairs = tuple((c.slot, c.blueprint) for c in state.candidates[:3])
            return Decision(probe=Probe(steps=8, candidates=pairs), explanation="try them")
        return super().decide(state)


def test_stopped_while_candidates_are_tried_it_leaves_the_last_good_state_and_loses_nothing(tmp_path):
    run = manifest(60, checkpoint={"everySteps": 50})
    whole, _, result = train(run, tmp_path / "whole", Prober())
    stopping = []
    recorder = Recorder()
    trainer = Trainer(run, tmp_path / "parts", recorder, controller=Prober(stopping))
    stopping.append(trainer)
    stopped = trainer.run()
    assert (stopped.outcome, stopped.step) == ("Interrupted", 30)
    part, _, second = train(run, tmp_path / "parts", Prober())
    assert part.of(Resumed)[0].from_step == 24
    assert part.losses == {step: whole.losses[step] for step in range(25, 61)}
    assert second.finished.weights_digest == result.finished.weights_digest
    assert life(read_journal(tmp_path / "parts" / "journal.jsonl")) == life(whole.entries)


def test_stopped_while_candidates_are_tried_before_the_first_step_it_begins_again(tmp_path):
    run = manifest(40)
    _, _, whole = train(run, tmp_path / "whole", Prober(at=0))
    stopping = []
    trainer = Trainer(run, tmp_path / "parts", controller=Prober(stopping, at=0))
    stopping.append(trainer)
    stopped = trainer.run()
    assert (stopped.outcome, stopped.step) == ("Interrupted", 0)
    _, _, second = train(run, tmp_path / "parts", Prober(at=0))
    assert second.finished.weights_digest == whole.finished.weights_digest


# Checkpoints elsewhere: the run's folder may be lost with its machine


class Crash(Recorder):
    """Ends the process at a step, as far as the files can tell."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def on_step(self, step, loss):
        super().on_step(step, loss)
        if step == self._at:
            raise KeyboardInterrupt


def test_from_a_uri_alone_it_goes_on_bit_for_bit_however_often_its_folder_is_lost(whole, tmp_path):
    _, recorder, result = whole
    place = f"dir::file://{tmp_path}/bucket"
    run = manifest(
        STEPS, checkpoint={"uri": place, "everySteps": 25, "keep": 1}, output={"uri": f"{place}/out"}
    )
    losses: dict[int, float] = {}
    for number, crash in enumerate((40, 45, 61, 99)):
        crashed = Crash(crash)
        with pytest.raises(KeyboardInterrupt):
            Trainer(run, tmp_path / str(number), crashed, controller=script()).run()
        losses |= crashed.losses
    last, _, done = train(run, tmp_path / "last", script())
    losses |= last.losses
    assert min(last.losses) == 76, "it went on from the checkpoint at step 75"
    assert losses == recorder.losses
    assert done.finished.weights_digest == result.finished.weights_digest
    journal = tmp_path / "last" / "journal.jsonl"
    assert verify_journal(journal) == []
    resumed = [e.event for e in read_journal(journal) if isinstance(e.event, Resumed)]
    assert [(event.incarnation, event.from_step) for event in resumed] == [(1, 25), (2, 25), (3, 50), (4, 75)]
    assert life(read_journal(journal)) == life(recorder.entries)
    _, _, again = train(run, tmp_path / "after", script())
    assert (again.outcome, again.trained) == ("Complete", False)


def test_a_persons_command_is_not_lost_with_the_folder(tmp_path):
    place = {"uri": f"dir::file://{tmp_path}/bucket", "everySteps": 500}
    crashed = Crash(30)
    inbox = Inbox([SteeringCommand(id="1", run="small", command=Steer.PAUSE_GROWTH)])
    with pytest.raises(KeyboardInterrupt):
        Trainer(
            manifest(60, checkpoint=place), tmp_path / "a", crashed, controller=Script(), commands=inbox
        ).run()
    assert crashed.of(Steered)
    train(manifest(60, checkpoint=place), tmp_path / "b", Script())
    told = [e.event for e in read_journal(tmp_path / "b" / "journal.jsonl") if isinstance(e.event, Steered)]
    assert [event.command for event in told] == [Steer.PAUSE_GROWTH]
