"""Several candidates of one slot learn behind the host in one pass.

What comes before the slot's write tap is computed once, the host's remainder for all candidates together:
`torch.vmap` carries a candidate axis through it. Batch statistics stay those of one candidate. Where the host
cannot be run so (it branches on values, or writes into tensors that all candidates share), each candidate
has a pass of its own.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.isolation import Criterion, at_full_strength, detached_state, learn_isolated
from esper_runtime.kasmina.randomness import (
    random_state_of,
    set_random_state_of,
    untouched_random_state,
)
from esper_runtime.kasmina.seed import Seed

log = logging.getLogger(__name__)


def cohorts(seeds: Iterable[Seed]) -> list[list[Seed]]:
    """The seeds in the groups that learn together: candidates of one tournament, every other seed alone."""
    groups: dict[object, list[Seed]] = {}
    for seed in seeds:
        groups.setdefault(seed.cohort or seed.identity, []).append(seed)
    return list(groups.values())


def learn_side_by_side(
    model: GraftedModel,
    seeds: Sequence[Seed],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    criterion: Criterion,
) -> Tensor:
    """Do `learn_isolated` for candidates [K] of one slot; return their losses [K].

    Losses and gradients are those of `learn_isolated` for each alone, up to rounding. The host's parameters,
    gradients, buffers and all random generators are afterwards bit for bit what they were. Costs one forward
    pass up to the slot and K behind it, in one pass where the host allows.
    """
    if len(seeds) > 1 and not any(seed.apart for seed in seeds):
        failed = [seed for seed in seeds if seed.failure is not None]
        buffers = [(buffer, buffer.clone()) for seed in seeds for buffer in seed.body.buffers()]
        try:
            losses = _in_one_pass(model, seeds, args, kwargs, criterion)
        except RuntimeError as error:  # what vmap cannot do is known from the attempt only
            names = ", ".join(seed.identity for seed in seeds)
            log.info("candidates %s learn in passes of their own: %s", names, error)
            for seed in seeds:
                seed.apart = True
            for buffer, before in buffers:
                buffer.copy_(before)
        else:
            suspects = [s for s in seeds if s.failure is not None and s not in failed]
            for seed in suspects:  # a failure counts only where it comes in a pass of its own too
                seed.failure = None
                learn_isolated(model, seed, args, kwargs, criterion)
            return losses
    return torch.stack([learn_isolated(model, seed, args, kwargs, criterion) for seed in seeds])


def _in_one_pass(
    model: GraftedModel,
    seeds: Sequence[Seed],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    criterion: Criterion,
) -> Tensor:
    parameters = [p for seed in seeds for p in seed.body.parameters() if p.requires_grad]
    candidates = _Candidates(seeds)
    with ExitStack() as stack:
        stack.enter_context(untouched_random_state())
        for seed in seeds:
            stack.enter_context(at_full_strength(seed))
        model.connect(seeds[0], candidates.contribute)
        stack.callback(model.disconnect, seeds[0])
        stack.enter_context(torch.enable_grad())
        state = detached_state(model, [seed.identity for seed in seeds])

        def loss(index: Tensor) -> Tensor:
            candidates.index = index
            with _AsIfAlone(candidates):
                return criterion(functional_call(model, state, args, kwargs))

        stack.enter_context(_no_loops())
        device = next((p.device for p in parameters), torch.device("cpu"))
        losses: Tensor = vmap(loss, randomness="same")(torch.arange(len(seeds), device=device))
        if losses.requires_grad:
            gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
    return losses.detach()


class _Candidates:
    """Adds at the write tap, for each position along the candidate axis, that candidate's contribution."""

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self.seeds = seeds
        self.index = torch.empty(0)
        self.running = False

    def contribute(self, x: Tensor, value: Tensor) -> Tensor:
        before, ends, parts = random_state_of(value.device), [], []
        self.running = True
        for seed in self.seeds:
            set_random_state_of(value.device, before)
            part = seed.contribute(x, value)
            parts.append(torch.zeros_like(value) if part is None else part)
            ends.append(random_state_of(value.device))
        self.running = False
        if any(not torch.equal(end, ends[0]) for end in ends):
            raise RuntimeError("a candidate draws random numbers, so that what follows would draw others")
        return torch.stack(parts)[self.index]


class _AsIfAlone(TorchFunctionMode):
    """In the host, operations whose form for a candidate axis would not be that of one candidate alone."""

    def __init__(self, candidates: _Candidates) -> None:
        super().__init__()
        self.candidates = candidates

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if self.candidates.running:
            return func(*args, **named)
        if func is F.batch_norm:
            return _batch_norm(*args, **named)
        if func is F.dropout:
            return _dropout(*args, **named)
        if func is F.scaled_dot_product_attention and args and args[0].device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel knows no candidate axis on CPU
                return func(*args, **named)
        return func(*args, **named)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm; in training its output does not depend on running statistics, and they are not kept."""
    if training:
        running_mean = running_var = None
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout with the mask that one candidate alone would draw: it depends on the order in memory, and on
    the kernel, which is another one on CUDA."""
    if not training or not 0.0 < p < 1.0:
        return F.dropout(input, p, training, inplace)
    order = torch.empty_strided(input.shape, input.stride(), dtype=input.dtype, device=input.device)
    ones = torch.ones_like(order)  # dense, and in memory in the order of the input
    with temporarily_pop_interpreter_stack():  # the kernels' own draws, not those that vmap has instead
        if ones.is_cuda:
            noise, _ = torch.native_dropout(ones, p, True)
        else:
            noise = torch.empty_like(ones).bernoulli_(1.0 - p).div_(1.0 - p)
    return input.mul_(noise) if inplace else input * noise


@contextmanager
def _no_loops() -> Iterator[None]:
    """Inside, vmap refuses what it could do only candidate by candidate: passes of their own are faster."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)
