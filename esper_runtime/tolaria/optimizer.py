"""The optimizer of a model whose parameters come and go: torch's own, in named groups that can be saved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from esper_runtime.contracts import CheckpointError, OptimizerName, Training
from esper_runtime.kasmina import Move
from esper_runtime.tolaria.schedule import learning_rate, newborn_factor

HOST_GROUP = "host"


@dataclass(frozen=True)
class _Group:
    """What a group of parameters adds to the common settings; ``names`` are in the optimizer's order."""

    born: int
    factor: float
    warmup_steps: int
    names: tuple[str, ...]


class GroupedOptimizer:
    """AdamW or SGD of PyTorch over named groups: the host's and one for each seed.

    Groups are added and removed between steps; the state of all others (moments, step counts) stays as it is.
    Weight decay applies to all parameters alike. The fused implementations are used, which on small models
    take a fifth of the time of the default ones.

    Args:
        training: optimizer settings and schedule.
        total_steps: length of the schedule in optimizer steps.
        parameters: (name, parameter) pairs of the host, as from ``named_parameters()``.
    """

    def __init__(
        self, training: Training, total_steps: int, parameters: Iterable[tuple[str, Parameter]]
    ) -> None:
        self._training = training
        self._total_steps = total_steps
        self._groups: dict[str, _Group] = {}
        self.torch_optimizer: torch.optim.Optimizer | None = None
        self.add_group(HOST_GROUP, parameters, step=0)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, the host's first."""
        return tuple(self._groups)

    def parameters(self, *groups: str) -> list[Parameter]:
        """Parameters of the named groups; of all groups where none is named."""
        chosen = groups or self.groups
        return [p for name in chosen for p in self._torch_group(name)["params"]]

    def add_group(
        self,
        name: str,
        parameters: Iterable[tuple[str, Parameter]],
        step: int,
        learning_rate_factor: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        """Add parameters as a group of their own with fresh state.

        Args:
            name: of the group, for example the seed's id.
            parameters: (name, parameter) pairs; their names are the keys of their state in checkpoints.
            step: number of the optimizer step that they take part in first (0-based).
            learning_rate_factor: their learning rate over the schedule's.
            warmup_steps: steps over which their learning rate rises linearly.

        Raises:
            ValueError: the group or one of the parameters is there already, or there are none.
        """
        named = dict(parameters)
        if name in self._groups:
            raise ValueError(f"there is already an optimizer group {name!r}")
        taken = [key for group in self._groups.values() for key in group.names if key in named]
        if taken or not named:
            raise ValueError(
                f"group {name!r}: " + (f"{taken[0]!r} is in another group" if taken else "is empty")
            )
        self._add(name, _Group(step, learning_rate_factor, warmup_steps, tuple(named)), list(named.values()))

    def remove_group(self, name: str) -> None:
        """Drop a group and the state of its parameters.

        Raises:
            KeyError: there is no such group.
        """
        optimizer = self._optimizer
        group = self._torch_group(name)
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
        optimizer.param_groups = [other for other in optimizer.param_groups if other is not group]
        del self._groups[name]

    def absorb(self, group: str, moves: Iterable[Move]) -> None:
        """Let the state of host parameters follow an absorbed seed, and drop the seed's group.

        What was the seed's learns at the host's rate from now on; a factor or warm-up of its own ends here.
        See `merge_state` for what becomes of its moments.

        Args:
            group: the seed's id.
            moves: from `esper_runtime.kasmina.absorb`.
        """
        betas = None
        if self._training.optimizer.name is OptimizerName.ADAMW:
            betas = self._training.optimizer.betas
        state = self._optimizer.state
        held = set(self.parameters())
        for move in moves:
            if move.parameter in held:
                part = state.get(move.part, {}) if move.part is not None else {}
                state[move.parameter] = merge_state(state.get(move.parameter, {}), part, move, betas)
        if group in self._groups:
            self.remove_group(group)

    def set_learning_rates(self, step: int) -> float:
        """Set every group's learning rate for optimizer step ``step`` (0-based); returns the host's."""
        base = learning_rate(self._training, step, self._total_steps)
        for name, torch_group in zip(self._groups, self._optimizer.param_groups, strict=True):
            group = self._groups[name]
            torch_group["lr"] = base * group.factor * newborn_factor(step, group.born, group.warmup_steps)
        return base

    def step(self) -> None:
        """One update of all parameters that have a gradient; `set_learning_rates` goes before."""
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State by parameter name: tensors ``NAME/KEY`` (not copied) and JSON data of the groups."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
        groups = [
            {
                "name": name,
                "born": group.born,
                "learningRateFactor": group.factor,
                "warmupSteps": group.warmup_steps,
                "parameters": list(group.names),
            }
            for name, group in self._groups.items()
        ]
        return tensors, {"optimizer": str(self._training.optimizer.name), "groups": groups}

    def restore(
        self, tensors: Mapping[str, Tensor], data: Mapping[str, Any], parameters: Mapping[str, Parameter]
    ) -> None:
        """Make groups and state those of `state`, bit for bit; the tensors are copied.

        Args:
            tensors: as from `state`.
            data: as from `state`.
            parameters: the model's parameters by name, which may be new objects.

        Raises:
            CheckpointError: another optimizer's state, or a parameter that the model lacks.
        """
        wanted = str(self._training.optimizer.name)
        if data["optimizer"] != wanted:
            raise CheckpointError(
                f"the checkpoint's optimizer is {data['optimizer']}, the manifest's {wanted}"
            )
        names = [name for group in data["groups"] for name in group["parameters"]]
        missing = [name for name in names if name not in parameters]
        if missing:
            raise CheckpointError(f"the checkpoint's optimizer has {missing[0]!r}, which the model lacks")
        self._groups = {}
        self.torch_optimizer = None
        for group in data["groups"]:
            self._add(
                group["name"],
                _Group(
                    group["born"],
                    group["learningRateFactor"],
                    group["warmupSteps"],
                    tuple(group["parameters"]),
                ),
                [parameters[name] for name in group["parameters"]],
            )
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in parameters:
                raise CheckpointError(f"the checkpoint's optimizer has {name!r}, which the model lacks")
            parameter = parameters[name]
            self._optimizer.state[parameter][key] = tensor.detach().to(parameter.device, copy=True)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.torch_optimizer is not None
        return self.torch_optimizer

    def _torch_group(self, name: str) -> dict[str, Any]:
        return self._optimizer.param_groups[list(self._groups).index(name)]

    def _named(self) -> Iterable[tuple[str, Parameter]]:
        for group, torch_group in zip(self._groups.values(), self._optimizer.param_groups, strict=True):
            yield from zip(group.names, torch_group["params"], strict=True)

    def _add(self, name: str, group: _Group, parameters: list[Parameter]) -> None:
        if self.torch_optimizer is None:
            self.torch_optimizer = self._create(parameters)
        else:
            self.torch_optimizer.add_param_group({"params": parameters})
        self._groups[name] = group
        if self._training.optimizer.name is OptimizerName.SGD and self._training.optimizer.momentum > 0:
            for parameter in parameters:  # the fused SGD takes no group in which only some have a buffer
                self._optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _create(self, parameters: list[Parameter]) -> torch.optim.Optimizer:
        settings = self._training.optimizer
        if settings.name is OptimizerName.ADAMW:
            return torch.optim.AdamW(
                parameters,
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )


def merge_state(
    host: Mapping[str, Any], part: Mapping[str, Any], move: Move, betas: tuple[float, float] | None
) -> dict[str, Any]:
    """State of a host parameter that was extended by a seed's.

    Moments are joined like the parameters. Adam keeps one step count for a parameter: the seed's moments are
    scaled so that, corrected for their bias, they are at the host's count what they were at the seed's. Both
    learn as before exactly where the counts are equal, and with SGD always.

    Args:
        host: state of the host parameter before it was extended; empty where it has none.
        part: state of the seed's parameter; empty where it has none.
        move: which was extended by which, along which axis.
        betas: of Adam; None where moments are not corrected for their bias.
    """
    if not host and not part:
        return {}
    counts = [float(state["step"]) if "step" in state else 0.0 for state in (host, part)]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys([*host, *part]):
        if key == "step":
            merged[key] = host[key] if key in host else part[key].clone()
            continue
        parameter, axis = move.parameter, move.axis
        width = parameter.shape[axis]
        own: Any = host.get(key)
        other: Any = part.get(key)
        added = width - own.shape[axis] if own is not None else other.shape[axis]
        shape = list(parameter.shape)
        shape[axis] = width - added
        own = parameter.new_zeros(shape) if own is None else own
        shape[axis] = added
        other = parameter.new_zeros(shape) if other is None else other * _scale(key, counts, betas)
        merged[key] = torch.cat([own, other], dim=axis)
    return merged


def _scale(key: str, counts: list[float], betas: tuple[float, float] | None) -> float:
    """Factor on a seed's moment that keeps its corrected value at the host's step count."""
    host, own = counts
    if betas is None or key not in ("exp_avg", "exp_avg_sq") or 0 in (host, own):
        return 1.0
    beta = betas[key == "exp_avg_sq"]
    return float((1 - beta**host) / (1 - beta**own))


def clip_gradients(parameters: Iterable[Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients so that their joint 2-norm is at most ``max_norm`` (None: only measure).

    Returns:
        The norm before clipping, a scalar tensor on the parameters' device (0 where nothing has a gradient);
        NaN or infinity in any gradient shows in it, and reading it is left to the caller.
    """
    listed = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in listed if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(listed, max_norm, norm, foreach=True)
    return norm
