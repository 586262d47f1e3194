"""Whether a compiled twin is faster in place, and the swap between it and the body that it stands for."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from esper_runtime.contracts import Interface, InterfaceKind
from esper_runtime.kasmina.kernels.loader import Kernel
from esper_runtime.kasmina.kernels.twin import Twin

MARGIN = 1.05
"""A twin must be so many times as fast, when tested and in place; beyond what two equal bodies differ by."""
ROUNDS, WARMUP = 15, 3


@dataclass(frozen=True)
class Comparison:
    """A twin measured beside the body, in turns, on the same input.

    Attributes:
        speedup: seconds of the body over those of the twin.
        noise: by how much the body differed from itself.
        served: whether the compiled parts ran at all.
    """

    speedup: float
    noise: float
    served: bool

    def faster(self, margin: float = MARGIN) -> bool:
        """Whether the twin is to take the body's place."""
        return self.served and self.speedup >= margin + self.noise


def twin_of(kernel: Kernel, body: nn.Module) -> Twin:
    """The twin of a living body, in the body's mode.

    Raises:
        KernelError: it has no compiled parts, or they are of another body.
    """
    return kernel.twin(body.eager if isinstance(body, Twin) else body)


def compare(twin: Twin, interface: Interface, batch: int) -> Comparison:
    """Measure a twin beside its body: forward and backward where the body learns, forward alone where not.

    Weights, buffers, gradients and random generators are as they were before.

    Args:
        twin: made of a living body.
        interface: of the slot.
        batch: examples in a batch of the training.
    """
    body = twin.eager
    first = next(body.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_shape(interface, batch), generator=generator).to(first.dtype)
    learns = any(parameter.requires_grad for parameter in body.parameters())
    buffers = [(buffer, buffer.clone()) for buffer in body.buffers()]
    modes = body.training
    if not learns:
        body.eval()
        twin.eval()
    subjects = {"body": body, "twin": twin, "again": body}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    before = twin.compiled_calls
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(learns):
            for turn in range(WARMUP + ROUNDS):
                for name, subject in subjects.items():
                    taken = _timed(partial(_pass, subject, x, learns))
                    if turn >= WARMUP:
                        seconds[name].append(taken)
    finally:
        body.train(modes)
        twin.train(modes)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    both = (median["body"] + median["again"]) / 2
    return Comparison(
        speedup=both / median["twin"],
        noise=abs(median["body"] / median["again"] - 1.0),
        served=twin.compiled_calls > before,
    )


def _pass(subject: nn.Module, x: Tensor, learns: bool) -> None:
    if not learns:
        subject(x)
        return
    x = x.detach().requires_grad_()
    wanted = [x, *(parameter for parameter in subject.parameters() if parameter.requires_grad)]
    y = subject(x)
    torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _shape(interface: Interface, batch: int) -> tuple[int, ...]:
    if interface.kind is InterfaceKind.TOKENS:
        return (batch, *interface.spatial_in, interface.width_in)
    return (batch, interface.width_in, *interface.spatial_in)
