"""Tournaments in whole runs: host untouched, interrupted and rolled back bit for bit, failures alone."""

import math
from typing import Any

import pytest
import torch

from esper_runtime.contracts import (
    Refused,
    RolledBack,
    SeedChanged,
    SeedStage,
)
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.replay import replay_run
from esper_runtime.nissa import explain, read_journal, render_report, verify_journal
from esper_runtime.tolaria import BatchOrder, Trainer
from tests.tolaria.runs import Poisoned, Recorder, Script, digits, manifest, train
from tests.tolaria.tournaments import LEARNING, PLANTED, SLOT, SMALL, Tournament

STEPS = 80


def run(steps: int = STEPS) -> Any:
    return manifest(steps, growth=SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    recorder, trainer, result = train(run(), folder, Tournament())
    return folder, recorder, trainer, result


def reached(recorder: Recorder, stage: SeedStage) -> list[str]:
    return [event.seed for event in recorder.of(SeedChanged) if event.after is stage]


def test_one_of_four_is_kept_and_each_is_charged_for_its_learning(whole):
    _, recorder, trainer, result = whole
    names = ["s1", "s2", "s3", "s4"]
    assert reached(recorder, SeedStage.TRAINING) == names
    (winner,) = reached(recorder, SeedStage.GRAFTING)
    assert sorted(reached(recorder, SeedStage.CULLED)) == [name for name in names if name != winner]
    assert reached(recorder, SeedStage.FOSSILIZED) == [winner]
    assert recorder.of(Refused) == []
    ledger = trainer._loop.parts.ledger
    assert sorted(ledger.by_seed) == names
    measured = result.finished.ledger["isolated"] + result.finished.ledger["contribution"]
    assert sum(ledger.by_seed.values()) == measured


def test_until_the_decision_the_host_trains_as_if_nobody_learned_behind_it(whole, tmp_path):
    _, recorder, _, _ = whole
    alone, _, _ = train(run(), tmp_path, Script())
    before = range(1, PLANTED + LEARNING + 1)
    assert [recorder.losses[step] for step in before] == [alone.losses[step] for step in before]
    assert recorder.losses[STEPS] != alone.losses[STEPS]


@pytest.mark.parametrize("moment", [PLANTED, PLANTED + 7, PLANTED + LEARNING - 1, PLANTED + LEARNING + 3])
def test_interrupted_in_the_middle_and_resumed_it_is_the_same_run(whole, tmp_path, moment):
    _, recorder, _, result = whole
    part, _, _ = train(run(), tmp_path, Tournament(), stop_at=moment)
    rest, _, finished = train(run(), tmp_path, Tournament())
    assert part.losses | rest.losses == recorder.losses
    assert finished.finished.weights_digest == result.finished.weights_digest
    assert finished.finished.ledger == result.finished.ledger
    assert verify_journal(tmp_path / "journal.jsonl") == []


def test_rolled_back_in_the_middle_the_cohort_goes_on_and_resumes_to_the_same(tmp_path):
    """A batch is bad for the host and for all candidates at once: none of them is to blame."""
    bad = BatchOrder(len(digits().train["y"]), 32, 0).indices(PLANTED + 12)[0].item()

    def poison(losses, batch):
        return losses * torch.where(batch["number"] == bad, math.nan, 1.0)

    task = Poisoned(digits(), poison)
    whole, _, result = train(run(), tmp_path / "whole", Tournament(), task)
    (fault, *_) = whole.of(RolledBack)
    assert fault.blame != "seed"
    assert result.outcome == "Complete"
    entries = read_journal(tmp_path / "whole" / "journal.jsonl")
    assert len(set(reached(whole, SeedStage.FOSSILIZED))) == 1
    assert "4 candidates" in explain(entries).replace("\u00a0", " ")
    for stop in (PLANTED + 8, PLANTED + 15):
        train(run(), tmp_path / "parts", Tournament(), task, stop_at=stop)
    _, _, second = train(run(), tmp_path / "parts", Tournament(), task)
    assert second.finished.weights_digest == result.finished.weights_digest


class Saboteur(Recorder):
    """Does something to the candidate s2 after a step."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def on_step(self, step, loss):
        super().on_step(step, loss)
        if step == PLANTED + 6:
            self.how(self.trainer._loop.parts.model.seed("s2").body)


def poison_gradients(body):
    next(iter(body.parameters())).register_hook(lambda gradient: gradient * math.nan)


def poison_weights(body):
    with torch.no_grad():
        next(iter(body.parameters())).fill_(math.nan)


@pytest.mark.parametrize("how", [poison_gradients, poison_weights])
def test_a_candidate_whose_numbers_go_bad_drops_out_alone_and_nothing_is_rolled_back(whole, tmp_path, how):
    _, recorder, _, _ = whole
    saboteur = Saboteur(how)
    trainer = Trainer(run(), tmp_path, saboteur, controller=Tournament())
    saboteur.trainer = trainer
    result = trainer.run()
    assert result.outcome == "Complete"
    assert saboteur.of(RolledBack) == []
    culled = [e for e in saboteur.entries if isinstance(e.event, SeedChanged) and e.event.seed == "s2"][-1]
    assert culled.event.after is SeedStage.CULLED
    assert culled.step in (PLANTED + 6, PLANTED + 7)
    assert len(reached(saboteur, SeedStage.GRAFTING)) == 1
    before = range(1, PLANTED + LEARNING + 1)
    assert [saboteur.losses[step] for step in before] == [recorder.losses[step] for step in before]


def test_explain_and_report_tell_the_tournament(whole):
    folder, recorder, _, _ = whole
    entries = read_journal(folder / "journal.jsonl")
    (winner,) = reached(recorder, SeedStage.GRAFTING)
    text = " ".join(explain(entries).replace("\u00a0", " ").split())
    assert f"step {PLANTED}: 4 candidates at {SLOT} learned side by side behind the host" in text
    assert f"until step {PLANTED + LEARNING}; {winner} " in text
    page = render_report(entries)
    assert "won: let into the host" in page
    assert page.count('data-label="Gain behind the host"') == 4


def test_a_replay_of_the_tournament_ends_with_the_same_weights(whole, tmp_path):
    folder, recorder, _, _ = whole
    trainer, comparison = replay_run(RunFolder(folder), tmp_path / "again")
    trainer.run()
    found = comparison.outcome()
    assert found.equal, found
    again = read_journal(found.folder / "journal.jsonl")
    moves = [(e.step, e.event.seed, e.event.after) for e in again if isinstance(e.event, SeedChanged)]
    recorded = [e for e in recorder.entries if isinstance(e.event, SeedChanged)]
    assert moves == [(e.step, e.event.seed, e.event.after) for e in recorded]


def test_rivals_that_overflow_together_lower_the_scale_once_and_keep_their_losses(tmp_path):
    recorder = Recorder(stop_at=28)
    floats = manifest(60, growth=SMALL, training={"precision": "Float16", "clipNorm": None})
    trainer = Trainer(floats, tmp_path, recorder, task=digits(), controller=Tournament())
    recorder.trainer = trainer
    trainer.run()
    parts = trainer._loop.parts
    learner = parts.learner

    def losses() -> dict[str, float]:
        torch.manual_seed(0)
        found = learner.gradients(parts.feed.batch(0), 28).isolated
        return {seed: loss for seed, (loss, _) in found.items()}

    usual = losses()
    learner.isolated_scale = 2.0**40
    assert len(usual) == 4
    assert losses() == usual
    assert learner.isolated_scale == 2.0**39
