"""A fossilized widening becomes part of two plain layers, and nothing changes by it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper_runtime.blueprint import canonical_id, catalogue, unabsorbable
from esper_runtime.contracts import (
    Absorbed,
    Blueprint,
    Event,
    HostError,
    InterfaceKind,
    Node,
    OptimizerName,
    SeedStage,
)
from esper_runtime.kasmina import GraftedModel, Growable, absorb, absorb_all
from tests.kasmina.absorbing import (
    HOSTS,
    fossilize,
    gap,
    grown,
    make,
    optimizer_of,
    pair,
    plant,
    spans,
    train,
    widenings,
)

each_host = pytest.mark.parametrize("name", list(HOSTS))
NORMALISED = {"mlp_batch_norm", "mlp_batch_norm_no_bias", "basic_block"}
"""A bias before batch norm is of no effect in training; in evaluation the running mean lags behind it."""


@each_host
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_outputs_stay_what_they_were(name: str, dtype: torch.dtype, bound: float) -> None:
    (model, _), (twin, _, _), x = pair(name, dtype)
    assert gap(model, twin, x) <= bound


@each_host
@pytest.mark.parametrize("kind", list(OptimizerName))
def test_learning_goes_on_as_if_nothing_had_happened(name: str, kind: OptimizerName) -> None:
    (model, optimizer), (twin, twin_optimizer, _), x = pair(name, kind=kind)
    train(model, optimizer, x, 20)
    train(twin, twin_optimizer, x, 20)
    modes = (True,) if name in NORMALISED else (False, True)
    assert gap(model, twin, x, modes) <= 1e-12


@each_host
def test_the_host_is_a_plain_model_of_the_wider_shape(name: str) -> None:
    with torch.random.fork_rng():
        bare, _ = HOSTS[name]()
    _, (twin, optimizer, merged), _ = pair(name)
    assert [type(m) for m in twin.host.modules()] == [type(m) for m in bare.modules()]
    assert list(twin.host.state_dict()) == list(bare.state_dict())
    assert not list(twin.living)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.host.modules())
    assert optimizer.groups == ("host",)
    grew = sum(p.numel() for p in twin.host.parameters()) - sum(p.numel() for p in bare.parameters())
    assert grew == merged.absorption.parameters == twin.parameter_count() - twin.host_parameters
    producer = twin.host.get_submodule(merged.absorption.producer)
    assert str(producer) != str(bare.get_submodule(merged.absorption.producer))
    assert producer.weight.shape[0] == getattr(producer, "out_features", 0) or producer.out_channels


def test_gradients_are_those_of_the_model_with_the_seed_beside() -> None:
    (model, _), (twin, _, merged), x = pair("cnn_1d")
    for one in (model, twin):
        one(x).square().mean().backward()
    seed = next(iter(model.seeds))
    producer = twin.host.get_submodule(merged.absorption.producer)
    own = model.host.get_submodule(merged.absorption.producer)
    expected = torch.cat([own.weight.grad, seed.body.hidden.weight.grad])
    torch.testing.assert_close(producer.weight.grad, expected, rtol=0, atol=1e-14)


def test_moments_move_along_at_equal_and_at_different_step_counts() -> None:
    (model, optimizer), (_, twin_optimizer, merged), _ = pair("mlp")
    seed = next(iter(model.seeds))
    before, _ = optimizer.state()
    after, _ = twin_optimizer.state()
    expected = torch.cat([before["host.0.weight/exp_avg"], before["living.s1.body.hidden.weight/exp_avg"]])
    assert torch.equal(after["host.0.weight/exp_avg"], expected)
    assert len(merged.moves) == 3
    assert seed.stage is SeedStage.FOSSILIZED

    young, x = make("mlp")
    optimizer = optimizer_of(young, OptimizerName.ADAMW)
    train(young, optimizer, x, 30)
    identity = plant(young, "0..2", widenings(young, "0..2")[0])
    body = young.seed(identity).body
    named = [(f"living.{identity}.body.{n}", p) for n, p in body.named_parameters()]
    optimizer.add_group(identity, named, step=0)
    train(young, optimizer, x, 10)
    fossilize(young, identity)
    own = optimizer.torch_optimizer.state[body.hidden.weight]
    corrected = own["exp_avg_sq"] / (1 - 0.999**10)
    optimizer.absorb(identity, absorb(young, identity, (x,)).moves)
    merged_state = optimizer.torch_optimizer.state[young.host[0].weight]
    assert float(merged_state["step"]) == 40
    torch.testing.assert_close(merged_state["exp_avg_sq"][8:] / (1 - 0.999**40), corrected, rtol=1e-6, atol=0)


def test_a_second_seed_of_the_slot_is_absorbed_after_the_first() -> None:
    model, x = make("mlp")
    for name in ("widen-linear", "widen-linear-bn", "widen-linear-6"):
        fossilize(model, plant(model, "0..2", catalogue()[name]))
    for parameter in model.living.parameters():
        nn.init.normal_(parameter, std=0.3)
    twin = copy.deepcopy(model)
    report = absorb_all(twin, (x,))
    assert [merged.absorption.seed for merged in report.merged] == ["s1", "s3"]
    assert list(report.refused) == ["s2"]
    assert gap(model, twin, x) <= 1e-12


def test_places_on_the_wider_activation_have_its_width_and_take_seeds() -> None:
    model, x = make("mlp")
    before = {name: place.interface.width_in for name, place in model.places.items()}
    fossilize(model, plant(model, "0..2", widenings(model, "0..2")[0]))
    units = absorb(model, "s1", (x,)).absorption.units
    after = {name: place.interface.width_in for name, place in model.places.items()}
    assert {name: after[name] - before[name] for name in after} == {
        name: units if name == "1.output" else 0 for name in after
    }
    assert model.slots["1.output"].place is model.places["1.output"]
    surveyed = {p.id: p.interface for p in grown(copy.deepcopy(model.host), x).places.values()}
    assert {name: place.interface for name, place in model.places.items()} == surveyed
    blueprint = next(b for b in catalogue().values() if b.name == "mlp-8")
    identity = plant(model, "1.output", blueprint)
    model(x)
    assert model.seed(identity).failure is None


def test_the_architecture_builds_the_wider_model_again_and_goes_back_and_forth() -> None:
    (model, _), (twin, _, merged), x = pair("basic_block")
    assert twin.architecture()["absorbed"] == [merged.absorption.record()]
    fresh, _ = make("basic_block")
    other = GraftedModel(fresh.host, dict(fresh.surveyed))
    other.rebuild(twin.architecture())
    other.load_state_dict(twin.state_dict())
    assert gap(twin, other, x) == 0.0
    # back to the state with the seed beside, as a rollback does
    narrow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin.rebuild(model.architecture())
    twin.load_state_dict(narrow)
    assert gap(model, twin, x) == 0.0
    assert twin.places == model.places
    assert twin.parameter_count() == model.parameter_count()


def test_every_change_is_journalled_first() -> None:
    model, x = make("mlp")
    fossilize(model, plant(model, "0..2", widenings(model, "0..2")[0]))
    fossilize(model, plant(model, "1.output", next(b for b in catalogue().values() if b.name == "mlp")))
    events: list[Event] = []

    def journal(event: Event) -> None:
        assert "s1" in model.living or isinstance(event, Absorbed)
        events.append(event)

    absorb_all(model, (x,), journal=journal)
    assert [event.seed for event in events if isinstance(event, Absorbed)] == ["s1", "s2"]
    assert all("seed s2" in (e.refused or "") for e in events[:1] if isinstance(e, Absorbed))


# What is refused


def refused(model: Growable, identity: str, x: Tensor) -> str:
    """The reason; and that nothing changed."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in model.host.modules())
    with pytest.raises(HostError) as error:
        absorb(model, identity, (x,))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert sum(len(m._forward_hooks) for m in model.host.modules()) == hooks
    assert identity in str(error.value)
    assert model.seed(identity).slot in str(error.value)
    return str(error.value)


