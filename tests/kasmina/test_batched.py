"""Many equal seeds run as one give what each gives by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface, InterfaceKind, SpanGeometry
from esper_runtime.kasmina import Batch, Growable, direct_gradients, wrap
from esper_runtime.kasmina.batched import MANY
from tests.kasmina.absorbing import plant

FLAT = SpanGeometry(kernel=(), stride=(), padding=(), dilation=(), groups=1)
CONV = SpanGeometry(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
SHAPES = {
    InterfaceKind.FEATURES: (6, 4),
    InterfaceKind.TOKENS: (6, 3, 4),
    InterfaceKind.SEQUENCE: (6, 4, 9),
    InterfaceKind.IMAGE: (6, 4, 5, 5),
}
BLUEPRINTS = [
    "widen-linear",
    "widen-linear-bn",
    "widen-linear-tokens",
    "widen-conv-bn-image",
    "mlp-bn",
    "bottleneck-bn",
    "squeeze-excite",
    "attention",
    "gated-mlp",
]


def bodies(name: str, count: int, dtype: torch.dtype = torch.float64) -> tuple[list[nn.Module], Tensor]:
    blueprint = catalogue()[name]
    shape = SHAPES[blueprint.interface]
    spatial = shape[1:2] if blueprint.interface is InterfaceKind.TOKENS else shape[2:]
    geometry = CONV if blueprint.interface is InterfaceKind.IMAGE else FLAT
    span = {"producer": geometry, "consumer": geometry, "activation": "relu"} if blueprint.span else {}
    interface = Interface(
        kind=blueprint.interface, width_in=4, width_out=4, spatial_in=spatial, spatial_out=spatial, **span
    )
    generator = torch.Generator().manual_seed(0)
    made = [build(blueprint, interface, number).to(dtype) for number in range(count)]
    for body in made:
        for parameter in body.parameters():
            with torch.no_grad():
                parameter.normal_(std=0.3, generator=generator)
    return made, torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([(number + 1) * y.square().mean() for number, y in enumerate(outputs)]).sum()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("name", BLUEPRINTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_outputs_gradients_and_buffers_are_those_of_each_by_itself(
    name: str, direct: bool, dtype: torch.dtype, bound: float
) -> None:
    ones, x = bodies(name, 5, dtype)
    others = copy.deepcopy(ones)
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected = [body(given[0]) for body in ones]
    loss(expected).backward()
    if direct:
        with direct_gradients():
            found = Batch(others)(given[1])
            loss(list(found.unbind())).backward()
    else:
        found = Batch(others)(given[1])
        loss(list(found.unbind())).backward()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=bound)
    scale = 1 + float(given[0].grad.abs().max())
    torch.testing.assert_close(given[1].grad, given[0].grad, rtol=0, atol=10 * bound * scale)
    for one, other in zip(ones, others, strict=True):
        for (key, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            gap = (p.grad - q.grad).abs().max() / (1 + p.grad.abs().max())
            assert gap <= 10 * bound, (key, gap)
        for p, q in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=bound)


def test_each_body_may_have_an_input_of_its_own() -> None:
    ones, x = bodies("widen-linear", 4)
    inputs = [x + number for number in range(4)]
    found = Batch(ones)(inputs)
    for body, given, y in zip(ones, inputs, found, strict=True):
        torch.testing.assert_close(y, body(given), rtol=0, atol=1e-12)


def test_direct_gradients_are_added_to_those_that_are_there() -> None:
    ones, x = bodies("widen-linear", 3)
    with direct_gradients():
        for _ in range(2):
            Batch(ones)(x).square().sum().backward()
    twice = [p.grad.clone() for p in ones[0].parameters()]
    ones[0].zero_grad()
    ones[0](x).square().sum().backward()
    for p, gradient in zip(ones[0].parameters(), twice, strict=True):
        torch.testing.assert_close(gradient, 2 * p.grad)


def test_bodies_that_differ_or_draw_random_numbers_are_refused() -> None:
    ones, _ = bodies("widen-linear", 2)
    others, _ = bodies("mlp-bn", 1)
    with pytest.raises(ValueError, match="body 2 is not equal to the first"):
        Batch([*ones, *others])
    with pytest.raises(ValueError, match="random numbers"):
        Batch([nn.Sequential(nn.Dropout(0.5))])
    with pytest.raises(ValueError, match="no bodies"):
        Batch([])


def crowd(count: int = MANY, name: str = "widen-linear-bn") -> tuple[Growable, Tensor]:
    """A host with many seeds of one blueprint in one slot around two layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        host = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        x = torch.randn(12, 5, dtype=torch.float64)
        model = wrap(host, x)
        for _ in range(count):
            identity = plant(model, "0..2", catalogue()[name])
            model.slots["0..2"].state = type(model.slots["0..2"].state).DORMANT
            for parameter in model.seed(identity).body.parameters():
                nn.init.normal_(parameter, std=0.3)
    return model, x


