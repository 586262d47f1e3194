"""Hosts with widenings to absorb, trained a little, and the same model with the seed beside and merged."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper_runtime.blueprint import canonical_id, catalogue, misfit, unabsorbable
from esper_runtime.contracts import (
    Blueprint,
    Directive,
    GraftingPlan,
    InterfaceKind,
    Measured,
    Node,
    Operation,
    OptimizerName,
    SeedStage,
    Training,
)
from esper_runtime.kasmina import Growable, Merged, absorb, wrap
from esper_runtime.tolaria import GroupedOptimizer

Make = Callable[[], tuple[nn.Module, Tensor]]
HOSTS: dict[str, Make] = {}
"""Hosts of which every span takes an absorbable widening."""


def host(make: Make) -> Make:
    HOSTS[make.__name__] = make
    return make


@host
def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 5)


@host
def mlp_in_place() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 8), nn.SiLU(inplace=True), nn.Linear(8, 3)), torch.randn(16, 5)


@host
def mlp_inactive_dropout() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(0.0), nn.Linear(8, 3)), torch.randn(16, 5)


@host
def mlp_no_consumer_bias() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(nn.Linear(5, 8), nn.Identity(), nn.Tanh(), nn.Linear(8, 3, bias=False))
    return layers, torch.randn(16, 5)


@host
def mlp_batch_norm() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return layers, torch.randn(16, 5)


@host
def mlp_batch_norm_no_bias() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return layers, torch.randn(16, 5)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.softmax(self.fc2(torch.sigmoid(self.fc1(x))), dim=1))


@host
def functional() -> tuple[nn.Module, Tensor]:
    return Functional(), torch.randn(16, 5)


@host
def tokens() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6), nn.LayerNorm(6))
    return layers, torch.randn(8, 5, 6)


@host
def cnn_1d() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3, padding="same", dilation=2),
        nn.Flatten(),
        nn.Linear(4 * 10, 3),
    )
    return layers, torch.randn(16, 2, 20)


class BasicBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.short = nn.Conv2d(4, 4, 1, stride=2, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.short(x)
        return self.fc(F.relu(out).mean(dim=(2, 3)))


@host
def basic_block() -> tuple[nn.Module, Tensor]:
    return BasicBlock(), torch.randn(8, 2, 8, 8)


@host
def cnn_group_norm() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    )
    return layers, torch.randn(8, 2, 6, 6)


def group_norm_widening() -> Blueprint:
    """Eight more channels in groups of four."""
    sides = {
        side: dict.fromkeys(("kernel", "stride", "padding", "dilation"), side)
        for side in ("producer", "consumer")
    }
    return Blueprint(
        name="widen-conv-gn",
        interface=InterfaceKind.IMAGE,
        nodes=(
            Node(id="hidden", op="conv", inputs=("input",), attributes={"width": 8, **sides["producer"]}),
            Node(id="norm", op="group_norm", inputs=("hidden",), attributes={"groups": 2}),
            Node(id="activation", op="span_activation", inputs=("norm",)),
            Node(
                id="tail",
                op="conv",
                inputs=("activation",),
                attributes={"width": "Cout", "bias": False, **sides["consumer"]},
            ),
        ),
        output="tail",
        span=True,
    )


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[Growable, Tensor]:
    """A fresh host with its slots and an input; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = HOSTS[name]()
        return grown(module.to(dtype), x.to(dtype)), x.to(dtype)


def grown(module: nn.Module, x: Tensor) -> Growable:
    """The host with its slots."""
    blueprints = {**catalogue(), "widen-conv-gn": group_norm_widening()}
    return wrap(module, x, blueprints=blueprints)


def spans(model: Growable) -> list[str]:
    """Slots that lie around two layers."""
    return [name for name, place in model.places.items() if place.interface.is_span]


def widenings(model: Growable, slot: str) -> list[Blueprint]:
    """Absorbable blueprints that fit a slot."""
    interface = model.place(slot).interface
    return [b for b in model.blueprints.values() if unabsorbable(b) is None and misfit(b, interface) is None]


