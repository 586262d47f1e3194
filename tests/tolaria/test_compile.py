"""Hosts compiled by regions: for training steps only, never a seed inside, the same results."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.contracts import Directive, GraftingPlan, Operation, SeedChanged, SeedStage
from esper_runtime.kasmina import Growable, wrap
from esper_runtime.tolaria import regions
from esper_runtime.tolaria.regions import Regions, blocks_of
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Script, manifest, train

GROWTH: dict[str, Any] = {
    "controller": {"everySteps": 5},
    "budget": {"parameters": "6x"},
    "blueprints": {"include": ["mlp", "low-rank"]},
    "slots": {"exclude": ["*..*"]},
    "gates": {"validationExamples": 30},
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.out = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.mix(x))


class Stack(nn.Module):
    def __init__(self, depth: int = 3, width: int = 12) -> None:
        super().__init__()
        self.inlet = nn.Linear(64, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x.flatten(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def stack() -> nn.Module:
    return Stack()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same capture of graphs, without the seconds that the machine code takes."""
    monkeypatch.setattr(regions, "BACKEND", "aot_eager")


def names(model: Growable, parts: list[nn.Module]) -> list[str]:
    return [name for name, module in model.host.named_modules() if any(module is part for part in parts)]


def plant(model: Growable, slot: str) -> str:
    blueprint = next(i for i, b in model.blueprints.items() if b.name.startswith("low-rank"))
    command(model, Operation.GERMINATE, slot=slot, blueprint=blueprint, plan=GraftingPlan())
    return list(model.seeds)[-1].identity


def command(model: Growable, operation: Operation, **given: Any) -> None:
    model.submit(Directive(operation=operation, explanation="the test says so", **given))
    changes = model.boundary(0)
    assert not changes.refused, changes.refused


def test_the_regions_are_the_repeated_blocks() -> None:
    host = Stack()
    assert list(blocks_of(host)) == list(host.layers)
    assert list(blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == []


def test_outside_of_training_steps_nothing_is_compiled_and_no_key_changes(quick: None) -> None:
    host = Stack()
    keys = list(host.state_dict())
    found = Regions(wrap(host, torch.randn(2, 64)))
    with found.compiled():
        assert all("forward" in layer.__dict__ for layer in host.layers)
        assert list(host.state_dict()) == keys
        host(torch.randn(2, 64))
    assert all("forward" not in module.__dict__ for module in host.modules())
    assert list(host.state_dict()) == keys


def test_only_the_block_with_a_seed_leaves_the_compiled_ones(quick: None) -> None:
    torch.manual_seed(0)
    model = wrap(Stack(), torch.randn(2, 64))
    found = Regions(model)
    assert names(model, found.parts) == ["layers.0", "layers.1", "layers.2"]
    seed = plant(model, "layers.1.mix.1.output")
    found.update()
    assert names(model, found.parts) == ["layers.0", "layers.2"]
    model.discard(model.seed(seed))
    found.update()
    assert names(model, found.parts) == ["layers.0", "layers.1", "layers.2"]


def test_a_seed_contributes_beside_compiled_blocks(quick: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    model = wrap(Stack(), x)
    found = Regions(model)
    with found.compiled():
        model(x)  # every block is compiled before the seed comes
    for slot in ("layers.1.mix.1.output", "layers.2.output"):
        identity = plant(model, slot)
        for parameter in model.seed(identity).body.parameters():
            nn.init.normal_(parameter, std=0.5)
        found.update()
    eager = model(x)
    with found.compiled():
        torch.testing.assert_close(model(x), eager, rtol=1e-5, atol=1e-6)
    assert "layers.2" in names(model, found.parts), "a seed behind a whole block does not end its compilation"
    model.discard(model.seed(identity))
    with found.compiled():
        assert (model(x) - eager).abs().max() > 1e-3


def test_the_machine_code_computes_what_the_host_computes() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    host = Stack(depth=2)
    model = wrap(host, x)
    found = Regions(model)
    if not found.blocks:
        pytest.skip("there is no working compiler here")
    outcomes = []
    for context in (torch.enable_grad(), found.compiled()):
        with context:
            host.zero_grad()
            output = model(x)
            output.square().sum().backward()
            outcomes.append([output.detach(), *(p.grad for p in host.parameters())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_host_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(regions, "BACKEND", "no-such-compiler")
    model = wrap(Stack(), torch.randn(2, 64))
    with caplog.at_level(logging.WARNING):
        found = Regions(model)
    assert found.parts == []
    assert "no working compiler" in caplog.text
    with found.compiled():
        model(torch.randn(2, 64))


def test_a_compiled_run_grows_and_resumes_bit_for_bit(tmp_path: Path, quick: None) -> None:
    host = {"entrypoint": "tests.tolaria.test_compile:stack"}
    run = manifest(50, host=host, growth=GROWTH, training={"compile": "Regions"})
    plants = (4, IMMEDIATE), (8, ISOLATED)
    whole, first, _ = train(run, tmp_path / "whole", Script(*plants))
    half, _, _ = train(run, tmp_path / "parts", Script(*plants), stop_at=27)
    rest, second, _ = train(run, tmp_path / "parts", Script(*plants))
    assert {**half.losses, **rest.losses} == whole.losses
    states = []
    for trainer in (first, second):
        assert trainer._loop is not None
        states.append(trainer._loop.parts.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any("_orig_mod" in name for name in states[0])
    assert [e.after for e in whole.of(SeedChanged)].count(SeedStage.FOSSILIZED) >= 1


def test_a_compiled_run_counts_the_same_compute_as_an_eager_one(tmp_path: Path, quick: None) -> None:
    host = {"entrypoint": "tests.tolaria.test_compile:stack"}
    counted = []
    for way in ("Never", "Regions"):
        run = manifest(20, host=host, growth=GROWTH, training={"compile": way})
        _, _, result = train(run, tmp_path / way, Script((4, IMMEDIATE)))
        assert result.finished is not None
        counted.append(result.finished.ledger)
    assert counted[0] == counted[1]
