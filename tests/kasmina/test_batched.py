"""Many equal seeds run as one give what each gives by itself."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface, InterfaceKind, SpanGeometry, Training
from esper_runtime.kasmina import Batch, Growable, direct_gradients, wrap
from esper_runtime.kasmina.batched import MANY
from esper_runtime.kasmina.stacked import ALIGNMENT
from esper_runtime.tolaria import GroupedOptimizer
from esper_runtime.tolaria.training_state import capture
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


def learn(model: Growable, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """A training step as `Learner` does it; returns the output before it."""
    with direct_gradients():
        output: Tensor = model(x)
        output.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return output.detach()


def sgd(model: Growable) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def assert_same(one: Growable, other: Growable, bound: float = 1e-11) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=bound, msg=key)


def test_parameters_and_optimizer_state_stay_the_same_objects_while_the_stack_learns() -> None:
    model, x = crowd(count=MANY + 2, name="widen-linear")
    twin = alone(model)
    objects = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01, fused=True) for one in (model, twin)]
    for _ in range(4):
        outputs = learn(model, x, optimizers[0]), learn(twin, x, optimizers[1])
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-11)
    assert_same(model, twin)
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == objects
    assert [p for p in model.parameters() if p.requires_grad and p not in optimizers[0].state] == []
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in optimizers[0].state[p].items():
            torch.testing.assert_close(value, optimizers[1].state[q][key], rtol=0, atol=1e-11)


def test_one_of_a_stack_can_go_and_another_come() -> None:
    model, x = crowd(count=MANY + 1)
    twin = alone(model)
    learn(model, x, sgd(model))
    learn(twin, x, sgd(twin))
    gone = model.seed("s3")
    kept = {name: value.clone() for name, value in gone.body.state_dict().items()}
    for one in (model, twin):
        one.discard(one.seed("s3"))
    for _ in range(2):
        learn(model, x, sgd(model))
        learn(twin, x, sgd(twin))
    assert_same(model, twin)
    for name, value in gone.body.state_dict().items():
        assert torch.equal(value, kept[name]), name
    for one in (model, twin):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            identity = plant(one, "0..2", catalogue()["widen-linear-bn"])
            for parameter in one.seed(identity).body.parameters():
                nn.init.normal_(parameter, std=0.3)
    for choir in twin._choirs.values():
        choir.members = []
    for _ in range(2):
        learn(model, x, sgd(model))
        learn(twin, x, sgd(twin))
    assert_same(model, twin)


def moved(body: nn.Module) -> None:
    for tensor in (*body.parameters(), *body.buffers()):
        tensor.data = tensor.data.clone()


def replaced(body: nn.Module) -> None:
    for module in body.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach() + 0.5))


def written(body: nn.Module) -> None:
    body.load_state_dict({name: value + 1 for name, value in body.state_dict().items()})


@pytest.mark.parametrize("change", [moved, replaced, written])
def test_what_happens_to_one_of_a_stack_from_outside_is_seen(change: Callable[[nn.Module], None]) -> None:
    model, x = crowd()
    twin = alone(model)
    for one in (model, twin):
        learn(one, x, sgd(one))
        change(one.seed("s2").body)
    for _ in range(2):
        outputs = learn(model, x, sgd(model)), learn(twin, x, sgd(twin))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-11)
    assert_same(model, twin)


def test_a_model_that_was_stacked_can_be_converted() -> None:
    model, x = crowd()
    learn(model, x, sgd(model))
    model.float()
    twin = alone(model)
    outputs = learn(model, x.float(), sgd(model)), learn(twin, x.float(), sgd(twin))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_copy_of_a_stacked_model_shares_no_memory_with_it() -> None:
    model, x = crowd()
    learn(model, x, sgd(model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = copy.deepcopy(model)
    assert_same(model, twin, 0.0)
    for _ in range(2):
        learn(twin, x, sgd(twin))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_frozen_ones_among_a_stack_get_no_gradient() -> None:
    model, x = crowd()
    for number in (1, 4):
        list(model.seeds)[number].body.requires_grad_(False)
    twin = alone(model)
    with direct_gradients():
        for one in (model, twin):
            one(x).square().mean().backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), key
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-12)


def test_gradients_add_up_where_only_some_were_dropped() -> None:
    ones, x = bodies("widen-linear", 3)
    others = copy.deepcopy(ones)
    batch = Batch(ones)
    for turn in range(3):
        with direct_gradients():
            batch(x).square().sum().backward()
        for body in others:
            body(x).square().sum().backward()
        for p, q in zip(ones[1].parameters(), others[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11)
        for body in (ones[turn], others[turn]):
            body.zero_grad(set_to_none=True)


@pytest.mark.parametrize("count", [MANY, MANY + 2], ids=["too few are left", "enough are left"])
def test_a_failing_one_among_a_stack_leaves_the_others_buffers_as_by_themselves(count: int) -> None:
    model, x = crowd(count=count)
    learn(model, x, sgd(model))
    with torch.no_grad():
        next(iter(model.seed("s6").body.parameters()))[0, 0] = float("inf")
    twin = alone(model)
    for _ in range(2):
        learn(model, x, sgd(model))
        learn(twin, x, sgd(twin))
    assert [seed.identity for seed in model.seeds if seed.failure] == ["s6"]
    for one, other in zip(model.seeds, twin.seeds, strict=True):
        if one.failure is None:
            for p, q in zip(one.body.buffers(), other.body.buffers(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_a_slice_lies_in_memory_as_a_tensor_of_its_own_would() -> None:
    ones, x = bodies("widen-linear-bn", 5, torch.float32)
    with direct_gradients():
        Batch(ones)(x)
    slices = [tensor for body in ones for tensor in (*body.parameters(), *body.buffers())]
    assert {tensor.data_ptr() % ALIGNMENT for tensor in slices} == {0}
    assert len({tensor.untyped_storage().data_ptr() for tensor in slices}) == len(slices) // 5


def test_going_on_from_a_saved_state_gives_the_same_bits_whether_the_seeds_were_stacked_before() -> None:
    model, x = crowd(count=MANY, name="widen-linear")
    with torch.random.fork_rng():
        optimizer = GroupedOptimizer(Training(steps=100), 100, model.named_parameters())

        def go_on(until: int) -> list[Tensor]:
            outputs = []
            for step in range(3, until):
                if step == 5:  # too few are left to be run as one
                    model.discard(next(model.seeds))
                optimizer.set_learning_rates(step)
                with direct_gradients():
                    output = model(x)
                    output.square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                outputs.append(output.detach())
            return outputs

        go_on(4)
        saved = capture(model, optimizer, {})
        names = dict(model.named_parameters())
        first = go_on(8)
        model.rebuild(saved.facts["architecture"])
        model.load_state_dict(saved.model)
        optimizer.restore(saved.optimizer, saved.facts["optimizer"], dict(model.named_parameters()))
        second = go_on(8)
    assert all(model.get_parameter(name) is not names[name] for name in names if name.startswith("living.s2"))
    assert len(first) == len(second) == 5
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
