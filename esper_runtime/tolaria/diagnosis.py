"""What is to blame for a fault: the data, a young seed, or nothing that can be named.

The failing pass is run again with and without the young seeds. It may leave the model as it likes: the last
good state is restored afterwards.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from esper_runtime.contracts import SeedStage
from esper_runtime.kasmina import Growable, Seed, Trial
from esper_runtime.tolaria.governor import Fault
from esper_runtime.tolaria.tasks import Batch

JUST_GRAFTED = 50
"""A divergence within so many steps of a graft is blamed on it when removing no seed helps at once.

A seed is young as long, too, after it was fossilized.
"""


@dataclass(frozen=True)
class Blame:
    """The culprit and how that was found out."""

    who: Literal["seed", "data", "unknown"]
    why: str
    seed: Seed | None = None


def find_blame(
    fault: Fault,
    model: Growable,
    batch: Batch,
    sound: Callable[[], bool],
    was_sound: Callable[[], bool],
    steps: int,
    bad_data: Callable[[str | None], str | None] = lambda found: found,
) -> Blame:
    """Decide what caused a fault.

    Args:
        fault: what was noticed.
        model: in the state in which it was noticed.
        batch: the training batch of the failing step.
        sound: runs the failing pass again and says whether its numbers are good.
        was_sound: the same in the last good state, in which it leaves the model.
        steps: optimizer steps done.
        bad_data: makes of what this rank found in its part of the batch what holds for all ranks.
    """
    if fault.seed is not None:
        return Blame("seed", "its own numbers are not finite", model.seed(fault.seed))
    if fault.kind != "validation" and (bad := bad_data(_not_finite(batch))) is not None:
        return Blame("data", f"{bad} of the batch holds NaN or infinity")
    young = [
        seed
        for seed in model.seeds
        if seed.contributing
        and (seed.stage is not SeedStage.FOSSILIZED or steps - seed.entered <= JUST_GRAFTED)
    ]
    young.reverse()
    if not young:
        return Blame("unknown", "no young seed contributes and the batch is finite")
    if sound():
        return Blame("unknown", "the same pass is sound when it is run again")
    for seed in young:
        with silenced([seed]):
            if sound():
                return Blame("seed", f"the same pass is sound without seed {seed.identity}", seed)
    with silenced(young):
        if sound():
            return Blame(
                "seed", "the same pass is sound without the young seeds; the youngest goes", young[0]
            )
    newest = young[0]
    if fault.kind == "divergence" and steps - newest.entered <= JUST_GRAFTED:
        if not was_sound():
            return Blame("unknown", "the batch does no better in the last good state")
        return Blame("seed", f"the divergence followed the graft of seed {newest.identity}", newest)
    return Blame("unknown", "the same pass fails without the young seeds too")


def pass_is_sound(
    model: Growable, trial: Trial, ceiling: float, mean: Callable[[float], float] = float
) -> bool:
    """Whether a forward and backward pass gives a finite loss of at most ``ceiling`` and finite gradients.

    ``mean`` is taken of the loss and of the gradients' norm: of all ranks that share the batch.
    """
    loss = trial.losses(model(*trial.args, **trial.kwargs)).mean()
    level = mean(loss.item())
    if not math.isfinite(level) or level > ceiling:
        return False
    grown = [p for seed in model.seeds if seed.contributing for p in seed.parameters()]
    parameters = [p for p in (*model.host.parameters(), *grown) if p.requires_grad]
    gradients = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    return math.isfinite(mean(torch.nn.utils.get_total_norm(gradients).item()))


@contextmanager
def silenced(seeds: list[Seed]) -> Iterator[None]:
    """Inside, the seeds contribute nothing."""
    kept = [(seed, seed.alpha) for seed in seeds]
    for seed in seeds:
        seed.alpha = 0.0
    try:
        yield
    finally:
        for seed, alpha in kept:
            seed.alpha = alpha


def _not_finite(batch: Batch) -> str | None:
    for name, tensor in batch.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None
