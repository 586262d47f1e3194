"""Kernels on the GPU: plain graphs that were made and tested for the CPU; native code stays there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.artifact import KeyRing, open_artifact
from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import InterfaceKind, KernelError, Signed
from esper_runtime.kasmina.kernels import load
from esper_runtime.tezzeret.fast import tensor_shape
from tests.cuda.runs import DEVICE
from tests.tezzeret.kernels import made, slot


def passes(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients, on the CPU."""
    module.zero_grad()
    x = x.to(next(module.parameters()).device).requires_grad_()
    y = module(x)
    y.square().sum().backward()
    assert x.grad is not None
    found = [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("kind", list(InterfaceKind))
def test_fast_kernels_compute_on_the_gpu_what_they_do_on_the_cpu(
    kind: InterfaceKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits, where the bound asks for more
    torch.manual_seed(0)
    for blueprint in catalogue().values():
        if blueprint.interface is kind and not blueprint.span:
            here = build(blueprint, slot(kind), 3).eval()
            there = load(made(blueprint, slot(kind), tmp_path)).body(slot(kind), 3).eval()
            with torch.no_grad():
                for one, other in zip(here.parameters(), there.parameters(), strict=True):
                    assert torch.equal(one, other)
                    one.add_(torch.randn_like(one) / 8)
                    other.copy_(one)
            x = torch.randn(tensor_shape(slot(kind), 4))
            ours, theirs = passes(there.to(DEVICE), x.clone()), passes(here, x.clone())
            for one, other in zip(ours, theirs, strict=True):
                scale = other.abs().max().clamp(min=1e-3)
                assert ((one - other).abs().max() / scale).item() < 1e-3


def test_a_compiled_kernel_refuses_a_body_on_the_gpu(
    compiled_tokens: tuple[Path, Signed], machine_home: Path
) -> None:
    path, compiled = compiled_tokens
    kernel = load(open_artifact(path, compiled, None, KeyRing(machine_home).trust, validated=False))
    body = kernel.body(slot(InterfaceKind.TOKENS), 0).to(DEVICE)
    with pytest.raises(KernelError, match="compiled kernels are for the CPU only, not for cuda"):
        kernel.twin(body)
