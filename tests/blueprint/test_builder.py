"""Blueprints become modules that start as exactly zero, cost what was counted, and learn."""

import copy
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from esper_runtime.blueprint import OPERATORS, catalogue, cost, validate
from esper_runtime.blueprint.builder import BUILDERS, build, head_parameters, tail_parameters
from esper_runtime.contracts import Blueprint, BlueprintError, Interface, InterfaceKind, Node
from tests.blueprint.graphs import KINDS, fitting_slots, random_blueprint, residual_slot, span_slot

ENTRIES = catalogue()
SLOTS = [(name, i) for name, blueprint in ENTRIES.items() for i in range(len(fitting_slots(blueprint)))]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def _shape(interface: Interface, end: str, examples: int) -> tuple[int, ...]:
    width, sizes = (
        (interface.width_in, interface.spatial_in)
        if end == "in"
        else (interface.width_out, interface.spatial_out)
    )
    if interface.kind is InterfaceKind.TOKENS:
        return (examples, *sizes, width)
    return (examples, width, *sizes)


def _input(interface: Interface, examples: int = 2) -> Tensor:
    return torch.randn(_shape(interface, "in", examples))


def _wake(module: fx.GraphModule) -> None:
    """Give the tail weights that are not zero."""
    for name in tail_parameters(module):
        torch.nn.init.uniform_(module.get_parameter(name), 0.1, 1)


def _flash_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **__: object
) -> int:
    return int(sdpa_flop_count(query, key, value))


