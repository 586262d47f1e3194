"""Mixed precision on the GPU."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esper_runtime import Grower, wrap
from esper_runtime.contracts import Growth, SeedChanged, SeedStage
from esper_runtime.tolaria.learning import LARGEST_SCALE
from tests.cuda.runs import DEVICE, on_gpu, replayed
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Script, train

each_half = pytest.mark.parametrize("precision", ["BFloat16", "Float16"])


@each_half
def test_a_run_with_both_plans_learns_resumes_and_replays_bit_for_bit(tmp_path: Path, precision: str) -> None:
    run = on_gpu(90, training={"precision": precision})
    plants = ((4, IMMEDIATE), (25, ISOLATED))
    whole, trainer, result = train(run, tmp_path / "whole", Script(*plants))
    half, _, _ = train(run, tmp_path / "parts", Script(*plants), stop_at=37)
    rest, _, second = train(run, tmp_path / "parts", Script(*plants))
    assert {**half.losses, **rest.losses} == whole.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert [e.after for e in whole.of(SeedChanged)].count(SeedStage.FOSSILIZED) == 2
    assert sum(whole.losses[s] for s in range(81, 91)) < sum(whole.losses[s] for s in range(1, 11))
    assert {p.dtype for p in trainer._loop.parts.model.parameters()} == {torch.float32}
    assert replayed(tmp_path / "whole").equal


@each_half
def test_the_heuristic_tries_candidates_in_half_precision(tmp_path: Path, precision: str) -> None:
    from esper_runtime.tolaria import Trainer

    result = Trainer(on_gpu(200, training={"precision": precision}), tmp_path).run()
    assert result.finished is not None
    assert result.finished.ledger["probe"] > 0


class Large:
    """A task whose losses are so large that their Float16 gradients overflow at first."""

    def __init__(self, task: Any) -> None:
        self.__dict__.update(vars(task))
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def losses(self, output: Any, batch: Any) -> torch.Tensor:
        """A thousand times those of the task."""
        found: torch.Tensor = self._task.losses(output, batch) * 1000
        return found


def test_a_scale_that_is_too_high_is_lowered_and_the_run_goes_on(tmp_path: Path) -> None:
    from tests.tolaria.runs import digits

    run = on_gpu(60, training={"precision": "Float16"})
    recorder, trainer, result = train(run, tmp_path, Script((4, IMMEDIATE), (10, ISOLATED)), Large(digits()))
    assert result.outcome == "Complete"
    assert trainer._loop.parts.learner.loss_scale < LARGEST_SCALE
    assert all(map(math.isfinite, recorder.losses.values()))


def test_a_loop_of_ones_own_with_a_gradient_scaler_grows() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 16, device=DEVICE)
    y = x[:, :4].argmax(1)
    net = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE.type)

    def losses(output: Any, target: Any) -> torch.Tensor:
        return F.cross_entropy(output.float(), target, reduction="none")

    model = wrap(net, x[:2], exclude=["4*"])
    growth = Growth.model_validate({"controller": {"everySteps": 5}, "budget": {"parameters": "6x"}})
    grower = Grower(
        model,
        optimizer,
        losses,
        (x, y),
        120,
        growth=growth,
        controller=Script((5, ISOLATED), (60, IMMEDIATE)),
        scaler=scaler,
    )
    seen = []
    for step in range(120):
        rows = torch.arange(step * 32, step * 32 + 32, device=DEVICE) % 256
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            loss = losses(model(x[rows]), y[rows]).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        grower.step(x[rows], y[rows])
        seen.append(loss.item())
    assert grower.ledger.by_purpose["isolated"] > 0
    assert SeedStage.FOSSILIZED in {seed.stage for seed in model.seeds}
    assert max(float(p.detach().abs().max()) for seed in model.seeds for p in seed.body.parameters()) < 10
    assert sum(seen[-10:]) < sum(seen[:10])
