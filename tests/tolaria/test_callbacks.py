from types import SimpleNamespace

import pytest
import torch
from torch import nn

from esper_runtime import Grower, huggingface_callback, lightning_callback, wrap
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import GraftingPlan, Growth, InputError, PlanKind, SeedStage
from tests.tolaria.runs import IMMEDIATE, Script

STEPS = 24
BEHIND = GraftingPlan(kind=PlanKind.ISOLATED, training_steps=6, ramp_steps=2, grafting_steps=4)
TWICE = ((4, IMMEDIATE), (28, BEHIND))
FEW = ("mlp", "low-rank")
CADENCE = {"controller": {"everySteps": 4}, "budget": {"parameters": "8x"}}
OWN = Growth.model_validate(CADENCE)
SPANS = ["*..*"]
"""Slots around layers, for which these blueprints are not."""
GIVEN = CADENCE | {"blueprints": {"include": FEW}, "slots": {"exclude": SPANS}}
GROWTH = Growth.model_validate(GIVEN)


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def examples(count=96):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def losses(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")


def batches():
    x, y = examples()
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 96, 8)]


def plain(seen=None, plants=((4, IMMEDIATE),), parts=(), anew=False, divisor=None):
    """The same training in a loop of one's own, on the batches ``seen``.

    ``parts`` are the numbers of micro-batches of the steps, whose losses are divided by ``divisor`` (default:
    that number); after ``STEPS`` steps it goes on for as many, with an optimizer that begins ``anew``.
    """
    host = net()
    optimizer = adam(host)
    x, y = examples()
    grower = Grower(wrapped(host), optimizer, losses, (x, y), STEPS, growth=OWN, controller=Script(*plants))
    left = iter(seen or batches() * 2)
    for count in parts or [1] * len(seen or range(STEPS)):
        if grower.steps == STEPS:
            optimizer = adam(host) if anew else optimizer
            grower.go_on(2 * STEPS, optimizer)
        optimizer.zero_grad()
        micro = [next(left) for _ in range(count)]
        for x, y in micro:
            (losses(host(x), y).mean() / (divisor or count)).backward()
        optimizer.step()
        grower.step(*micro[-1], micro[:-1])
    assert next(left, None) is None
    return grower.model


def wrapped(host):
    x, _ = examples()
    few = {name: blueprint for name, blueprint in catalogue().items() if name in FEW}
    return wrap(host, x[:2], exclude=SPANS, blueprints=few)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(one.seeds)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request):
    return pytest.importorskip(request.param)


def lightning(package, folder, resume=None, plants=((4, IMMEDIATE),), accumulate=1, fits=1):
    seen = []

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            x, y = batch
            seen.append((x, y))
            return losses(self.net(x), y).mean()

        def configure_optimizers(self):
            return adam(self)

    callback = lightning_callback(
        losses, examples(), net="net", growth=GROWTH, controller=Script(*plants), package=package.__name__
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), batch_size=8)
    module = Module()
    for _ in range(fits):
        keep = package.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_epochs=1)
        trainer = package.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback, keep],
            default_root_dir=folder,
            use_distributed_sampler=False,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, loader, ckpt_path=resume)
    return callback.grower, seen


@pytest.mark.filterwarnings("ignore")
def test_growth_in_lightning_equals_growth_in_a_loop_of_ones_own(tmp_path, package):
    same(lightning(package, tmp_path)[0].model, plain())


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_from_its_checkpoint_with_what_has_grown(tmp_path, package):
    lightning(package, tmp_path)
    again, seen = lightning(package, tmp_path, resume=tmp_path / "step=12.ckpt")
    assert again.steps == STEPS
    assert len(seen) == 12
    same(again.model, plain(batches() + seen))


