import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.artifact import KeyRing, VerifiedArtifact, open_artifact
from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import (
    Blueprint,
    Interface,
    InterfaceKind,
    KernelError,
    KernelInterface,
    Node,
    Pipeline,
    SandboxError,
    Signed,
    Target,
)
from esper_runtime.kasmina.kernels import Kernel, Twin, load
from esper_runtime.tezzeret import Builder, make
from esper_runtime.tezzeret.standard import LIMITS
from esper_runtime.tezzeret.trace import trace
from tests.tezzeret.kernels import made, slot, wanted

TOKENS = slot(InterfaceKind.TOKENS)


@pytest.fixture(scope="module")
def learning(compiled_tokens: tuple[Path, Signed], machine_home: Path) -> Kernel:
    path, compiled = compiled_tokens
    return load(open_artifact(path, compiled, None, KeyRing(machine_home).trust, validated=False))


def grown(kernel: Kernel, interface: Interface) -> tuple[nn.Module, Twin]:
    """An eager body that is no longer zero, and its twin."""
    body = kernel.body(interface, 3)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return body, kernel.twin(body)


def passes(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one pass."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad} | {n: p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize("shape", [(2, 10, 8), (64, 10, 8), (5, 33, 8)])
def test_a_twin_matches_its_eager_body_forward_and_backward(learning: Kernel, shape: tuple[int, ...]) -> None:
    body, twin = grown(learning, TOKENS)
    x = torch.randn(shape)
    ours, theirs = passes(twin, x), passes(body, x)
    assert twin.compiled_calls == 1
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)


def test_a_twin_has_the_bodys_own_parameters(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in body.named_parameters()]
    assert all(a is b for a, b in zip(twin.parameters(), body.parameters(), strict=True))


