"""Several candidates side by side on the GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esper_runtime.contracts import Directive, GraftingPlan, Operation, PlanKind, SeedChanged, SeedStage
from esper_runtime.kasmina import Growable, candidates, learn_side_by_side, wrap
from tests.cuda.runs import DEVICE, on_gpu, replayed
from tests.tolaria.runs import Script, train
from tests.tolaria.test_tournament_run import STEPS, Tournament

PLAN = GraftingPlan(kind=PlanKind.TOURNAMENT, training_steps=10)


def test_a_tournament_keeps_one_resumes_and_replays_bit_for_bit(tmp_path: Path) -> None:
    run = on_gpu(STEPS, growth={"controller": {"everySteps": 5}, "budget": {"parameters": "4x"}})
    whole, _, result = train(run, tmp_path / "whole", Tournament())
    part, _, _ = train(run, tmp_path / "parts", Tournament(), stop_at=31)
    rest, _, second = train(run, tmp_path / "parts", Tournament())
    assert {**part.losses, **rest.losses} == whole.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert [e.after for e in whole.of(SeedChanged)].count(SeedStage.FOSSILIZED) == 1
    assert replayed(tmp_path / "whole").equal
    bare, _, _ = train(run, tmp_path / "bare", Script())
    assert all(whole.losses[step] == bare.losses[step] for step in range(1, 40)), "the host noticed"


class Host(nn.Module):
    """Batch norm, dropout and attention behind the slots."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(8, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.drop(self.norm(self.block(torch.tanh(self.inlet(x))))))
        return found


def cohort(model: Growable, slot: str, names: tuple[str, ...]) -> list[Any]:
    """Candidates of one slot whose weights are not zero."""
    known = {blueprint.name: identity for identity, blueprint in model.blueprints.items()}
    for name in names:
        model.submit(
            Directive(
                operation=Operation.GERMINATE,
                slot=slot,
                blueprint=known[name],
                plan=PLAN,
                explanation="a candidate",
            )
        )
    assert not model.boundary(0).refused
    assert not model.boundary(1).refused
    seeds = list(model.seeds)
    for number, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in seed.body.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return seeds


@pytest.fixture
def world() -> tuple[Growable, list[Any], torch.Tensor, Any]:
    torch.manual_seed(0)
    model = wrap(Host().to(DEVICE).train(), torch.randn(4, 8, device=DEVICE))
    slot = next(name for name in model.slots if name.startswith("block"))
    fitting = [c for c in candidates(model) if c.slot == slot and c.parameters]
    names = tuple(model.blueprints[c.blueprint].name for c in fitting[:3])
    seeds = cohort(model, slot, names)
    x = torch.randn(32, 8, device=DEVICE)
    y = torch.randint(0, 3, (32,), device=DEVICE)
    return model, seeds, x, lambda output: F.cross_entropy(output, y)


def test_candidates_side_by_side_learn_what_each_would_alone(world: Any) -> None:
    model, seeds, x, criterion = world
    torch.manual_seed(7)
    before = torch.cuda.get_rng_state()
    together = learn_side_by_side(model, seeds, (x,), {}, criterion)
    assert not any(seed.apart for seed in seeds), "they learned in one pass"
    assert torch.equal(before, torch.cuda.get_rng_state())
    gradients = [[p.grad.clone() for p in seed.body.parameters()] for seed in seeds]
    for seed, loss, found in zip(seeds, together, gradients, strict=True):
        alone = learn_side_by_side(model, [seed], (x,), {}, criterion)
        assert torch.allclose(alone[0], loss, atol=1e-5), "dropout has another mask"
        for parameter, gradient in zip(seed.body.parameters(), found, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def test_a_candidate_that_draws_random_numbers_is_noticed(world: Any) -> None:
    model, seeds, x, criterion = world
    seeds[1].body.register_forward_hook(lambda module, args, output: F.dropout(output, 0.5))
    learn_side_by_side(model, seeds, (x,), {}, criterion)
    assert all(seed.apart for seed in seeds), "each has a pass of its own"