@pytest.mark.filterwarnings("ignore")
def test_in_lightning_all_micro_batches_of_a_step_feed_seeds_behind_the_host(tmp_path):
    package = pytest.importorskip("lightning.pytorch")
    grown, seen = lightning(package, tmp_path, plants=((4, BEHIND),), accumulate=5)
    assert len(seen) == 12 * STEPS // 3
    same(grown.model, plain(seen, ((4, BEHIND),), [5, 5, 2] * (STEPS // 3), divisor=5))


@pytest.mark.filterwarnings("ignore")
def test_a_second_fit_in_lightning_lets_the_same_network_grow_on(tmp_path):
    package = pytest.importorskip("lightning.pytorch")
    grown, seen = lightning(package, tmp_path, plants=TWICE, fits=2)
    assert grown.steps == 2 * STEPS
    same(grown.model, plain(seen, TWICE, anew=True))


def test_micro_batches_feed_seeds_behind_the_host_as_the_whole_batch_does():
    weights = []
    for cut in (None, 3):
        host = net()
        optimizer = torch.optim.SGD(host.parameters(), lr=0.05)
        x, y = examples()
        script = Script((4, BEHIND))
        grower = Grower(wrapped(host), optimizer, losses, (x, y), STEPS, growth=OWN, controller=script)
        for x, y in batches()[:10]:
            optimizer.zero_grad()
            losses(host(x), y).mean().backward()
            optimizer.step()
            earlier = [] if cut is None else [(x[:cut], y[:cut])]
            grower.step(x[cut:], y[cut:], earlier)
        (seed,) = grower.model.seeds
        assert seed.stage is SeedStage.TRAINING
        weights.append(torch.cat([p.flatten() for p in seed.body.parameters()]))
    assert not torch.equal(*weights)  # another order of summation: equal ones would prove nothing
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


class Classifier(nn.Module):
    """Called as the Trainer calls a model: everything by name."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.seen = []

    def forward(self, x, labels=None):
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        if self.training:
            self.seen.append((x, labels))
        return {"loss": losses(logits, labels).mean(), "logits": logits}


def of_logits(output, target):
    return losses(output["logits"], target)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"slots": {"exclude": ["net.0*"]}}, r"give include, exclude and blueprints to wrap"),
        ({"blueprints": {"include": ["mlp"]}}, r"give include, exclude and blueprints to wrap"),
        ({"controller": {"placement": "Service"}}, "placement is Service, which needs the bus"),
        ({"kernels": {"twins": "WhereFaster"}}, "twins is WhereFaster, which needs the library"),
    ],
)
def test_settings_that_have_no_effect_in_a_loop_of_ones_own_are_refused(given, expected):
    host, (x, y) = net(), examples()
    growth = Growth.model_validate(given)
    with pytest.raises(InputError, match=expected):
        Grower(wrapped(host), adam(host), losses, (x, y), STEPS, growth=growth)


def test_a_callback_grows_where_and_with_what_it_is_told(tmp_path):
    grown, _ = as_the_trainer(
        tmp_path, slots={"exclude": ["net.0*", "net.2*"]}, lifecycle={"freezeFossils": True}
    )
    assert {slot.split("..")[0] for slot in grown.model.slots}.isdisjoint({"net.0", "net.2"})
    assert {blueprint.name for blueprint in grown.model.blueprints.values()} == set(FEW)
    (seed,) = grown.model.seeds
    assert seed.stage is SeedStage.FOSSILIZED
    assert not any(parameter.requires_grad for parameter in seed.body.parameters())


def as_the_trainer(folder, steps=STEPS, resume=None, **growth):
    """What `transformers.Trainer` does around its callbacks, with its own handler, state and control."""
    transformers = pytest.importorskip("transformers")
    from transformers.trainer_callback import CallbackHandler

    x, y = examples()
    settings = Growth.model_validate(GIVEN | growth)
    callback = huggingface_callback(
        of_logits, ({"x": x}, y), growth=settings, controller=Script((4, IMMEDIATE))
    )
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state = transformers.TrainerState(max_steps=STEPS)
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        state.global_step = resume["step"]
    arguments = SimpleNamespace(output_dir=str(folder), world_size=1)
    handler = CallbackHandler([callback], model, None, optimizer, None)
    control = handler.on_train_begin(arguments, state, transformers.TrainerControl())
    model.train()
    for x, y in (batches() * 2)[state.global_step : steps]:
        model(x=x, labels=y)["loss"].backward()
        optimizer.step()
        control = handler.on_optimizer_step(arguments, state, control)
        model.zero_grad()
        state.global_step += 1
        control = handler.on_step_end(arguments, state, control)
    handler.on_save(arguments, state, control)
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": state.global_step}
    return callback.grower, kept


def test_growth_in_the_hugging_face_trainer_goes_on_from_its_checkpoint(tmp_path):
    whole, _ = as_the_trainer(tmp_path / "whole")
    early, kept = as_the_trainer(tmp_path / "parts", steps=14)
    assert early.steps == 14
    assert list(early.model.seeds)
    again, _ = as_the_trainer(tmp_path / "parts", resume=kept)
    same(again.model, whole.model)


def test_growth_in_the_hugging_face_trainer_equals_growth_in_a_loop_of_ones_own(tmp_path):
    grown, _ = as_the_trainer(tmp_path)
    ours = [(seed.blueprint_id, seed.stage) for seed in grown.model.seeds]
    alone = plain()
    assert ours == [(seed.blueprint_id, seed.stage) for seed in alone.seeds]
    x, _ = examples()
    assert torch.equal(grown.model.eval()(x=x)["logits"], alone.eval()(x))


def test_a_checkpoint_without_what_has_grown_is_refused(tmp_path):
    _, kept = as_the_trainer(tmp_path, steps=14)
    (tmp_path / "checkpoint-14" / "esper.pt").unlink()
    with pytest.raises(InputError, match=r"esper\.pt is missing"):
        as_the_trainer(tmp_path, resume=kept)


def real_trainer(folder, plants, batch=8, **arguments):
    """A Trainer of transformers with growth; its model and its callback."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    x, y = examples()
    callback = huggingface_callback(of_logits, ({"x": x}, y), growth=GROWTH, controller=Script(*plants))
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    given = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=batch,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        **{"save_strategy": "no", **arguments},
    )
    model = Classifier()
    trainer = transformers.Trainer(
        model,
        given,
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=[callback],
        optimizers=(adam(model), None),
    )
    return trainer, model, callback


def test_in_the_real_trainer_all_micro_batches_of_a_step_feed_seeds_behind_the_host(tmp_path):
    plants = ((4, BEHIND),)
    trainer, model, callback = real_trainer(
        tmp_path, plants, 4, gradient_accumulation_steps=5, eval_strategy="steps", eval_steps=7
    )
    trainer.train()
    assert callback.grower.steps == STEPS
    per_epoch = [5, 5, 5, 5, 4]
    same_net(callback, plain(model.seen, plants, (per_epoch * STEPS)[:STEPS]))


def same_net(callback, alone):
    """Seeds and the classifier's inner network are those of a loop of one's own."""
    ours = {name.replace("host.net.", "host."): tensor for name, tensor in callback.state()["seeds"].items()}
    theirs = {name: tensor for name, tensor in alone.state_dict().items() if name.startswith("living.")}
    assert ours
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    x, _ = examples()
    assert torch.equal(callback.grower.model.eval()(x=x)["logits"], alone.eval()(x))


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A real Trainer that was told to train twice, with checkpoints."""
    folder = tmp_path_factory.mktemp("twice")
    trainer, model, callback = real_trainer(folder, TWICE, save_strategy="steps", save_steps=12)
    trainer.train()
    first = callback.grower
    trainer.train()
    assert callback.grower is first
    return folder, model, callback


def test_a_second_train_of_the_real_trainer_lets_the_same_model_grow_on(twice):
    _, model, callback = twice
    assert callback.grower.steps == 2 * STEPS
    left = [hook for hook in model._forward_pre_hooks.values() if getattr(hook, "__self__", None) is callback]
    assert not left, "nothing of the callback is left in the model"
    same_net(callback, plain(model.seen, TWICE))


def test_a_checkpoint_of_a_second_train_is_resumed_where_it_was(twice):
    folder, _, callback = twice
    trainer, model, again = real_trainer(folder, TWICE)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-12"))
    assert len(model.seen) == STEPS - 12
    assert again.grower.steps == again.grower.total_steps == 2 * STEPS
    same(again.grower.model, callback.grower.model)


def test_a_language_model_grows_in_the_real_trainer(tmp_path):
    """It takes the loss's own arguments from the trainer, which are none of its inputs."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    tokens = torch.randint(0, 12, (24, 8), generator=torch.Generator().manual_seed(1))

    def of_tokens(output, target):
        found = losses(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
        return found.view(len(target), -1).mean(1)

    config = transformers.GPT2Config(
        vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8, use_cache=False
    )
    callback = huggingface_callback(
        of_tokens, ({"input_ids": tokens}, tokens), growth=OWN, controller=Script((4, BEHIND))
    )
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    model = transformers.GPT2LMHeadModel(config)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    assert callback.grower.steps == STEPS
    assert list(callback.grower.model.seeds)
