"""One optimizer step: forward, backward, isolated seeds, clipping; the update is a call of its own.

Between the two lies the governor's check, so that numbers gone bad never reach the parameters.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from esper_runtime.contracts import Compilation, Precision, Training
from esper_runtime.kasmina import Growable, Seed, cohorts, direct_gradients, learn_side_by_side
from esper_runtime.tolaria.agreement import average_gradients, floating_buffers
from esper_runtime.tolaria.batches import length, micro_batches
from esper_runtime.tolaria.behind import charged, drops_out
from esper_runtime.tolaria.evaluate import autocast
from esper_runtime.tolaria.group import Alone, Group
from esper_runtime.tolaria.ledger import Ledger, Purpose
from esper_runtime.tolaria.optimizer import GroupedOptimizer, clip_gradients
from esper_runtime.tolaria.regions import Regions
from esper_runtime.tolaria.tasks import Batch, Task
from esper_runtime.tolaria.training_state import structure_of

LARGEST_SCALE = 2.0**16
SCALE_GROWS_AFTER = 2000
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Gradients:
    """What a step is judged by: the batch's mean loss and the gradient norm before clipping.

    ``isolated`` holds the same two numbers for each seed that learns behind the host.
    """

    loss: float
    norm: float
    isolated: dict[str, tuple[float, float]] = field(default_factory=dict)


class Learner:
    """Computes gradients and applies them.

    Call `structure_changed` after the optimizer's groups or the seeds' stages have changed.

    Args:
        model: the host and its seeds.
        optimizer: holds the learning rates and the parameters' groups.
        task: gives inputs and losses.
        training: clipping, accumulation and precision.
        device: where the batches are.
        ledger: counts the passes.
        group: the processes that share each batch; default: this one alone.
    """

    def __init__(
        self,
        model: Growable,
        optimizer: GroupedOptimizer,
        task: Task,
        training: Training,
        device: torch.device,
        ledger: Ledger,
        group: Group | None = None,
    ) -> None:
        self.model = model
        self._group = group or Alone()
        self.wants: Callable[[], tuple[bool, ...]] = tuple
        """What this rank has to tell the others with its next gradients."""
        self.heard: tuple[bool, ...] = ()
        """The same of all ranks after the last gradients: True where one of them wanted it."""
        self.optimizer = optimizer
        self._task = task
        self._training = training
        self._device = device
        self._ledger = ledger
        self._autocast = autocast(training.precision, device)
        self.loss_scale = LARGEST_SCALE if training.precision is Precision.FLOAT16 else 1.0
        self.isolated_scale = self.loss_scale
        self._regions = Regions(model) if training.compile is Compilation.REGIONS else None
        self.clean_steps = 0
        self.structure = ""
        self._joint: list[Parameter] = []
        self._all: list[Parameter] = []
        self._isolating, self._uniform, self._seeded = False, True, False
        self.structure_changed()

    def structure_changed(self) -> None:
        """Take note of which parameters learn together, and of what a pass costs from now on."""
        isolating = {seed.identity for seed in self.model.isolating()}
        groups = [name for name in self.optimizer.groups if name not in isolating]
        self._joint = self.optimizer.parameters(*groups)
        self._all = self.optimizer.parameters()
        self._isolating = bool(isolating)
        self._seeded = len(self.model.living) > 0
        self._uniform = len({(p.dtype, p.device) for p in self._joint}) == 1
        self.structure = structure_of(self.model)
        if self._regions is not None:
            self._regions.update()

    def gradients(self, batch: Batch, step: int) -> Gradients:
        """Leave the clipped gradients of optimizer step ``step`` (0-based) in the parameters."""
        self.optimizer.set_learning_rates(step)
        parts = micro_batches(batch, self._training.accumulate)
        examples = length(batch)
        total = self._backward(parts[0], examples)
        for part in parts[1:]:
            total = total + self._backward(part, examples)
        isolated = self._isolated(parts[0]) if self._isolating else {}
        if self._group.size > 1:
            total = self._averaged(total)
        gradients = [gradient for p in self._joint if (gradient := p.grad) is not None]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale)
        norm = self._norm(gradients)
        loss_value, norm_value = self._read(total, norm.to(total.dtype))
        if self.loss_scale > 1.0 and math.isfinite(loss_value) and not math.isfinite(norm_value):
            norm_value = self._lower_scale()
        elif (limit := self._training.clip_norm) is not None and limit < norm_value < math.inf:
            torch._foreach_mul_(gradients, limit / (norm_value + 1e-6))
        return Gradients(loss_value, norm_value, isolated)

    def _averaged(self, loss: Tensor) -> Tensor:
        """Average loss and gradients over the ranks; a seed that failed on one rank has failed on all."""
        seeds, wants = list(self.model.seeds), self.wants()
        flags = loss.new_tensor([*wants, *(seed.failure is not None for seed in seeds)], dtype=torch.float32)
        buffers = floating_buffers(self.model)
        sums = average_gradients(self._group, self._learning(self._joint), buffers, [loss, *flags])
        self.heard = tuple(said > 0 for said in sums[1 : 1 + len(wants)])
        for seed, failed in zip(seeds, sums[1 + len(wants) :], strict=True):
            if failed and seed.failure is None:
                seed.failure = "it failed on another rank"
        return loss.new_tensor(sums[0] / self._group.size)

    def _averaged_behind(self, seeds: list[Seed], losses: Tensor) -> Tensor:
        """The same for seeds that learn behind the host."""
        parameters = [p for seed in seeds for p in self.optimizer.parameters(seed.identity)]
        sums = average_gradients(self._group, self._learning(parameters), [], list(losses))
        return losses.new_tensor(sums) / self._group.size

    @staticmethod
    def _learning(parameters: list[Parameter]) -> list[Parameter]:
        return [parameter for parameter in parameters if parameter.requires_grad]

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Joint 2-norm as a scalar tensor; NaN or infinity anywhere shows in it."""
        if self._uniform and gradients:
            norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            return norm
        return torch.nn.utils.get_total_norm(gradients)

    def _read(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """Both numbers, with the one synchronisation of a step where the device needs any."""
        if self._device.type == "cpu":
            return loss.item(), norm.item()
        loss_value, norm_value = torch.stack((loss, norm)).tolist()
        return loss_value, norm_value

    def _lower_scale(self) -> float:
        """Only the scale of a Float16 loss was too large: this step has no update, its norm counts as 0."""
        self.loss_scale /= 2
        self.clean_steps = 0
        self._drop_gradients()
        return 0.0

    def _drop_gradients(self) -> None:
        for parameter in self._all:
            parameter.grad = None

    def _backward(self, part: Batch, examples: int) -> Tensor:
        task, ledger, host = self._task, self._ledger, self.model.host
        args, kwargs = task.inputs(part)
        count = length(part)

        def forward() -> Tensor:
            with self._autocast:
                losses = task.losses(host(*args, **kwargs), part)
            return losses.mean() if count == examples else losses.sum() / examples

        with self._compiled(), direct_gradients() if self._seeded else _NOTHING:
            loss = ledger.measure(Purpose.FORWARD, self.structure, count, forward)
            scaled = loss if self.loss_scale == 1.0 else loss * self.loss_scale
            ledger.measure(Purpose.BACKWARD, self.structure, count, scaled.backward)
        return loss.detach()

    def _compiled(self) -> AbstractContextManager[None]:
        """Compiled regions, but for the pass in which operations are counted."""
        if self._regions is None:
            return _NOTHING
        known = self._ledger.knows(self.structure, Purpose.FORWARD, Purpose.BACKWARD)
        return self._regions.compiled() if known else _NOTHING

    def _isolated(self, part: Batch) -> dict[str, tuple[float, float]]:
        """Seeds behind the host learn from the first micro-batch."""
        seeds = self.model.isolating()
        if not seeds:
            return {}
        args, kwargs = self._task.inputs(part)

        def criterion(output: Any) -> Tensor:
            loss = self._task.losses(output, part).mean()
            return loss if self.isolated_scale == 1.0 else loss * self.isolated_scale

        found: dict[str, tuple[float, float]] = {}
        for group in cohorts(seeds):

            def learn(group: list[Seed] = group) -> Tensor:
                with self._autocast:
                    return learn_side_by_side(self.model, group, args, kwargs, criterion)

            scale = self.isolated_scale
            losses = charged(self._ledger, self.structure, group, length(part), self.model.host_macs, learn)
            if self._group.size > 1:
                losses = self._averaged_behind(group, losses)
            for seed, scaled in zip(group, losses.tolist(), strict=True):
                loss, norm = scaled / scale, self._norm_behind(seed, scaled, scale)
                if not drops_out(seed, loss, norm):
                    found[seed.identity] = (loss, norm)
        return found

    def _norm_behind(self, seed: Seed, loss: float, scale: float) -> float:
        """Clip the gradients of a seed behind the host, and return their norm before.

        Its Float16 loss was multiplied by ``scale``, one of its own, so that the host's does not depend on
        the seed.
        """
        parameters = self.optimizer.parameters(seed.identity)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale != 1.0 and gradients:
            torch._foreach_mul_(gradients, 1.0 / scale)
        norm = clip_gradients(parameters, self._training.clip_norm).item()
        if scale > 1.0 and math.isfinite(loss) and not math.isfinite(norm):
            self.isolated_scale = scale / 2
            for parameter in parameters:
                parameter.grad = None
            return 0.0
        return norm

    def scales(self) -> list[float]:
        """Scales of the Float16 losses and the steps since one was lowered, for a checkpoint."""
        return [self.loss_scale, self.clean_steps, self.isolated_scale]

    def set_scales(self, saved: list[float]) -> None:
        """Go on with what `scales` gave; where the third is missing, seeds begin at the host's scale."""
        self.loss_scale, self.clean_steps = saved[0], int(saved[1])
        self.isolated_scale = saved[2] if len(saved) > 2 else self.loss_scale

    def update(self) -> None:
        """Apply the gradients and drop them."""
        self.optimizer.step()
        self._drop_gradients()
        if self._training.precision is Precision.FLOAT16:
            self.clean_steps += 1
            if self.clean_steps % SCALE_GROWS_AFTER == 0:
                self.loss_scale = min(LARGEST_SCALE, self.loss_scale * 2)
                self.isolated_scale = min(LARGEST_SCALE, self.isolated_scale * 2)
