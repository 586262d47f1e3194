"""The catalogue's bodies on the GPU: the same numbers as on the CPU, by algorithms that repeat."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface
from esper_runtime.kasmina.batched import Batch
from tests.blueprint.graphs import fitting_slots
from tests.cuda.runs import DEVICE


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32


def an_input(interface: Interface) -> Tensor:
    kind, width = interface.kind.value, interface.width_in
    shapes = {
        "features": (6, width),
        "sequence": (6, width, 11),
        "tokens": (6, 7, width),
        "image": (6, width, 9, 6),
    }
    return torch.randn(shapes[kind], generator=torch.Generator().manual_seed(0))


def gradients(body: torch.nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = body(x)
    y.square().mean().backward()
    found = [y.detach(), x.grad, *(p.grad for p in body.parameters())]
    return [tensor.detach().clone() for tensor in found if tensor is not None]


def awake(body: torch.nn.Module) -> torch.nn.Module:
    for number, parameter in enumerate(body.parameters()):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return body


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_values_and_gradients_are_those_of_the_cpu_and_repeat(name: str) -> None:
    blueprint = catalogue()[name]
    for interface in fitting_slots(blueprint)[:2]:
        bodies = [awake(build(blueprint, interface, seed=1)) for _ in range(3)]
        x = an_input(interface)
        here = gradients(bodies[0], x)
        there, again = (gradients(body.to(DEVICE), x.to(DEVICE)) for body in bodies[1:])
        for ours, theirs, repeated in zip(here, there, again, strict=True):
            assert torch.equal(theirs, repeated), f"{name}: two passes differ"
            gap = (ours - theirs.cpu()).abs().max() / ours.abs().max().clamp_min(1.0)
            assert gap < 1e-4, f"{name}: {float(gap):.2g}"


def test_many_equal_bodies_run_as_one_like_each_by_itself() -> None:
    blueprint = catalogue()["mlp"] if "mlp" in catalogue() else next(iter(catalogue().values()))
    interface = fitting_slots(blueprint)[0]
    bodies = [awake(build(blueprint, interface, seed=n)).to(DEVICE) for n in range(16)]
    x = an_input(interface).to(DEVICE)
    together = Batch(bodies)(x)
    together.square().sum().backward()
    found = [[p.grad.clone() for p in body.parameters() if p.grad is not None] for body in bodies]
    for body, y, grads in zip(bodies, together, found, strict=True):
        body.zero_grad()
        alone = body(x)
        alone.square().sum().backward()
        assert torch.allclose(alone, y, atol=1e-5, rtol=1e-4)
        for parameter, gradient in zip(body.parameters(), grads, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-4, rtol=1e-4)
