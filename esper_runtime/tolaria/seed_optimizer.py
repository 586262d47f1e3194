"""The optimizer of the seeds beside the one of a user's own loop."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from esper_runtime.kasmina import Growable, Move
from esper_runtime.tolaria.optimizer import merge_state
from esper_runtime.tolaria.schedule import newborn_factor


class SeedOptimizer:
    """An optimizer of the user's kind for the seeds, beside the user's own.

    Its learning rates follow the first group of the user's, whatever schedules that.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._host = optimizer
        self._seeds: torch.optim.Optimizer | None = None
        self._groups: dict[str, tuple[int, float, int]] = {}

    @property
    def groups(self) -> tuple[str, ...]:
        """Ids of the seeds that have a group."""
        return tuple(self._groups)

    def add_group(
        self,
        name: str,
        parameters: Iterable[tuple[str, Parameter]],
        step: int,
        learning_rate_factor: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        """Add a newborn seed's parameters."""
        self.add_param_group({**self._settings(), "params": [parameter for _, parameter in parameters]})
        self._groups[name] = (step, learning_rate_factor, warmup_steps)

    def remove_group(self, name: str) -> None:
        """Drop the parameters of a seed that is gone, and their state."""
        assert self._seeds is not None
        group = self._seeds.param_groups.pop(self.groups.index(name))
        for parameter in group["params"]:
            self._seeds.state.pop(parameter, None)
        del self._groups[name]

    def absorb(self, name: str, moves: Iterable[Move]) -> None:
        """Let the user's state of host parameters follow an absorbed seed, and drop the seed's."""
        assert self._seeds is not None
        betas = self._host.param_groups[0].get("betas")
        held = {parameter for group in self._host.param_groups for parameter in group["params"]}
        for move in moves:
            if move.parameter in held:
                part = {} if move.part is None else self._seeds.state.get(move.part, {})
                own = self._host.state.get(move.parameter, {})
                self._host.state[move.parameter] = merge_state(own, part, move, betas)
        self.remove_group(name)

    def follow(self, optimizer: torch.optim.Optimizer, model: Growable) -> None:
        """Stand beside ``optimizer`` from now on; where it is another one, the moments begin anew."""
        if optimizer is not self._host:
            groups = self.state()["groups"]
            self._host = optimizer
            self.restore({"groups": groups, "optimizer": None}, model)

    def update_seeds(self, step: int) -> None:
        """One update of the seeds that have gradients, for optimizer step ``step`` (0-based)."""
        if self._seeds is None:
            return
        base = self._host.param_groups[0]["lr"]
        for group, (born, factor, warmup) in zip(
            self._seeds.param_groups, self._groups.values(), strict=True
        ):
            group["lr"] = base * factor * newborn_factor(step, born, warmup)
        self._seeds.step()
        self._seeds.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Groups and moments of the seeds; the user's own optimizer is saved by the user."""
        return {
            "groups": {name: list(facts) for name, facts in self._groups.items()},
            "optimizer": None if self._seeds is None else self._seeds.state_dict(),
        }

    def restore(self, data: dict[str, Any], model: Growable) -> None:
        """Take over what `state` gave; the seeds live in ``model``."""
        self._seeds, self._groups = None, {}
        for name, (born, factor, warmup) in data["groups"].items():
            parameters = model.seed(name).body.named_parameters()
            self.add_group(name, parameters, int(born), float(factor), int(warmup))
        if self._seeds is not None and data["optimizer"] is not None:
            self._seeds.load_state_dict(data["optimizer"])

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in self._host.param_groups[0].items() if key != "params"}

    # Both together, as a trial's copy of the model learns

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The user's groups and the seeds'."""
        return self._host.param_groups + ([] if self._seeds is None else self._seeds.param_groups)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of a seed's parameters."""
        if self._seeds is None:
            kind: Any = type(self._host)
            self._seeds = kind([group])
        else:
            self._seeds.add_param_group(group)

    def step(self) -> None:
        """One update of host and seeds."""
        self._host.step()
        if self._seeds is not None:
            self._seeds.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self._host.zero_grad(set_to_none)
        if self._seeds is not None:
            self._seeds.zero_grad(set_to_none)
