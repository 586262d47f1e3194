"""Kernels made for the GPU: they load, match the eager graph, and are timed against it."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.artifact import KeyRing, open_artifact
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface, InterfaceKind, Pipeline
from esper_runtime.kasmina.kernels import Kernel, current_target, load, spec_for
from esper_runtime.tezzeret import make
from esper_runtime.tezzeret.fast import tensor_shape
from tests.cuda.runs import DEVICE
from tests.tezzeret.kernels import slot

ROUNDS = 60


def made(name: str, interface: Interface, pipeline: Pipeline, home: Path) -> Kernel:
    keys, blueprint = KeyRing(home), catalogue()[name]
    spec = spec_for(canonical_id(blueprint), interface, current_target(DEVICE), pipeline)
    path, compiled = make(spec, blueprint, home / "made", keys)
    return load(open_artifact(path, compiled, None, keys.trust, validated=False))


def passes(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", list(InterfaceKind))
def test_fast_kernels_build_on_the_gpu_what_the_builder_builds(kind: InterfaceKind, tmp_path: Path) -> None:
    for name, blueprint in catalogue().items():
        if blueprint.interface is kind and not blueprint.span:
            body = made(name, slot(kind), Pipeline.FAST, tmp_path).body(slot(kind), 3).to(DEVICE)
            expected = build(blueprint, slot(kind), 3)
            assert all(
                torch.equal(a.cpu(), b) for a, b in zip(body.parameters(), expected.parameters(), strict=True)
            )


@pytest.mark.parametrize("name", ["gated-mlp-tokens", "norm-scale-image"])
def test_a_compiled_kernel_matches_its_eager_body_and_is_timed(name: str, tmp_path: Path) -> None:
    interface = slot(catalogue()[name].interface, 256)
    kernel = made(name, interface, Pipeline.STANDARD, tmp_path)
    body = kernel.body(interface, 3).to(DEVICE)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) / 16)
    twin = kernel.twin(body)
    for batch in (3, 64):
        x = torch.randn(tensor_shape(interface, batch), device=DEVICE)
        for ours, theirs in zip(passes(twin, x), passes(body, x), strict=True):
            scale = theirs.abs().max().clamp(min=1e-3)
            assert ((ours - theirs).abs().max() / scale).item() < 1e-4
    assert twin.compiled_calls == 2
    x = torch.randn(tensor_shape(interface, 1024), device=DEVICE)
    subjects = {"twin": twin, "eager": body, "control": body}
    taken: dict[str, list[float]] = {each: [] for each in subjects}
    for turn in range(ROUNDS + 10):
        for each, module in subjects.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            passes(module, x)
            end.record()
            torch.cuda.synchronize()
            if turn >= 10:
                taken[each].append(begin.elapsed_time(end))
    median = {each: statistics.median(times) for each, times in taken.items()}
    print(
        json.dumps(
            {
                "kernel": name,
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "milliseconds": median,
                "twin_over_eager": median["twin"] / median["eager"],
                "control": median["control"] / median["eager"],
            }
        )
    )