def _measured_macs(module: fx.GraphModule, x: Tensor) -> float:
    """MACs of one example; torch 2.13 does not count its CPU attention kernel, so that is given."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: _flash_flops}) as counter:
        module(x)
    return counter.get_total_flops() / 2 / len(x)


def _assert_counts(blueprint: Blueprint, interface: Interface) -> None:
    module = build(blueprint, interface, seed=1)
    counted = cost(blueprint, interface)
    assert sum(p.numel() for p in module.parameters()) == counted.parameters
    assert _measured_macs(module.eval(), _input(interface)) == counted.macs


@pytest.mark.parametrize(("name", "slot"), SLOTS)
def test_an_entry_costs_what_is_counted_and_is_zero_until_its_tail_learns(name: str, slot: int) -> None:
    blueprint = ENTRIES[name]
    interface = fitting_slots(blueprint)[slot]
    _assert_counts(blueprint, interface)
    for dtype in (torch.float32, torch.float64):
        module = build(blueprint, interface, seed=1).to(dtype)
        x = (3 * _input(interface)).to(dtype).requires_grad_()
        y = module(x)
        assert y.shape == _shape(interface, "out", 2)
        assert y.dtype is dtype
        assert torch.equal(y, torch.zeros_like(y))
        (y * torch.randn_like(y)).sum().backward()
        for parameter in tail_parameters(module):
            gradient = module.get_parameter(parameter).grad
            assert gradient is not None
            assert gradient.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ENTRIES)
def test_every_parameter_of_an_entry_learns_once_the_tail_has_moved(name: str) -> None:
    interface = fitting_slots(ENTRIES[name])[0]
    module = build(ENTRIES[name], interface, seed=2)
    _wake(module)
    y = module(_input(interface, examples=8))
    (y * torch.randn_like(y)).sum().backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_can_be_exported_with_any_number_of_examples(name: str) -> None:
    interface = fitting_slots(ENTRIES[name])[0]
    module = build(ENTRIES[name], interface, seed=3).eval()
    _wake(module)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module, (_input(interface, 3),), dynamic_shapes=({0: batch},))
    x = _input(interface, 5)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("name", [name for name, blueprint in ENTRIES.items() if blueprint.causal])
def test_in_a_causal_entry_no_position_sees_later_ones(name: str) -> None:
    interface = fitting_slots(ENTRIES[name])[0]
    _assert_causal(build(ENTRIES[name], interface, seed=4), interface)


def _assert_causal(module: fx.GraphModule, interface: Interface) -> None:
    _wake(module)
    module.eval()
    axis = 1 if interface.kind is InterfaceKind.TOKENS else 2
    x = _input(interface)
    changed = x.clone()
    later = changed.narrow(axis, 4, x.shape[axis] - 4)
    later.add_(torch.randn_like(later))
    before, after = module(x), module(changed)
    torch.testing.assert_close(before.narrow(axis, 0, 4), after.narrow(axis, 0, 4), rtol=1e-5, atol=1e-6)
    assert (before - after).abs().max() > 1e-3


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from((4, 6, 10)), st.booleans())
def test_any_valid_graph_builds_as_inferred_starts_at_zero_and_its_tail_learns(
    number: int, kind: InterfaceKind, width: int, causal: bool
) -> None:
    causal = causal and kind in (InterfaceKind.SEQUENCE, InterfaceKind.TOKENS)
    blueprint = random_blueprint(Random(number), kind, causal=causal)
    validate(blueprint)
    interface = residual_slot(kind, width, causal=causal)
    _assert_counts(blueprint, interface)
    torch.manual_seed(number)
    x = _input(interface, examples=16)
    learning: set[str] = set()
    for seed in range(4):  # a single draw may leave a path of a few rectifiers dead
        module = build(blueprint, interface, seed)
        y = module(x)
        assert torch.equal(y, torch.zeros(_shape(interface, "out", 16)))
        (y * torch.randn_like(y)).sum().backward()
        gradients = {name: module.get_parameter(name).grad for name in tail_parameters(module)}
        learning |= {name for name, g in gradients.items() if g is not None and g.abs().max() > 0}
    assert learning == set(tail_parameters(module))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_softmax_of_scaled_products_of_queries_and_keys(causal: bool) -> None:
    attributes = {"width": "Cout", "inner": 6, "heads": 2, "causal": causal}
    node = Node(id="tail", op="attention", inputs=("input",), attributes=attributes)
    blueprint = Blueprint(name="heads", interface="tokens", nodes=(node,), output="tail", causal=causal)
    interface = residual_slot(InterfaceKind.TOKENS, 4, causal=causal)
    module = build(blueprint, interface, seed=0)
    _wake(module)
    x = _input(interface)
    query, key, value = module.get_submodule("tail_qkv")(x).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(module(x), module.get_submodule("tail_out")(torch.cat(heads, -1)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from((InterfaceKind.SEQUENCE, InterfaceKind.TOKENS)))
def test_any_graph_that_is_accepted_as_causal_is_causal(number: int, kind: InterfaceKind) -> None:
    """Ordinary random graphs, declared causal: what the static check lets pass must not look ahead."""
    blueprint = random_blueprint(Random(number), kind).model_copy(update={"causal": True})
    rule = _refused_for(blueprint)
    if rule is not None:
        assert rule == "causal"
        return
    interface = residual_slot(kind, 6, causal=True)
    torch.manual_seed(number)
    _assert_causal(build(blueprint, interface, seed=6), interface)


def _refused_for(blueprint: Blueprint) -> str | None:
    try:
        validate(blueprint)
    except BlueprintError as error:
        return error.rule
    return None


def test_random_numbers_come_from_the_seeds_own_generator_only() -> None:
    for name, blueprint in ENTRIES.items():
        interface = fitting_slots(blueprint)[0]
        state = torch.get_rng_state()
        first = build(blueprint, interface, seed=7)
        assert torch.equal(torch.get_rng_state(), state), name
        torch.manual_seed(99)
        again, other = build(blueprint, interface, seed=7), build(blueprint, interface, seed=8)
        for key, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
        drawn = [
            k for k in first.state_dict() if not torch.equal(first.state_dict()[k], other.state_dict()[k])
        ]
        assert bool(drawn) == bool(set(dict(first.named_parameters())) - set(tail_parameters(first))), name


def test_weights_spread_as_pytorchs_own() -> None:
    interface = residual_slot(InterfaceKind.SEQUENCE, 64)
    weight = build(ENTRIES["bottleneck"], interface, seed=0).get_parameter("hidden.weight")
    bound = (64 * 5) ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_head_and_tail_are_named() -> None:
    def ends(name: str, kind: InterfaceKind) -> tuple[list[str], list[str]]:
        module = build(ENTRIES[name], residual_slot(kind, 8), seed=0)
        return head_parameters(module), tail_parameters(module)

    assert ends("mlp-bn", InterfaceKind.FEATURES) == (
        ["hidden.weight", "hidden.bias"],
        ["tail.weight", "tail.bias"],
    )
    gate = ["gate.weight", "gate.bias", "value.weight", "value.bias"]
    assert ends("gated-mlp", InterfaceKind.FEATURES) == (gate, ["tail.weight", "tail.bias"])
    assert ends("low-rank", InterfaceKind.FEATURES) == (
        ["tail_down.weight"],
        ["tail_up.weight", "tail_up.bias"],
    )
    assert ends("attention", InterfaceKind.TOKENS) == (
        ["tail_qkv.weight", "tail_qkv.bias"],
        ["tail_out.weight", "tail_out.bias"],
    )


def test_a_module_can_be_copied_printed_and_trained_apart_from_its_copy() -> None:
    interface = span_slot(InterfaceKind.SEQUENCE, 4, 6)
    module = build(ENTRIES["widen-conv-bn"], interface, seed=1)
    twin = copy.deepcopy(module)
    assert tail_parameters(twin) == tail_parameters(module) == ["tail.weight"]
    _wake(twin)
    x = _input(interface)
    assert twin(x).abs().max() > 0
    assert torch.equal(module(x), torch.zeros_like(module(x)))
    for word in ("hidden", "norm", "activation", "tail"):
        assert word in module.code
        assert word in module.print_readable(print_output=False)


def test_a_group_norm_learns_behind_what_puts_channels_last_and_needs_no_gradient() -> None:
    blueprint = Blueprint(
        name="norms",
        interface="image",
        nodes=(
            Node(id="scale", op="rms_norm", inputs=("input",), attributes={"affine": False}),
            Node(id="norm", op="group_norm", inputs=("scale",), attributes={"groups": 2}),
            Node(id="tail", op="pointwise_conv", inputs=("norm",), attributes={"width": "Cout"}),
        ),
        output="tail",
    )
    interface = residual_slot(InterfaceKind.IMAGE, 10)
    module = build(blueprint, interface, seed=0)
    _wake(module)
    module(_input(interface)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "id_", ["train", "lambda", "training", "graph", "forward", "type", "x", "is", "code"]
)
def test_node_ids_that_python_or_modules_have_taken_work(id_: str) -> None:
    blueprint = Blueprint(
        name="taken",
        interface="features",
        nodes=(
            Node(id=id_, op="linear", inputs=("input",), attributes={"width": 3}),
            Node(id=f"{id_}_", op="relu", inputs=(id_,)),
            Node(id="tail", op="linear", inputs=(f"{id_}_",), attributes={"width": "Cout"}),
        ),
        output="tail",
    )
    validate(blueprint)
    interface = residual_slot(InterfaceKind.FEATURES, 4)
    module = build(blueprint, interface, seed=0)
    _wake(module)
    assert module.train().training
    assert module(_input(interface)).abs().max() > 0


def test_what_does_not_fit_or_is_not_valid_is_not_built() -> None:
    with pytest.raises(BlueprintError) as caught:
        build(ENTRIES["mlp"], residual_slot(InterfaceKind.TOKENS, 8), seed=0)
    assert caught.value.rule == "fit"
    linear = Node(id="a", op="linear", inputs=("input",), attributes={"width": "Cout"})
    open_end = Blueprint(
        name="open", interface="features", nodes=(linear, Node(id="b", op="relu", inputs=("a",))), output="b"
    )
    with pytest.raises(BlueprintError) as caught:
        build(open_end, residual_slot(InterfaceKind.FEATURES, 8), seed=0)
    assert caught.value.rule == "zero-tail"


def test_every_operator_has_a_builder_and_random_graphs_use_all_of_them() -> None:
    assert set(BUILDERS) == set(OPERATORS)
    random = Random(0)
    used = {node.op for _ in range(300) for node in random_blueprint(random, random.choice(KINDS)).nodes}
    assert used == set(OPERATORS) - {"span_activation"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_entries_are_zero_and_learn_on_cuda() -> None:
    for name, blueprint in ENTRIES.items():
        interface = fitting_slots(blueprint)[0]
        module = build(blueprint, interface, seed=1).to("cuda")
        y = module(_input(interface).to("cuda"))
        assert torch.equal(y, torch.zeros_like(y)), name
        (y * torch.randn_like(y)).sum().backward()
        for parameter in tail_parameters(module):
            gradient = module.get_parameter(parameter).grad
            assert gradient is not None
            assert gradient.abs().max() > 0, f"{name}: {parameter}"
