import json
import math
import shutil

import pytest
import torch
from torch import nn

from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import (
    Checkpointed,
    CheckpointError,
    Decision,
    Finished,
    GraftingPlan,
    Growth,
    InputError,
    Interrupted,
    Precision,
    Probe,
    SeedChanged,
    SeedStage,
    Started,
    Validated,
)
from esper_runtime.kasmina import Limits, wrap
from esper_runtime.nissa import read_journal, verify_journal
from esper_runtime.tamiyo import OffController
from esper_runtime.tolaria import Grower, Purpose, Trainer, load
from esper_runtime.tolaria.evaluate import evaluate
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Recorder, Script, digits, manifest, noisy, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    recorder, trainer, result = train(manifest(120), folder, Script((10, IMMEDIATE), (30, ISOLATED)))
    return folder, recorder, trainer, result


def test_a_run_journals_its_start_its_validations_its_checkpoints_and_its_end(grown):
    folder, recorder, _, result = grown
    entries = read_journal(folder / "journal.jsonl")
    assert entries == recorder.entries
    started = entries[0].event
    assert isinstance(started, Started)
    assert started.total_steps == 120
    assert started.parameters == sum(p.numel() for p in noisy().parameters())
    assert started.environment["threads"] == "1"
    assert [e.step for e in entries if isinstance(e.event, Validated)] == [0, 20, 40, 60, 80, 100, 120]
    assert [e.step for e in entries if isinstance(e.event, Checkpointed)] == [25, 50, 75, 100, 120]
    assert isinstance(entries[-1].event, Finished)
    assert result.finished.parameters == started.parameters + sum(
        e.event.parameters
        for e in entries
        if isinstance(e.event, SeedChanged) and e.event.after is SeedStage.FOSSILIZED
    )


def test_it_learns(grown):
    _, recorder, _, result = grown
    validations = recorder.of(Validated)
    assert validations[-1].loss < 0.5 * validations[0].loss
    assert result.finished.test_metric > 0.7


def test_a_change_is_in_the_journal_before_the_model_has_it(tmp_path):
    seen = []

    class Watcher(Recorder):
        def on_event(self, entry):
            super().on_event(entry)
            event = entry.event
            if isinstance(event, SeedChanged) and event.after is SeedStage.GRAFTING:
                model = self.trainer._loop.parts.model
                seen.append([s.stage for s in model.seeds if s.identity == event.seed])
                assert read_journal(tmp_path / "journal.jsonl")[-1] == entry

    watcher = Watcher()
    trainer = Trainer(manifest(30), tmp_path, watcher, controller=Script((10, IMMEDIATE)))
    watcher.trainer = trainer
    trainer.run()
    assert seen == [[SeedStage.LOADING]]


def test_the_saved_model_is_built_again_with_equal_outputs(grown):
    folder, _, trainer, result = grown
    model = load(folder / "model")
    live = trainer._loop.parts.model
    live.eval()
    x = torch.randn(7, 64)
    with torch.no_grad():
        assert torch.equal(model(x), live(x))
    task = digits()
    loss, metric = evaluate(model, task, task.test, 500, CPU, Precision.FLOAT32)
    assert (loss, metric) == (result.finished.test_loss, result.finished.test_metric)
    assert not model.training


def test_the_host_keeps_its_own_parameter_names_in_the_saved_model(grown):
    folder, _, _, _ = grown
    model = load(folder / "model")
    assert list(model.host.state_dict()) == list(noisy().state_dict())


