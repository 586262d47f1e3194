"""Seeds that learn behind the host: what their passes cost, and what becomes of one that fails."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from esper_runtime.kasmina import Seed
from esper_runtime.tolaria.ledger import Ledger, Purpose


def charged(
    ledger: Ledger,
    structure: str,
    seeds: Sequence[Seed],
    examples: int,
    host_macs: int,
    learn: Callable[[], Tensor],
) -> Tensor:
    """Run ``learn`` for seeds that learn together, and charge each with its part of what that costs.

    Parts are in proportion to what the host and the seed cost together in a forward pass.

    Args:
        ledger: counts.
        structure: of the model, see `Ledger.measure`.
        seeds: those that learn; more than one are candidates of one tournament.
        examples: in the batch.
        host_macs: multiply-accumulates of the host's forward pass for one example.
        learn: the pass or passes.
    """
    together = ("|" if any(seed.apart for seed in seeds) else "+").join(seed.identity for seed in seeds)
    before = ledger.total
    result = ledger.measure(Purpose.ISOLATED, f"{structure}/{together}", examples, learn)
    left, weights = ledger.total - before, [host_macs + seed.price.macs + 1 for seed in seeds]
    for index, seed in enumerate(seeds):
        part = round(left * weights[index] / sum(weights[index:]))
        ledger.attribute(seed.identity, part)
        left -= part
    return result


def gathered(seeds: Sequence[Seed], passes: Sequence[Callable[[], tuple[Tensor, int]]]) -> Tensor:
    """Run the passes of all micro-batches of a step, and leave in the seeds the gradients of the whole.

    Args:
        seeds: those that learn together.
        passes: each leaves its own gradients in the seeds; returns their mean losses [K] and its examples.

    Returns:
        Losses [K], means over the examples of all passes.
    """
    if len(passes) == 1:
        return passes[0]()[0]
    parameters = [parameter for seed in seeds for parameter in seed.body.parameters()]
    found = []
    for learn in passes:
        losses, examples = learn()
        found.append((losses, [parameter.grad for parameter in parameters], examples))
    whole = sum(examples for _, _, examples in found)
    for index, parameter in enumerate(parameters):
        parts = [(grads[index], examples / whole) for _, grads, examples in found]
        present = [grad * share for grad, share in parts if grad is not None]
        parameter.grad = torch.stack(present).sum(0) if present else None
    return torch.stack([losses * (examples / whole) for losses, _, examples in found]).sum(0)


def drops_out(seed: Seed, loss: float, norm: float) -> bool:
    """Whether a candidate of a tournament has to leave it, alone, because its numbers went bad.

    It learns no more and is culled at the next boundary. (A seed that is by itself behind the host is the
    governor's, which goes back to the last good state.)
    """
    if seed.cohort is None or (math.isfinite(loss) and math.isfinite(norm)):
        return False
    seed.failure = f"behind the host its loss was {loss:.4g}, its gradient norm {norm:.4g}"
    for parameter in seed.body.parameters():
        parameter.grad = None
    return True
