"""Informed weights for a fresh seed: its first layer looks where the loss wants a change most.

With the tail at zero, the newborn's first useful step is the gradient of its tail, and that is largest when
the first layer reads the inputs that correlate most with the gradient at the write tap (GradMax, Evci et
al. 2022; TINY, Verbockhaven et al. 2024). Those directions are the leading right singular vectors of
M = E[gradient at the write tap x input at the read tap], which is the weight gradient of a zero direct layer
between the two taps.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from esper_runtime.blueprint.builder import head_parameters
from esper_runtime.contracts import InterfaceKind
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.isolation import detached_call
from esper_runtime.kasmina.measure import Trial, attached
from esper_runtime.kasmina.randomness import untouched_random_state
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.taps import Graft

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class _Direct:
    """A zero layer with the geometry of a seed's first layer, straight from the read to the write tap."""

    def __init__(self, layer: Layer, kind: InterfaceKind) -> None:
        self.layer = layer
        self.taps_axis = -1 if kind in (InterfaceKind.FEATURES, InterfaceKind.TOKENS) else 1
        self.weight: Tensor | None = None

    def contribute(self, x: Tensor, value: Tensor) -> Tensor | None:
        layer = self.layer
        axis = -1 if isinstance(layer, nn.Linear) else 1
        given, wanted = (t.movedim(self.taps_axis, axis) for t in (x, value))
        if given.shape[axis] != layer.weight.shape[1]:
            return None
        if self.weight is None:
            shape = (wanted.shape[axis], *layer.weight.shape[1:])
            self.weight = torch.zeros(shape, dtype=x.dtype, device=x.device, requires_grad=True)
        if isinstance(layer, nn.Linear):
            y = nn.functional.linear(given, self.weight)
        else:
            reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            if not any(layer.padding) and given.shape[2:] == wanted.shape[2:] and len(reach) == 1:
                given = nn.functional.pad(given, (reach[0], 0))  # as blueprints pad before a causal layer
            y = layer._conv_forward(given, self.weight, None)
        return y.movedim(axis, self.taps_axis) if y.shape == wanted.shape else None


def initialise_from_gradients(model: Growable, seed: Seed, trials: Sequence[Trial]) -> bool:
    """Set the seed's first layers from gradient statistics; the zero tail stays zero.

    Each direction is used with both signs, since a rectifier passes only one. Rows beyond twice the rank
    keep their random weights. Returns False, leaving the random weights, where a first layer has groups, a
    stride or an input that no direct layer between the taps can have.
    """
    layers = {name.rsplit(".", 1)[0] for name in head_parameters(_graph(seed.body))}
    done = False
    for name in sorted(layers):
        layer = seed.body.get_submodule(name)
        if isinstance(layer, Layer) and (isinstance(layer, nn.Linear) or layer.groups == 1):
            matrix = _matrix(model, seed, layer, trials)
            if matrix is not None:
                _aim(layer, matrix)
                done = True
    return done


def _graph(body: nn.Module) -> fx.GraphModule:
    assert isinstance(body, fx.GraphModule)
    return body


def _matrix(model: Growable, seed: Seed, layer: Layer, trials: Sequence[Trial]) -> Tensor | None:
    """M as a matrix [width at the write tap, inputs of one unit of the layer], or None."""
    place = model.place(seed.slot)
    direct = _Direct(layer, place.interface.kind)
    graft = Graft(place.read, place.write, direct.contribute, clone=place.needs_clone)
    total: Tensor | None = None

    def gradient_of(trial: Trial, output: Any) -> Tensor | None:
        loss = trial.losses(output).mean()
        if direct.weight is None or not loss.requires_grad:
            return None
        return torch.autograd.grad(loss, [direct.weight], materialize_grads=True)[0]

    with untouched_random_state(), torch.enable_grad(), attached(model, [graft]):
        for trial in trials:
            then = partial(gradient_of, trial)
            gradient = detached_call(model, trial.args, trial.kwargs, then=then)
            if gradient is None:
                return None
            total = gradient if total is None else total + gradient
    if total is None or not bool(torch.isfinite(total).all()) or not bool(total.any()):
        return None
    return total.flatten(1)


def _aim(layer: Layer, matrix: Tensor) -> None:
    """Turn the layer's units to the leading directions, keeping the mean length of the random ones."""
    rows = layer.weight.detach().flatten(1)
    length = rows.norm(dim=1).mean()
    _, _, directions = torch.linalg.svd(matrix.double(), full_matrices=False)
    signed = torch.stack([directions, -directions], dim=1).flatten(0, 1)
    count = min(len(rows), len(signed))
    with torch.no_grad():
        rows[:count] = (signed[:count] * length).to(rows.dtype)
        layer.weight.copy_(rows.view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.zero_()