def test_a_damaged_model_is_refused(grown, tmp_path):
    folder, _, _, _ = grown
    for name in ("model.safetensors", "architecture.json"):
        (tmp_path / name).write_bytes((folder / "model" / name).read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(CheckpointError, match="digest"):
        load(tmp_path)
    with pytest.raises(InputError, match="no model here"):
        load(tmp_path / "nothing")


def test_the_test_set_is_touched_once_at_the_end(tmp_path):
    task = digits()
    touched = []

    class Watched(dict):
        def values(self):
            touched.append(len(recorder.losses))
            return super().values()

        def items(self):
            touched.append(len(recorder.losses))
            return super().items()

    recorder = Recorder()
    task.test = Watched(task.test)
    Trainer(manifest(40), tmp_path, recorder, task=task, controller=Script((10, IMMEDIATE))).run()
    assert set(touched) == {40}


def test_validation_changes_neither_weights_nor_random_numbers(tmp_path):
    often, _, a = train(manifest(40, training={"validation": {"everySteps": 1}}), tmp_path / "a", Script())
    rarely, _, b = train(manifest(40, training={"validation": {"everySteps": 40}}), tmp_path / "b", Script())
    assert often.losses == rarely.losses
    assert a.finished.weights_digest == b.finished.weights_digest


def test_accumulated_micro_batches_give_the_same_gradient(tmp_path):
    host = {"builtin": "mlp", "args": {"hidden": [12]}}
    one, _, _ = train(manifest(20, host=host), tmp_path / "a", Script())
    four, _, _ = train(manifest(20, host=host, training={"accumulate": 4}), tmp_path / "b", Script())
    assert one.losses.keys() == four.losses.keys()
    assert all(math.isclose(one.losses[s], four.losses[s], rel_tol=1e-3) for s in one.losses)


@pytest.mark.parametrize("precision", ["BFloat16", "Float16"])
def test_lower_precision_learns_too_and_is_resumed_bit_for_bit(tmp_path, precision):
    run = manifest(60, training={"precision": precision})
    whole, _, result = train(run, tmp_path / "a", Script((10, IMMEDIATE)))
    train(run, tmp_path / "b", Script((10, IMMEDIATE)), stop_at=33)
    _, _, second = train(run, tmp_path / "b", Script((10, IMMEDIATE)))
    assert whole.losses[60] < whole.losses[1]
    assert second.finished.weights_digest == result.finished.weights_digest


def test_it_stops_early_when_the_validation_loss_no_longer_falls(tmp_path):
    run = manifest(
        400, training={"optimizer": {"learningRate": 0.1}, "validation": {"everySteps": 5, "patience": 2}}
    )
    recorder, _, result = train(run, tmp_path, Script())
    losses = [event.loss for event in recorder.of(Validated)]
    assert result.step < 400
    assert "2 validations in a row" in result.reason
    assert min(losses[:-2]) <= min(losses[-2:])
    assert result.finished.outcome == "Complete"


IMPATIENT = {"optimizer": {"learningRate": 0.1}, "validation": {"everySteps": 5, "patience": 2}}
UNFELT = GraftingPlan(grafting_steps=10, learning_rate_factor=1e-9)


def test_after_an_early_stop_nothing_is_planted_and_the_last_validation_is_of_the_model_saved(tmp_path):
    run = manifest(400, training=IMPATIENT)
    _, _, plain = train(run, tmp_path / "plain", Script())
    _, _, late = train(run, tmp_path / "late", Script((plain.step, IMMEDIATE)))
    assert late.finished.weights_digest == plain.finished.weights_digest
    young, trainer, result = train(run, tmp_path / "young", Script((plain.step - 5, UNFELT)))
    assert result.step == plain.step
    assert [event.parameters for event in young.of(Validated)][-2:] == [
        result.finished.parameters + young.of(SeedChanged)[-1].parameters,
        result.finished.parameters,
    ]
    parts = trainer._loop.parts
    loss, _ = parts.evaluate(parts.task.validation, Purpose.VALIDATION)
    assert result.finished.validation_loss == loss


def test_killed_after_its_early_stop_it_is_not_trained_further(tmp_path):
    run = manifest(400, training=IMPATIENT)
    _, _, whole = train(run, tmp_path, Script((10, IMMEDIATE)))
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    recorder, _, result = train(run, tmp_path, Script((10, IMMEDIATE)))
    assert recorder.losses == {}
    assert result.finished.weights_digest == whole.finished.weights_digest


@pytest.mark.parametrize("budget", [{"wallSeconds": 0.05}, {"deviceSeconds": 0.05}])
def test_a_used_up_budget_interrupts_with_a_checkpoint(tmp_path, budget):
    recorder, _, result = train(manifest(100_000, budget=budget), tmp_path, Script())
    assert result.outcome == "Interrupted"
    assert next(iter(budget)) in result.reason
    assert isinstance(recorder.entries[-1].event, Interrupted)
    assert isinstance(recorder.entries[-2].event, Checkpointed)
    assert recorder.entries[-2].step == result.step


def test_a_budget_counts_over_all_starts_of_a_run_also_what_was_done_since_the_last_checkpoint(tmp_path):
    run = manifest(100_000, budget={"wallSeconds": 0.05})
    _, _, first = train(run, tmp_path, Script())
    _, _, again = train(run, tmp_path, Script())
    assert (again.outcome, again.step) == ("Interrupted", first.step)
    shutil.rmtree(tmp_path / "checkpoints")  # as if killed before the first one
    _, _, anew = train(run, tmp_path, Script())
    assert (anew.outcome, anew.step) == ("Interrupted", 0)


def test_stopped_before_its_first_step_it_can_still_be_resumed(tmp_path):
    trainer = Trainer(manifest(20), tmp_path, controller=Script())
    trainer.request_stop("at once")
    assert trainer.run().outcome == "Interrupted"
    _, _, result = train(manifest(20), tmp_path, Script())
    assert result.outcome == "Complete"
    assert verify_journal(tmp_path / "journal.jsonl") == []


def test_checkpoints_and_model_may_lie_elsewhere(tmp_path):
    run = manifest(
        40,
        checkpoint={"uri": f"file://{tmp_path}/elsewhere", "everySteps": 10, "keep": 2},
        output={"uri": str(tmp_path / "out")},
    )
    train(run, tmp_path / "run", Script())
    names = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    assert names == ["step-000000030-0", "step-000000040-0"]
    with pytest.raises(InputError, match="belong to another run"):
        train(run, tmp_path / "another", Script())
    assert not (tmp_path / "another").exists()
    assert load(tmp_path / "out")(torch.randn(2, 64)).shape == (2, 10)
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_that_gives_nan_before_the_first_step_is_said(tmp_path):
    host = noisy()
    with torch.no_grad():
        host[1].weight.fill_(math.nan)
    with pytest.raises(Exception, match="before the first step"):
        Trainer(manifest(20), tmp_path, host=host, controller=Script()).run()


def test_seeds_that_are_young_at_the_end_are_not_part_of_the_saved_model(tmp_path):
    recorder, _, result = train(manifest(40), tmp_path, Script((30, IMMEDIATE), (36, ISOLATED)))
    assert result.finished.parameters == result.finished.parameters_start
    assert recorder.of(Validated)[-1].parameters == result.finished.parameters
    assert json.loads((tmp_path / "model" / "architecture.json").read_text())["grafts"]["seeds"] == []


def test_dormant_slots_are_probed_from_time_to_time_and_that_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("esper_runtime.tolaria.boundary.STEPS_BETWEEN_TELEMETRY", 20)
    _, trainer, result = train(manifest(40), tmp_path, Script())
    assert result.finished.ledger["probe"] > 0
    slots = trainer._loop.parts.model.slots.values()
    assert all(slot.telemetry.gradient_norm is not None for slot in slots)


def test_the_ledger_counts_everything(grown):
    _, _, trainer, result = grown
    ledger = result.finished.ledger
    assert {"forward", "backward", "isolated", "contribution", "validation", "test"} <= ledger.keys()
    assert ledger["backward"] > ledger["forward"] > 0
    assert ledger["test"] == len(digits().test["y"]) * result.finished.macs_per_example
    assert trainer._loop.parts.ledger.by_seed.keys() == {"s1", "s2"}


def test_dict_batches_with_extra_tensors_train(tmp_path):
    task = Poisoned(digits(), lambda losses, batch: losses)
    recorder, _, _ = train(manifest(20), tmp_path, Script(), task)
    assert len(recorder.losses) == 20


def data():
    task = digits()
    return task.train["x"].flatten(1), task.train["y"], task.validation["x"].flatten(1), task.validation["y"]


def own_loop(controller, steps=120, kind=torch.optim.AdamW):
    x, y, x_val, y_val = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    model = wrap(net, x[:2])
    optimizer = kind(net.parameters(), lr=0.01 if kind is torch.optim.AdamW else 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = nn.CrossEntropyLoss(reduction="none")
    events = []
    grower = Grower(
        model, optimizer, losses, (x_val, y_val), steps, controller=controller, journal=events.append
    )
    history = []
    for step in range(steps):
        rows = torch.arange(step * 32, step * 32 + 32) % len(x)
        optimizer.zero_grad()
        loss = losses(model(x[rows]), y[rows]).mean()
        loss.backward()
        optimizer.step()
        grower.step(x[rows], y[rows])
        schedule.step()
        history.append(loss.item())
    return model, grower, events, history


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_loop_of_ones_own_grows_with_one_call_a_step(kind):
    model, _, events, history = own_loop(Script((10, IMMEDIATE), (40, ISOLATED), cull=("s2",)), kind=kind)
    stages = [(e.seed, e.after) for e in events if isinstance(e, SeedChanged)]
    assert ("s1", SeedStage.FOSSILIZED) in stages
    assert ("s2", SeedStage.CULLED) in stages
    assert [seed.identity for seed in model.seeds] == ["s1"]
    assert history[-1] < 0.6 * history[0]


def test_in_a_loop_of_ones_own_the_controller_knows_the_limits_that_the_model_was_wrapped_with():
    x, y, x_val, y_val = data()
    net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    model = wrap(net, x[:2], limits=Limits(parameters=1234))
    seen = []

    class Looking(OffController):
        def decide(self, state):
            seen.append(state.budget)
            return super().decide(state)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = nn.CrossEntropyLoss(reduction="none")
    grower = Grower(model, optimizer, losses, (x_val, y_val), 100, controller=Looking())
    losses(model(x[:32]), y[:32]).mean().backward()
    optimizer.step()
    grower.step(x[:32], y[:32])
    assert (seen[0].parameters_limit, seen[0].concurrent_seeds) == (1234, 4)
    assert grower.ledger.by_purpose["validation"] == len(x_val) * model.host_macs


def test_in_a_loop_of_ones_own_the_seed_really_learns():
    model, _, _, _ = own_loop(Script((10, IMMEDIATE)))
    (seed,) = model.seeds
    _, _, x_val, y_val = data()
    with torch.no_grad():
        grown = nn.functional.cross_entropy(model(x_val), y_val)
        seed.alpha = 0.0
        assert nn.functional.cross_entropy(model(x_val), y_val) != grown


def test_the_default_controller_tries_candidates_on_copies_and_leaves_the_loop_alone():
    class Probing(Script):
        def decide(self, state):
            if state.step == 10 and not self.done:
                self.done = 1
                pairs = tuple((c.slot, c.blueprint) for c in state.candidates[:4])
                return Decision(probe=Probe(steps=6, candidates=pairs), explanation="try")
            if state.step == 10:
                self.tried = [c for c in state.candidates if c.trial_steps == 6]
            return Decision(explanation="nothing")

    probing = Probing()
    _, grower, _, tried = own_loop(probing)
    _, _, _, bare = own_loop(OffController())
    assert tried == bare
    assert len(probing.tried) == 4
    assert all(c.gain.count == 3 for c in probing.tried)
    assert grower.ledger.by_purpose["probe"] > 0


def scaled(scaler):
    """A loop of one's own with SGD, its loss scaled where there is a scaler; the grown model."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = x[:, :3].argmax(1)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

    def losses(output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")

    growth = Growth.model_validate({"controller": {"everySteps": 4}, "budget": {"parameters": "8x"}})
    few = {name: catalogue()[name] for name in ("mlp", "low-rank")}
    model = wrap(net, x[:2].double(), exclude=["*..*"], blueprints=few)
    grower = Grower(
        model,
        optimizer,
        losses,
        (x.double(), y),
        40,
        growth=growth,
        controller=Script((4, ISOLATED)),
        scaler=scaler,
    )
    for step in range(40):
        optimizer.zero_grad()
        loss = losses(model(x.double()), y).mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss * (1e300 if step == 20 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        grower.step(x.double(), y)
    return model, grower


def test_seeds_of_a_loop_with_a_gradient_scaler_learn_by_the_gradients_of_the_loss_itself():
    model, grower = scaled(torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7))
    assert list(model.seeds)
    largest = max(float(p.detach().abs().max()) for seed in model.seeds for p in seed.body.parameters())
    assert largest < 2, "the seeds took steps that were scaled up"
    assert grower.ledger.by_purpose["isolated"] > 0
    plain, _ = scaled(None)
    largest_plain = max(float(p.detach().abs().max()) for seed in plain.seeds for p in seed.body.parameters())
    assert largest == pytest.approx(largest_plain, rel=0.1)