def fossil(module: nn.Module, x: Tensor, blueprint: str, slot: str | None = None) -> Growable:
    model = grown(module, x)
    identity = plant(model, slot or spans(model)[0], catalogue()[blueprint])
    for parameter in model.living.parameters():
        nn.init.normal_(parameter, std=0.3)
    fossilize(model, identity)
    return model


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(x))
        return self.b(hidden), hidden


class UsedTwice(Returned):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        hidden = F.relu(self.a(x))
        return self.b(hidden) + hidden.mean(dim=1, keepdim=True)


class WeightElsewhere(Returned):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.b(F.relu(self.a(x))) + self.a.weight.sum()


class Tied(Returned):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(3, 8)
        self.c.weight = nn.Parameter(self.c.weight.detach())
        self.d = nn.Linear(5, 8)
        self.d.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.b(F.relu(self.a(x))) + self.d(x).mean(dim=1, keepdim=True) + self.c.bias.sum()


class CountsUnits(Returned):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        hidden = F.relu(self.a(x))
        return self.b(hidden) * (2.0 if hidden.shape[1] > 8 else 1.0)


REFUSED = {
    "active dropout": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        "widen-linear",
        "dropout in '2' would drop the seed's units too",
    ),
    "norm in the seed only": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        "widen-linear-bn",
        "between its layers lies batch_norm, relu, between '0' and its consumer relu",
    ),
    "norm in the host only": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        "widen-linear",
        "between its layers lies relu, between '0' and its consumer batch_norm, relu",
    ),
    "another order": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        "widen-linear-bn",
        "between its layers lies batch_norm, relu, between '0' and its consumer relu, batch_norm",
    ),
    "another epsilon": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, eps=1e-3), nn.ReLU(), nn.Linear(8, 3)),
        "widen-linear-bn",
        "the norm '1' has eps 0.001, the seed's 1e-05",
    ),
    "another form of gelu": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU("tanh"), nn.Linear(8, 3)),
        "widen-linear",
        "gelu in '1' is not the seed's GELU",
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)),
        "widen-linear",
        "its own layer has a bias, '0' has none",
    ),
    "used elsewhere": (UsedTwice, "widen-linear", "between 'a' and 'b' is used by mean"),
    "returned": (Returned, "widen-linear", "between 'a' and 'b' is used by what the host returns"),
    "weight used elsewhere": (WeightElsewhere, "widen-linear", "the host uses a weight of 'a' in"),
    "tied": (Tied, "widen-linear", "a weight is shared: a.weight and d.weight are one"),
    "counts units": (CountsUnits, "widen-linear", "with 'a' and 'b' wider, the host's output differs"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_could_not_be_exact_is_refused_with_the_reason(case: str) -> None:
    build, blueprint, reason = REFUSED[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fossil(build(), X, blueprint)
        assert reason in refused(model, "s1", X)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)])
