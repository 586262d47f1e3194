import math

import pytest
import torch

from esper_runtime.contracts import (
    Finished,
    Resumed,
    RolledBack,
    RunFailedError,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
)
from esper_runtime.nissa import effective, read_journal, verify_journal
from esper_runtime.tolaria import BatchOrder, Trainer
from esper_runtime.tolaria.loop import Loop
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Recorder, Script, digits, manifest, train

STEPS = 120


@pytest.fixture
def restorations(monkeypatch):
    """Checks at every restoration that what is there afterwards is bit for bit what was captured."""
    seen = []
    restore = Loop.restore

    def checked(loop, saved):
        restore(loop, saved)
        now = loop.saved_state()
        for left, right in zip(saved.parts().values(), now.parts().values(), strict=True):
            assert left.keys() == right.keys()
            for name, tensor in left.items():
                assert torch.equal(tensor, right[name]), name
                assert tensor.dtype == right[name].dtype
        outliving = {"sequence", "seconds", "ledger", "barred", "governor"}
        for key in saved.facts.keys() - outliving:
            assert now.facts[key] == saved.facts[key], key
        seen.append(saved.facts["step"])

    monkeypatch.setattr(Loop, "restore", checked)
    return seen


class FiniteBut(torch.autograd.Function):
    """The identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def poisoned(example, kind):
    """The digits, with one training example whose batches go wrong."""
    task = digits()
    if kind == "data":
        task = Poisoned(task, lambda losses, batch: losses)
        name = next(name for name, tensor in task.train.items() if tensor.is_floating_point())
        task.train[name] = task.train[name].clone()
        task.train[name][example] = math.nan
        return task

    def poison(losses, batch):
        if not bool((batch["number"] == example).any()) or len(losses) != 32:
            return losses
        if kind == "loss":
            return losses * math.nan
        if kind == "infinity":
            return losses / 0.0
        factor = math.nan if kind == "gradient" else 1e9
        return FiniteBut.apply(losses, factor)

    return Poisoned(task, poison)


def batches_with(example, trainer):
    feed = trainer._loop.parts.feed
    return [n for n in range(feed.position) if example in feed._order.indices(n).tolist()]


@pytest.mark.parametrize("kind", ["loss", "infinity", "gradient", "data"])
@pytest.mark.parametrize("example", [3, 700])
def test_a_batch_that_goes_wrong_is_undone_and_never_used_again(tmp_path, restorations, kind, example):
    recorder, trainer, result = train(
        manifest(STEPS), tmp_path, Script((10, IMMEDIATE)), poisoned(example, kind)
    )
    faults = recorder.of(RolledBack)
    assert faults
    assert result.outcome == "Complete"
    assert restorations == [fault.to_step for fault in faults]
    assert [fault.batch for fault in faults] == batches_with(example, trainer)
    assert {fault.batches for fault in faults} == {1}
    assert {fault.blame for fault in faults} == {"data" if kind == "data" else "unknown"}
    assert not [event for event in recorder.of(SlotChanged) if event.after is SlotState.LOCKED]
    assert sorted(recorder.losses) == list(range(1, STEPS + 1))
    assert all(map(math.isfinite, recorder.losses.values()))
    assert verify_journal(tmp_path / "journal.jsonl") == []


def test_a_fault_right_after_a_seed_was_planted_at_step_0_is_undone_and_counted(tmp_path, restorations):
    example = BatchOrder(len(digits().train["y"]), 32, 0).indices(2)[0].item()
    recorder, _, result = train(manifest(40), tmp_path, Script((0, IMMEDIATE)), poisoned(example, "gradient"))
    (fault,) = recorder.of(RolledBack)
    assert (fault.to_step, fault.batch) == (0, 2)
    assert result.finished.ledger["diagnosis"] > 0


def test_a_run_with_skipped_batches_equals_one_that_was_stopped_and_resumed_between(tmp_path):
    task = poisoned(3, "loss")
    whole, _, result = train(manifest(STEPS), tmp_path / "whole", Script((10, IMMEDIATE)), task)
    first = whole.of(RolledBack)[0]
    for stop in (first.to_step + 1, 70):
        train(manifest(STEPS), tmp_path / "parts", Script((10, IMMEDIATE)), task, stop_at=stop)
    part, _, parts = train(manifest(STEPS), tmp_path / "parts", Script((10, IMMEDIATE)), task)
    assert parts.finished.weights_digest == result.finished.weights_digest
    assert all(whole.losses[step] == loss for step, loss in part.losses.items())


def test_divergence_is_noticed_undone_and_its_batches_are_skipped(tmp_path, restorations):
    run = manifest(
        STEPS,
        host={"builtin": "mlp", "args": {"hidden": [12, 12]}},
        training={"clipNorm": None, "optimizer": {"name": "SGD", "learningRate": 0.05, "momentum": 0.5}},
    )
    task = poisoned(1100, "divergence")
    recorder, trainer, result = train(run, tmp_path, Script(), task)
    faults = recorder.of(RolledBack)
    assert faults
    assert restorations == [fault.to_step for fault in faults]
    for number in batches_with(1100, trainer):
        assert any(f.batch <= number < f.batch + f.batches for f in faults)
    assert {fault.blame for fault in faults} == {"unknown"}
    assert result.outcome == "Complete"
    assert recorder.losses[STEPS] < recorder.losses[1]


class Saboteur(Recorder):
    """Spoils the first seed of a run at a step, once."""

    def __init__(self, step, how, stage=SeedStage.GRAFTING):
        super().__init__()
        self.step, self.how, self.stage = step, how, stage
        self.spoiled = []

    def on_step(self, step, loss):
        super().on_step(step, loss)
        if step != self.step or self.spoiled:
            return
        for seed in self.trainer._loop.parts.model.seeds:
            if seed.stage is self.stage:
                self.how(seed)
                self.spoiled.append(seed.identity)


def explode(seed):
    with torch.no_grad():
        for parameter in seed.body.parameters():
            parameter.mul_(1e3).add_(1e4)


def poison_gradients(seed):
    parameter = next(iter(seed.body.parameters()))
    parameter.register_hook(lambda gradient: gradient * math.nan)


def spoiled_run(tmp_path, how, step, plan, stage=SeedStage.GRAFTING, run=None):
    saboteur = Saboteur(step, how, stage)
    script = Script((30, plan))
    trainer = Trainer(run or manifest(STEPS), tmp_path, saboteur, controller=script)
    saboteur.trainer = trainer
    return saboteur, script, trainer.run()


@pytest.mark.parametrize(
    ("how", "step", "plan", "stage"),
    [
        (explode, 31, IMMEDIATE, SeedStage.GRAFTING),
        (explode, 33, IMMEDIATE, SeedStage.GRAFTING),
        (poison_gradients, 33, IMMEDIATE, SeedStage.GRAFTING),
        (poison_gradients, 42, IMMEDIATE, SeedStage.EVALUATING),
        (poison_gradients, 34, ISOLATED, SeedStage.TRAINING),
        (poison_gradients, 48, ISOLATED, SeedStage.GRAFTING),
    ],
)
def test_a_seed_that_turns_bad_is_blamed_and_only_its_slot_is_locked(
    tmp_path, restorations, how, step, plan, stage
):
    saboteur, script, result = spoiled_run(tmp_path, how, step, plan, stage)
    assert saboteur.spoiled[0] == "s1"
    (fault,) = saboteur.of(RolledBack)
    assert (fault.blame, fault.seed) == ("seed", "s1")
    assert fault.batch is None
    assert restorations == [fault.to_step]
    locked = {e.slot for e in saboteur.of(SlotChanged) if e.after is SlotState.LOCKED}
    assert locked == {fault.slot}
    assert [(lesson.slot, lesson.blueprint) for lesson in script.lessons] == [(fault.slot, fault.blueprint)]
    assert result.outcome == "Complete"
    kept = [e.event for e in effective(read_journal(tmp_path / "journal.jsonl"))]
    fossils = [e for e in kept if isinstance(e, SeedChanged) and e.after is SeedStage.FOSSILIZED]
    assert all(event.slot != fault.slot for event in fossils)
    assert verify_journal(tmp_path / "journal.jsonl") == []


@pytest.mark.parametrize("every", [12, 25])
def test_a_lock_survives_a_resumption_from_before_the_fault_and_the_run_is_the_same(
    tmp_path, monkeypatch, every
):
    """The process dies right after the rollback is journalled: only checkpoints from before it are left."""
    run = manifest(STEPS, checkpoint={"everySteps": every})
    whole, _, result = spoiled_run(tmp_path / "whole", poison_gradients, 33, IMMEDIATE, run=run)
    (fault,) = whole.of(RolledBack)
    assert fault.to_step == 24

    def die(loop, saved):
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "restore", die)
    with pytest.raises(KeyboardInterrupt):
        spoiled_run(tmp_path / "parts", poison_gradients, 33, IMMEDIATE, run=run)
    monkeypatch.undo()
    again, _, second = train(run, tmp_path / "parts", Script((30, IMMEDIATE)))
    assert again.of(Resumed)[0].from_step == (24 if every == 12 else 0)
    assert again.of(RolledBack) == []
    locked = {e.slot for e in again.of(SlotChanged) if e.after is SlotState.LOCKED}
    assert locked == {fault.slot}
    assert second.finished.weights_digest == result.finished.weights_digest
    assert all(whole.losses[step] == loss for step, loss in again.losses.items())


def test_a_fault_that_comes_back_whatever_is_skipped_ends_the_run_as_failed(tmp_path):
    task = Poisoned(digits(), lambda losses, batch: losses * (math.nan if len(losses) == 32 else 1.0))
    with pytest.raises(RunFailedError, match="again and again"):
        train(manifest(40), tmp_path, Script(), task)
    last = read_journal(tmp_path / "journal.jsonl")[-1].event
    assert isinstance(last, Finished)
    assert last.outcome == "Failed"
    assert verify_journal(tmp_path / "journal.jsonl") == []


def test_after_a_validation_gone_bad_the_same_steps_are_not_done_again(tmp_path):
    class Unsound(Poisoned):
        def losses(self, output, batch):
            late = recorder.step == 40 and not torch.is_grad_enabled()
            return (math.nan if late else 1.0) * self._task.losses(output, batch)

    class Following(Recorder):
        step = 0

        def on_step(self, step, loss):
            self.step = step

    recorder = Following()
    trainer = Trainer(manifest(60), tmp_path, recorder, task=Unsound(digits(), None), controller=Script())
    with pytest.raises(RunFailedError, match="the validation loss is nan"):
        trainer.run()
    faults = recorder.of(RolledBack)
    assert len({fault.batch for fault in faults}) == len(faults) > 1


def test_a_failed_run_goes_on_when_the_cause_is_gone(tmp_path):
    task = Poisoned(digits(), lambda losses, batch: losses * (math.nan if len(losses) == 32 else 1.0))
    with pytest.raises(RunFailedError):
        train(manifest(40), tmp_path, Script(), task)
    _, _, result = train(manifest(40), tmp_path, Script())
    assert result.outcome == "Complete"


def test_no_checkpoint_is_written_from_which_the_next_step_would_fail(tmp_path):
    example = BatchOrder(len(digits().train["y"]), 32, 0).indices(25)[0].item()
    recorder, _, result = train(manifest(40), tmp_path, Script(), poisoned(example, "data"))
    kinds = [entry.event.kind for entry in recorder.entries]
    assert result.outcome == "Complete"
    assert kinds.index("RolledBack") < kinds.index("Checkpointed")


def test_a_healthy_run_is_never_rolled_back(tmp_path):
    recorder, _, _ = train(manifest(STEPS), tmp_path, Script((10, IMMEDIATE), (40, ISOLATED), cull=("s1",)))
    assert recorder.of(RolledBack) == []


def test_a_resumed_governor_knows_the_batches_and_rollbacks_before_the_checkpoint(tmp_path):
    task = poisoned(3, "loss")
    _, whole, _ = train(manifest(STEPS), tmp_path / "whole", Script((10, IMMEDIATE)), task, stop_at=40)
    train(manifest(STEPS), tmp_path / "parts", Script((10, IMMEDIATE)), task, stop_at=37)
    _, parts, _ = train(manifest(STEPS), tmp_path / "parts", Script((10, IMMEDIATE)), task, stop_at=40)
    assert len(whole._loop.governor.recent) > 3
    assert parts._loop.governor.state() == whole._loop.governor.state()