def test_a_twin_sees_weights_that_are_put_in_place_of_others(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    x = torch.randn(4, 10, 8)
    before = twin(x)
    body.get_submodule("tail").weight = nn.Parameter(torch.zeros(8, 4))
    body.get_submodule("tail").bias = nn.Parameter(torch.zeros(8))
    assert before.abs().max() > 0
    assert twin(x).abs().max() == 0


def test_a_copy_of_a_twin_has_parameters_of_its_own(learning: Kernel) -> None:
    _, twin = grown(learning, TOKENS)
    other = copy.deepcopy(twin)
    x = torch.randn(4, 10, 8)
    expected = twin(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(other(x), expected)
    assert other.compiled_calls == twin.compiled_calls == 1
    assert twin(x).abs().max() == 0


@pytest.mark.parametrize(
    "x", [torch.randn(1, 10, 8), torch.randn(4, 1, 8), torch.randn(4, 10, 8, dtype=torch.float64)]
)
def test_what_the_parts_are_not_made_for_runs_eagerly(learning: Kernel, x: Tensor) -> None:
    body, twin = grown(learning, TOKENS)
    body.to(x.dtype)
    assert torch.equal(twin(x), body(x))
    assert twin.compiled_calls == 0


def test_mixed_precision_runs_eagerly(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    x = torch.randn(4, 10, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(twin(x), body(x))
    assert twin.compiled_calls == 0


def test_function_transforms_run_eagerly(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    x = torch.randn(3, 4, 10, 8)
    torch.testing.assert_close(torch.func.vmap(twin)(x), torch.func.vmap(body)(x))
    weights = {name: parameter.detach() for name, parameter in body.named_parameters()}
    calls = torch.func.grad(lambda w: torch.func.functional_call(twin, w, (x[0],)).sum())(weights)
    assert set(calls) == set(weights)
    assert twin.compiled_calls == 0


def test_an_input_that_is_no_block_of_memory_is_taken(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    x = torch.randn(10, 4, 9).transpose(0, 1)[:, :, 1:]
    torch.testing.assert_close(twin(x), body(x), rtol=1e-5, atol=1e-5)
    assert twin.compiled_calls == 1


def test_what_normalises_by_batches_is_compiled_for_evaluation_only(evaluated: VerifiedArtifact) -> None:
    kernel = load(evaluated)
    assert not kernel.trains
    body, twin = grown(kernel, slot(InterfaceKind.FEATURES))
    body.get_submodule("norm").running_mean.normal_()
    x = torch.randn(6, 8)
    twin.train()
    twin(x)
    twin.eval()
    twin(x)
    assert twin.compiled_calls == 0
    with torch.no_grad():
        torch.testing.assert_close(twin(x), body.eval()(x), rtol=1e-5, atol=1e-5)
    assert twin.compiled_calls == 1


def test_sizes_that_the_code_is_not_made_for_never_reach_it(learning: Kernel) -> None:
    body, twin = grown(learning, TOKENS)
    with pytest.raises(RuntimeError):
        twin(torch.randn(4, 10, 9))
    body.get_submodule("tail").weight = nn.Parameter(torch.randn(8, 3))
    with pytest.raises(RuntimeError):
        twin(torch.randn(4, 10, 8))
    assert twin.compiled_calls == 0


def test_a_body_of_another_width_is_refused(learning: Kernel) -> None:
    wider = build(learning.blueprint, slot(InterfaceKind.TOKENS, 16), 0)
    with pytest.raises(KernelError, match="the compiled parts want"):
        learning.twin(wider)


def test_a_body_of_another_kernel_is_refused(learning: Kernel) -> None:
    other = build(catalogue()["mlp-bn-4"], slot(InterfaceKind.FEATURES), 0)
    with pytest.raises(KernelError, match="the compiled parts want"):
        learning.twin(other)


def test_a_body_on_another_device_is_refused(learning: Kernel) -> None:
    body = learning.body(TOKENS, 0).to("meta")
    with pytest.raises(KernelError, match="compiled kernels are for the CPU only, not for meta"):
        learning.twin(body)


def test_a_builder_refuses_another_device_than_the_cpu(builder: Builder) -> None:
    blueprint = catalogue()["mlp-tokens-half"]
    gpu = Target(device="cuda", arch="sm-90", torch="2.13.0")
    spec = wanted(blueprint, TOKENS, Pipeline.STANDARD).model_copy(update={"target": gpu})
    with pytest.raises(KernelError, match="compiled kernels are for the CPU only, not for cuda"):
        builder.build(spec, blueprint)


def test_a_fast_kernel_has_no_twin(tmp_path: Path) -> None:
    kernel = load(made(catalogue()["mlp"], slot(InterfaceKind.FEATURES), tmp_path))
    with pytest.raises(KernelError, match="no compiled parts"):
        kernel.twin(kernel.body(slot(InterfaceKind.FEATURES), 0))


def test_a_compiler_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    blueprint, interface = catalogue()["mlp"], slot(InterfaceKind.FEATURES)
    with Builder(replace(LIMITS, seconds=1.0)) as builder, pytest.raises(SandboxError, match="still running"):
        make(wanted(blueprint, interface, Pipeline.STANDARD), blueprint, tmp_path, KeyRing(tmp_path), builder)
    assert not list(tmp_path.glob("*.kernel"))


def test_a_compiler_in_a_folder_of_its_own_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX names one away from the system's, which reads a file of its own and refuses the code."""
    refuses = 'case "$*" in *kernel*) cat "${0%/*}/../lib/word" >&2; exit 1;; esac'
    files = {"bin/c++": f'#!/bin/sh\n{refuses}\nexec g++ "$@"\n', "lib/word": "no such code here\n"}
    for name, text in files.items():
        place = tmp_path / "mine" / name
        place.parent.mkdir(parents=True)
        place.write_text(text)
        place.chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "mine" / "bin" / "c++"))
    blueprint, interface = catalogue()["mlp"], slot(InterfaceKind.FEATURES)
    with Builder() as builder, pytest.raises(KernelError, match="no such code here"):
        builder.build(wanted(blueprint, interface, Pipeline.STANDARD), blueprint)


def test_what_draws_random_numbers_is_compiled_for_evaluation_only() -> None:
    pairs = Blueprint(
        name="pairs",
        interface=InterfaceKind.SEQUENCE,
        nodes=(
            Node(id="hidden", op="conv", inputs=("input",), attributes={"width": 4, "kernel": 3}),
            Node(id="drop", op="dropout", inputs=("hidden",)),
            Node(id="tail", op="conv", inputs=("drop",), attributes={"width": "Cout", "kernel": 3}),
        ),
        output="tail",
    )
    slots = KernelInterface.of(slot(InterfaceKind.SEQUENCE), exact=True)
    assert trace(pairs, slots).backward is None


@pytest.mark.parametrize("name", ["norm-scale-image", "attention", "conv-pair"])
def test_programs_are_traced_for_blocks_of_memory_as_twins_pass_them(name: str) -> None:
    """A blueprint that yields a transposed tensor must not be compiled for a transposed gradient."""
    blueprint = catalogue()[name]
    traced = trace(blueprint, KernelInterface.of(slot(blueprint.interface), exact=True))
    assert traced.backward is not None
    for program in (traced.forward, traced.backward):
        assert all(tensor.is_contiguous() for tensor in program.arguments)