def plant(model: Growable, slot: str, blueprint: Blueprint) -> str:
    """Plant a seed that contributes from now on, and return its id."""
    directive = Directive(
        operation=Operation.GERMINATE,
        slot=slot,
        blueprint=canonical_id(blueprint),
        plan=GraftingPlan(),
        explanation="test",
    )
    model.submit(directive)
    changes = model.boundary(0)
    assert not changes.refused, changes.refused
    return changes.born[0].identity


def fossilize(model: Growable, identity: str) -> None:
    """Make a seed part of the model for good."""
    seed = model.seed(identity)
    seed.contribution = Measured(mean=0.1, standard_error=0.01, count=10)
    for operation in (Operation.EVALUATE, Operation.FOSSILIZE):
        model.submit(Directive(operation=operation, seed=identity, explanation="test"))
        assert not model.boundary(0).refused
    assert seed.stage is SeedStage.FOSSILIZED


def optimizer_of(model: Growable, name: OptimizerName) -> GroupedOptimizer:
    """An optimizer of the run's kind over host and seeds."""
    training = Training.model_validate(
        {"steps": 1000, "optimizer": {"name": name, "learningRate": 0.01, "weightDecay": 0.01}}
    )
    named = [(f"host.{n}", p) for n, p in model.host.named_parameters()]
    optimizer = GroupedOptimizer(training, 1000, named)
    for seed in model.seeds:
        prefix = f"living.{seed.identity}.body."
        optimizer.add_group(
            seed.identity, [(f"{prefix}{n}", p) for n, p in seed.body.named_parameters()], step=0
        )
    return optimizer


def train(model: Growable, optimizer: GroupedOptimizer, x: Tensor, steps: int) -> None:
    """Learn some function of the input."""
    for step in range(steps):
        optimizer.set_learning_rates(step)
        output = model(x)
        (
            output - torch.sin(torch.arange(output.numel()).to(output)).view_as(output)
        ).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pair(
    name: str,
    dtype: torch.dtype = torch.float64,
    kind: OptimizerName = OptimizerName.ADAMW,
    blueprint: Blueprint | None = None,
    steps: int = 10,
) -> tuple[tuple[Growable, GroupedOptimizer], tuple[Growable, GroupedOptimizer, Merged], Tensor]:
    """A trained model with a fossil beside its first span, and the same with it absorbed."""
    model, x = make(name, dtype)
    slot = next(slot for slot in spans(model) if widenings(model, slot))
    chosen = blueprint or matching(model, slot)
    identity = plant(model, slot, chosen)
    optimizer = optimizer_of(model, kind)
    train(model, optimizer, x, steps)
    fossilize(model, identity)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    merged = absorb(twin, identity, (x,))
    twin_optimizer.absorb(identity, merged.moves)
    return (model, optimizer), (twin, twin_optimizer, merged), x


def matching(model: Growable, slot: str) -> Blueprint:
    """The widening whose norm is that of the host between the two layers."""
    norms = {nn.BatchNorm1d: "-bn", nn.BatchNorm2d: "-bn", nn.GroupNorm: "-gn"}
    module = model.host.get_submodule(model.place(slot).read.module)
    modules = list(model.host.modules())
    behind = modules[modules.index(module) + 1]
    wanted = norms.get(type(behind), "")
    names = {b.name: b for b in widenings(model, slot)}
    ending = [b for n, b in names.items() if (wanted in n if wanted else "-bn" not in n and "-gn" not in n)]
    return next((b for b in ending if b.name.endswith("-6")), ending[0])


def gap(one: Any, other: Any, x: Tensor, modes: tuple[bool, ...] = (False, True)) -> float:
    """Largest difference of two models' outputs, in evaluation mode and in training mode."""
    worst = 0.0
    for training in modes:
        outputs = []
        for model in (one, other):
            twin = copy.deepcopy(model).train(training)
            with torch.no_grad():
                outputs.append(twin(x))
        worst = max(worst, float((outputs[0] - outputs[1]).abs().max()))
    return worst
