"""Seeds that learn behind the host: what their passes cost, and what becomes of one that fails."""

import math
from collections.abc import Callable, Sequence

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
