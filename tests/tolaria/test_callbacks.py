from types import SimpleNamespace

import pytest
import torch
from torch import nn

from esper_runtime import Grower, huggingface_callback, lightning_callback, wrap
from esper_runtime.contracts import Growth, InputError
from tests.tolaria.runs import IMMEDIATE, Script

STEPS = 24
GROWTH = Growth.model_validate({"controller": {"everySteps": 4}, "budget": {"parameters": "8x"}})


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


def plain(seen=None):
    """The same training in a loop of one's own, on the batches ``seen``."""
    host = net()
    optimizer = torch.optim.AdamW(host.parameters(), lr=0.01)
    x, y = examples()
    grower = Grower(
        wrap(host, x[:2]), optimizer, losses, (x, y), STEPS, growth=GROWTH, controller=Script((4, IMMEDIATE))
    )
    for x, y in seen or batches() * 2:
        optimizer.zero_grad()
        losses(host(x), y).mean().backward()
        optimizer.step()
        grower.step(x, y)
    return grower.model


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(one.seeds)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request):
    return pytest.importorskip(request.param)


def lightning(package, folder, resume=None):
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
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    callback = lightning_callback(
        losses,
        examples(),
        net="net",
        growth=GROWTH,
        controller=Script((4, IMMEDIATE)),
        package=package.__name__,
    )
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
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), batch_size=8)
    trainer.fit(Module(), loader, ckpt_path=resume)
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


class Classifier(nn.Module):
    """Called as the Trainer calls a model: everything by name."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": losses(logits, labels).mean(), "logits": logits}


def of_logits(output, target):
    return losses(output["logits"], target)


def as_the_trainer(folder, steps=STEPS, resume=None):
    """What `transformers.Trainer` does around its callbacks, with its own handler, state and control."""
    transformers = pytest.importorskip("transformers")
    from transformers.trainer_callback import CallbackHandler

    x, y = examples()
    callback = huggingface_callback(
        of_logits, ({"x": x}, y), growth=GROWTH, controller=Script((4, IMMEDIATE))
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


def test_the_real_trainer_of_transformers_grows_a_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    x, y = examples()
    callback = huggingface_callback(
        of_logits, ({"x": x}, y), growth=GROWTH, controller=Script((4, IMMEDIATE))
    )
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=8, use_cpu=True, report_to=[]
    )
    transformers.Trainer(Classifier(), arguments, train_dataset=data, callbacks=[callback]).train()
    assert callback.grower.steps == STEPS
    assert list(callback.grower.model.seeds)
