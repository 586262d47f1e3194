"""What the eager graph yields outside the sandbox: what a kernel's output is held against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Blueprint
from esper_runtime.urabrask.passes import Pass, run
from esper_runtime.urabrask.trials import RANDOM, SEED, Trial

_STEP = 1e-6


@dataclass(frozen=True)
class Reference:
    """Of one trial.

    Attributes:
        birth: state dict at birth.
        passes: by name of the input, in evaluation mode, in the slot's dtype.
        training: on the random input in training mode.
        exact: on the random input, in float64.
        slope: error of the float64 gradient along a direction against a central difference, relative.
        trained: state dict after the pass in training mode.
    """

    birth: dict[str, Tensor]
    passes: dict[str, Pass]
    training: Pass
    exact: Pass
    slope: float
    trained: dict[str, Tensor]


def reference(blueprint: Blueprint, trial: Trial) -> Reference:
    """Run the eager graph through a trial. The global random state is restored."""
    body = build(blueprint, trial.slot, SEED).to(trial.dtype).eval()
    birth = {name: value.clone() for name, value in body.state_dict().items()}
    body.load_state_dict(trial.weights)
    found = {
        name: run(body, x.clone(), trial.gradient, parameters=name == RANDOM)
        for name, x in trial.inputs.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        training = run(body.train(), trial.inputs[RANDOM].clone(), trial.gradient)
    trained = {name: value.clone() for name, value in body.state_dict().items()}
    body.load_state_dict(trial.weights)
    body.double().eval()
    x, gradient = trial.inputs[RANDOM].double(), trial.gradient.double()
    exact = run(body, x, gradient)
    slope = 0.0
    if trial.full and "x" in exact.gradients:
        slope = min(_slope_error(body, x, gradient, exact, seed) for seed in range(2))
    return Reference(birth, found, training, exact, slope, trained)


def _slope_error(body: torch.nn.Module, x: Tensor, gradient: Tensor, exact: Pass, seed: int) -> float:
    """How far the gradient of the input is from a difference quotient along a random direction.

    The lesser of two directions counts: at a kink of an activation a quotient says nothing.
    """
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    with torch.no_grad():
        up, down = (body(x + sign * _STEP * direction) for sign in (1, -1))
        quotient = ((up - down) * gradient).sum() / (2 * _STEP)
        claimed = (exact.gradients["x"] * direction).sum()
        return float((quotient - claimed).abs() / (1 + quotient.abs()))
