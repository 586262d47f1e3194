"""What is measured about slots and seeds: telemetry, contribution, and the promise of candidates.

Nothing here changes the model: parameters, gradients, buffers, training flags and random generators are
afterwards bit for bit what they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from esper_runtime.contracts import InterfaceKind, Measured, SlotState, SlotTelemetry
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.isolation import contributing, detached_call
from esper_runtime.kasmina.randomness import untouched_random_state
from esper_runtime.kasmina.recomputation import backward_pass
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.taps import Graft

RANK_CHANNELS = 64


@dataclass(frozen=True)
class Trial:
    """One batch to measure on: what the host is called with, and the per-example losses [B] of its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    losses: Callable[[Any], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def summary(values: Tensor) -> Measured:
    """Mean and standard error of independent values [N]; raises `ValueError` for fewer than two."""
    if values.numel() < 2:
        raise ValueError("a standard error needs at least two values")
    values = values.double()
    error = values.std(correction=1) / values.numel() ** 0.5
    return Measured(mean=values.mean().item(), standard_error=error.item(), count=values.numel())


@contextmanager
def _alpha(seed: Seed, alpha: float) -> Iterator[None]:
    kept, seed.alpha = seed.alpha, alpha
    try:
        yield
    finally:
        seed.alpha = kept


def measure_contribution(model: Growable, seed: Seed, trials: Sequence[Trial]) -> Measured | None:
    """Decrease of the loss that the seed brings: per example, the loss without it minus the loss with it.

    Both passes see the same batches in evaluation mode. An isolated seed is measured at full strength, and
    the host's batch norms then go by the batch in both passes: their running statistics know nothing of the
    seed (by them, seeds that lower the loss of the mnist1d CNN by 0.05 seem to raise it by 1). None when a
    loss is not finite or the seed fails: unknown, not zero.
    """
    gains = []
    statistics = nullcontext() if seed.contributing else ByTheBatch(seed.body)
    with untouched_random_state(), evaluating(model), torch.no_grad(), statistics:
        for trial in trials:
            with _alpha(seed, 0.0):
                without = trial.losses(model(*trial.args, **trial.kwargs))
            if seed.contributing:
                with _alpha(seed, 1.0):
                    output = model(*trial.args, **trial.kwargs)
            else:
                with contributing(model, seed):
                    output = model(*trial.args, **trial.kwargs)
            gains.append(without - trial.losses(output))
    gain = torch.cat(gains)
    if seed.failure is not None or not bool(torch.isfinite(gain).all()):
        return None
    return summary(gain)


class ByTheBatch(TorchFunctionMode):
    """Inside, batch norms normalise by the batch, those within ``exempt`` by their running statistics.

    Running statistics stay as they are. Where there is one value for a channel, nothing changes.
    """

    def __init__(self, exempt: nn.Module) -> None:
        super().__init__()
        self._exempt = {buffer.data_ptr() for buffer in exempt.buffers()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm and len(args) >= 3 and isinstance(args[1], Tensor):
            values, mean = args[0], args[1]
            if mean.data_ptr() not in self._exempt and values.numel() > values.shape[1]:
                named = {**dict(zip(_BATCH_NORM, args[3:], strict=False)), **(kwargs or {}), "training": True}
                return F.batch_norm(values, None, None, **named)
        return func(*args, **(kwargs or {}))


_BATCH_NORM = ("weight", "bias", "training", "momentum", "eps")


class _Sensor:
    """Reads the activation at a tap and the gradient that arrives at the write tap; changes no value."""

    def __init__(self) -> None:
        self.activation: Tensor | None = None
        self.zero: Tensor | None = None

    def contribute(self, x: Tensor, value: Tensor) -> Tensor:
        if backward_pass() != -1:
            return torch.zeros_like(value, requires_grad=True)
        self.activation = x.detach()
        self.zero = torch.zeros_like(value, requires_grad=True)
        return self.zero


def probe_slots(model: Growable, trial: Trial) -> None:
    """Fill the telemetry of all dormant slots from one forward and backward pass."""
    dormant = [slot for slot in model.slots.values() if slot.state is SlotState.DORMANT]
    sensors = {slot.place.id: _Sensor() for slot in dormant}
    grafts = [
        Graft(
            slot.place.read, slot.place.write, sensors[slot.place.id].contribute, clone=slot.place.needs_clone
        )
        for slot in dormant
    ]

    def gradients_at_taps(output: Any) -> tuple[Tensor | None, ...]:
        loss = trial.losses(output).mean()
        zeros = [s.zero for s in sensors.values() if s.zero is not None]
        return torch.autograd.grad(loss, zeros, allow_unused=True) if loss.requires_grad else ()

    with untouched_random_state(), torch.enable_grad(), attached(model, grafts):
        gradients = iter(detached_call(model, trial.args, trial.kwargs, then=gradients_at_taps))
    for slot in dormant:
        sensor = sensors[slot.place.id]
        if sensor.activation is not None:
            slot.telemetry = _telemetry(sensor.activation, next(gradients, None), slot.place.interface.kind)


@contextmanager
def attached(model: Growable, grafts: Sequence[Graft]) -> Iterator[None]:
    """Inside, the grafts' hooks are on the host; afterwards none is left."""
    done: list[Graft] = []
    try:
        for graft in grafts:
            graft.attach(model.host)
            done.append(graft)
        yield
    finally:
        for graft in reversed(done):
            graft.detach()


def _telemetry(activation: Tensor, gradient: Tensor | None, kind: InterfaceKind) -> SlotTelemetry:
    axis = -1 if kind is InterfaceKind.TOKENS else 1
    flat = activation.movedim(axis, -1).reshape(-1, activation.shape[axis])
    flat = flat.float()
    return SlotTelemetry(
        activation_variance=_finite(flat.var(dim=0).mean()),
        gradient_norm=None if gradient is None else _finite(gradient.float().norm()),
        dead_fraction=_finite((flat == 0).all(dim=0).float().mean()),
        effective_rank=_effective_rank(flat),
    )


def _finite(value: Tensor) -> float | None:
    number = value.item()
    return number if torch.isfinite(value) else None


def _effective_rank(rows: Tensor) -> float | None:
    """Exponential of the entropy of the singular values of rows [N, C] (Roy and Vetterli, 2007).

    Taken over the first `RANK_CHANNELS` channels: beyond, the decomposition would cost more than a step.
    """
    rows = rows[:, :RANK_CHANNELS]
    centred = rows - rows.mean(dim=0)
    if not bool(torch.isfinite(centred).all()):
        return None
    spectrum = torch.linalg.eigvalsh(centred.T @ centred / max(1, len(rows))).clamp_min(0).sqrt()
    total = spectrum.sum()
    if total <= 0:
        return 0.0
    share = spectrum / total
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))