def test_across_a_norm_over_all_channels_there_is_no_widening_to_absorb(norm: nn.Module) -> None:
    model = grown(nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 3)), X)
    assert spans(model) == []


def test_a_chain_of_layers_is_refused() -> None:
    for blueprint, reason in (
        ("widen-linear", "'2' lies between '0' and '4'"),
        ("deep-linear-bn", "a layer more"),
    ):
        layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        assert reason in refused(fossil(layers, X, blueprint, "0..4"), "s1", X)


def test_a_residual_adapter_has_nothing_to_widen() -> None:
    model = fossil(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), X, "mlp", "1.output")
    assert "there are no two layers" in refused(model, "s1", X)


def test_a_seed_that_is_not_part_of_the_model_for_good_stays_one() -> None:
    model, x = make("mlp")
    identity = plant(model, "0..2", widenings(model, "0..2")[0])
    assert "only a Fossilized seed" in refused(model, identity, x)
    fossilize(model, identity)
    seed = model.seed(identity)
    seed.alpha = 0.5
    assert "its alpha is 0.5" in refused(model, identity, x)
    seed.alpha = 1.0
    seed.body.requires_grad_(False)
    assert "it is frozen and '0' learns" in refused(model, identity, x)
    seed.failure = "it raised"
    assert "it has failed: it raised" in refused(model, identity, x)


def test_a_layer_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(F.relu(self.a(x)))
            return self.b(F.relu(self.a(x)))

    assert "the host calls 'a' 2 times" in refused(fossil(Twice(), X, "widen-linear"), "s1", X)


def test_seeds_on_the_activation_to_be_widened_stand_in_the_way() -> None:
    model = fossil(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), X, "widen-linear", "0..2")
    other = plant(model, "1.output", next(b for b in catalogue().values() if b.name == "mlp"))
    assert f"seed {other} is connected at 1.output" in refused(model, "s1", X)
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    model = fossil(nn.Sequential(*layers), X, "widen-linear", "0..2")
    other = plant(model, "2..4", catalogue()["widen-linear"])
    assert f"seed {other} is connected at 2.input" in refused(model, "s1", X)


def test_groups_and_parametrised_layers_are_refused() -> None:
    x = torch.randn(3, 4, 6, 6)
    layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    nn.utils.parametrizations.weight_norm(layers[0])
    model = fossil(layers, x, "widen-conv-image")
    assert "'0' is a ParametrizedConv2d" in refused(model, "s1", x)
    layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, groups=2))
    assert "'2' is Conv2d(8, 4" in refused(fossil(layers, x, "widen-conv-image"), "s1", x)


def test_which_blueprints_can_be_absorbed_is_known_from_their_graphs() -> None:
    names = {name for name, blueprint in catalogue().items() if unabsorbable(blueprint) is None}
    assert names == {name for name in catalogue() if name.startswith("widen-")}
    assert "adapter on one activation" in (unabsorbable(catalogue()["mlp"]) or "")
    assert "a layer more ('second')" in (unabsorbable(catalogue()["deep-linear-bn"]) or "")
    with_bias = Blueprint(
        name="biased",
        interface=InterfaceKind.FEATURES,
        nodes=(
            Node(id="hidden", op="linear", inputs=("input",), attributes={"width": 8}),
            Node(id="activation", op="span_activation", inputs=("hidden",)),
            Node(id="tail", op="linear", inputs=("activation",), attributes={"width": "Cout", "bias": True}),
        ),
        output="tail",
        span=True,
    )
    assert "half the pace" in (unabsorbable(with_bias) or "")
    assert canonical_id(with_bias).startswith("bp-")