def alone(model: Growable) -> Growable:
    """The same model in which every seed is asked by itself."""
    twin = copy.deepcopy(model)
    for choir in twin._choirs.values():
        choir.members = []
    return twin


@pytest.mark.parametrize("name", ["widen-linear", "widen-linear-bn"])
def test_a_model_with_many_equal_seeds_in_a_slot_computes_and_learns_what_it_does_one_by_one(
    name: str,
) -> None:
    model, x = crowd(name=name)
    for number, seed in enumerate(model.seeds):
        seed.alpha = 1.0 - 0.05 * number
    twin = alone(model)
    for step in range(3):
        outputs = [m(x) for m in (model, twin)]
        assert float((outputs[0] - outputs[1]).detach().abs().max()) <= 1e-12
        with direct_gradients():
            model.zero_grad()
            model(x).square().mean().backward()
        twin.zero_grad()
        twin(x).square().mean().backward()
        for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert p.grad is not None
            assert float((p.grad - q.grad).abs().max()) <= 1e-12, (step, key)
            with torch.no_grad():
                p -= 0.1 * p.grad
                q -= 0.1 * q.grad
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_many_equal_seeds_are_run_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = crowd()
    calls = []
    run = Batch.run
    monkeypatch.setattr(Batch, "run", lambda self, given: calls.append(len(self.bodies)) or run(self, given))
    model(x)
    assert calls == [MANY]
    for seed in list(model.seeds)[:1]:
        model.disconnect(seed)
    model(x)
    assert calls == [MANY]


def test_a_seed_that_fails_fails_alone() -> None:
    model, x = crowd()
    seeds = list(model.seeds)
    with torch.no_grad():
        next(iter(seeds[3].body.parameters()))[0, 0] = float("nan")
    healthy = copy.deepcopy(model)
    healthy.disconnect(healthy.seed(seeds[3].identity))
    output = model(x)
    assert [seed.failure is not None for seed in seeds] == [number == 3 for number in range(MANY)]
    assert "non-finite" in (seeds[3].failure or "")
    torch.testing.assert_close(output, healthy(x), rtol=0, atol=1e-12)
    output.square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.host.parameters() if p.grad is not None)
    for one, other in zip(model.seeds, healthy.seeds, strict=True):
        if one.failure is None:
            for p, q in zip(one.body.buffers(), other.body.buffers(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_a_copy_of_a_crowded_model_is_independent() -> None:
    model, x = crowd()
    before = model(x).detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.living.parameters():
            parameter.add_(1.0)
    assert float((model(x) - before).detach().abs().max()) < 1e-12
    assert float((twin(x) - before).detach().abs().max()) > 1e-3


def test_gradients_can_be_asked_for_by_name() -> None:
    model, x = crowd()
    twin = alone(model)
    found = torch.autograd.grad(model(x).square().mean(), list(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(twin(x).square().mean(), list(twin.parameters()), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
