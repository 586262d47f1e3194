"""Mixed precision: passes in the autocast type, masters in float32, seeds that contribute and that wait."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esper_runtime.contracts import SeedChanged, SeedStage
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Recorder, Script, manifest, train

HOST = {"builtin": "mlp", "args": {"hidden": [12, 12]}}
each_half = pytest.mark.parametrize("precision", ["BFloat16", "Float16"])
GROWTH: dict[str, Any] = {
    "controller": {"everySteps": 5},
    "budget": {"parameters": "6x"},
    "gates": {"validationExamples": 30},
}


def learn(folder: Path, precision: str, *plants: Any, steps: int = 60, stop_at: int | None = None) -> Any:
    run = manifest(steps, host=HOST, growth=GROWTH, training={"precision": precision})
    return train(run, folder, Script(*plants), stop_at=stop_at)


def loop_of(trainer: Any) -> Any:
    assert trainer._loop is not None
    return trainer._loop


@each_half
def test_seeds_contribute_in_the_autocast_type_and_keep_float32_masters(
    tmp_path: Path, precision: str
) -> None:
    _, trainer, _ = learn(tmp_path, precision, (5, IMMEDIATE), steps=30)
    parts = loop_of(trainer).parts
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    (seed,) = parts.model.seeds
    seen = []
    place = parts.model.place(seed.slot)
    module = parts.model.host.get_submodule(place.write.module)
    module.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    kind = {"BFloat16": torch.bfloat16, "Float16": torch.float16}[precision]
    x = parts.task.train["x"][:4]
    with torch.autocast("cpu", kind):
        parts.model(x)
        assert seed.body(x.flatten(1)[:, : place.interface.width_in].clone()).dtype in (kind, torch.float32)
    assert seen == [kind]


@each_half
def test_a_run_with_both_plans_learns_and_resumes_bit_for_bit(tmp_path: Path, precision: str) -> None:
    plants, steps = ((4, IMMEDIATE), (25, ISOLATED)), 90
    whole, first, _ = learn(tmp_path / "whole", precision, *plants, steps=steps)
    half, _, _ = learn(tmp_path / "parts", precision, *plants, steps=steps, stop_at=37)
    rest, _, _ = learn(tmp_path / "parts", precision, *plants, steps=steps)
    assert {**half.losses, **rest.losses} == whole.losses
    assert [e.after for e in whole.of(SeedChanged)].count(SeedStage.FOSSILIZED) == 2
    assert sum(whole.losses[s] for s in range(81, 91)) < sum(whole.losses[s] for s in range(1, 11))
    assert {p.dtype for p in loop_of(first).parts.model.parameters()} == {torch.float32}


def isolated_gradients(folder: Path, scale: float, factor: float) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """A step's gradients of an isolated seed in a Float16 run whose loss is multiplied by ``factor``."""
    run = manifest(40, host=HOST, growth=GROWTH, training={"precision": "Float16", "clipNorm": None})
    recorder = Recorder(stop_at=12)
    from esper_runtime.tolaria import Trainer
    from tests.tolaria.runs import Poisoned, digits

    task: Any = Poisoned(digits(), lambda losses, batch: losses)
    script: Any = Script((5, ISOLATED))
    trainer = Trainer(run, folder, recorder, task=task, controller=script)
    recorder.trainer = trainer
    trainer.run()
    parts = loop_of(trainer).parts
    task._poison = lambda losses, batch: losses * factor
    learner = parts.learner
    learner.isolated_scale = scale
    (seed,) = parts.model.isolating()
    seed.body.requires_grad_(True)
    with torch.no_grad():  # past the zero tail, so that every parameter has a gradient
        for p in seed.body.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    learner.gradients(parts.feed.batch(0), 12)
    found = {n: p.grad.clone() for n, p in seed.body.named_parameters() if p.grad is not None}
    return learner, found, seed


def test_small_gradients_of_an_isolated_seed_survive_float16_because_its_loss_is_scaled(
    tmp_path: Path,
) -> None:
    _, scaled, _ = isolated_gradients(tmp_path / "scaled", 2.0**16, 1e-6)
    _, unscaled, _ = isolated_gradients(tmp_path / "unscaled", 1.0, 1e-6)
    lost = {name: int((unscaled[name] == 0).sum() - (scaled[name] == 0).sum()) for name in scaled}
    assert sum(lost.values()) > 0, "without the scale nothing is lost, so this tests nothing"
    assert all(bool(torch.isfinite(gradient).all()) for gradient in scaled.values())


def test_too_large_a_scale_is_lowered_for_the_isolated_seed_alone(tmp_path: Path) -> None:
    learner, gradients, seed = isolated_gradients(tmp_path, 2.0**40, 1.0)
    assert learner.isolated_scale == 2.0**39
    assert learner.loss_scale <= 2.0**16
    assert gradients == {}
    assert seed.failure is None
    assert any(p.grad is not None for p in learner.model.host.parameters())


def test_a_checkpoint_that_knows_one_scale_only_gives_it_to_the_seeds_too(tmp_path: Path) -> None:
    learner, _, _ = isolated_gradients(tmp_path, 2.0**10, 1.0)
    learner.set_scales([2.0**12, 7])
    assert learner.scales() == [2.0**12, 7, 2.0**12]
