"""Where and what: the measured candidate to plant first, and the best set beside it within the budget."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from esper_runtime.contracts import Candidate, Measured, SystemState
from esper_runtime.tamiyo.kernels import liking, order
from esper_runtime.tamiyo.limits import Limits

POOL = 24
"""Most options that the search over sets looks at."""
LEAST_GAIN = 0.005
"""A trial must lower the training loss by this share of it; useless candidates reached -0.7 to +0.3 %."""
DEARER, HALF_GAIN, AMONG_DEAREST = 1.2, 0.5, 0.8
"""Short trials favour what starts fast. So options that make the model at least ``DEARER`` times as costly as
the best option does, and reach ``HALF_GAIN`` of its gain, go before it; among those, the best one within
``AMONG_DEAREST`` of the costliest. Without this rule the mnist1d CNN ends 1 point lower (10 seeds)."""


@dataclass(frozen=True)
class Option:
    """A candidate that may be planted, with the gain measured for it and the gain's lower bound."""

    candidate: Candidate
    gain: Measured
    value: float


def options(
    candidates: Sequence[Candidate], z: float, loss: float, preferred: Collection[str] = ()
) -> list[Option]:
    """Candidates whose gain is measured, surely above zero and of some size, the most promising first.

    A gain's worth is its lower bound ``mean - z * standard_error``: what is uncertain counts for less.

    Args:
        candidates: those tried.
        z: half-width of the interval in standard errors.
        loss: present loss, of which a gain must be at least `LEAST_GAIN`.
        preferred: tags of kernels that are liked.
    """
    found = [
        Option(candidate, candidate.gain, candidate.gain.lower(z) * liking(candidate, preferred))
        for candidate in candidates
        if candidate.gain is not None
    ]
    least = LEAST_GAIN * abs(loss)
    return sorted((o for o in found if o.value > 0 and o.gain.mean >= least), key=_order)


def _order(option: Option) -> tuple[float, int, tuple[float, float], str, str]:
    candidate = option.candidate
    return (-option.value, candidate.parameters, order(candidate), candidate.slot, candidate.blueprint)


def first_choice(found: Sequence[Option], macs_now: int) -> Option:
    """The option to plant first: the best one, or a costlier one that comes near enough.

    Args:
        found: at least one option, the best first.
        macs_now: multiply-accumulates of the model per example.
    """

    def macs(option: Option) -> int:
        return macs_now + option.candidate.macs_per_example

    best = found[0]
    dearer = [o for o in found if macs(o) >= DEARER * macs(best) and o.value >= HALF_GAIN * best.value]
    if not dearer:
        return best
    bound = AMONG_DEAREST * max(map(macs, dearer))
    return next(o for o in dearer if macs(o) >= bound)


def worth_trying(found: Sequence[Option]) -> list[Option]:
    """Options not surpassed by one in the same slot that costs no more; at most `POOL`, the best first."""
    kept: list[Option] = []
    costs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for option in found:
        candidate = option.candidate
        cost = (candidate.parameters, candidate.macs_per_example)
        if any(p <= cost[0] and m <= cost[1] for p, m in costs[candidate.slot]):
            continue
        costs[candidate.slot].append(cost)
        kept.append(option)
    return kept[:POOL]


def best_set(found: Sequence[Option], limits: Limits, overlaps: Mapping[str, Sequence[str]]) -> list[Option]:
    """The set of options with the largest sum of values that the limits allow together.

    An exact search (depth first, cut by the sum of the best values left) over `worth_trying`.

    Args:
        found: options, the best first.
        limits: parameters, multiply-accumulates and seeds left.
        overlaps: for each slot the others in its region; one seed per region.
    """
    pool = worth_trying(found)
    best: tuple[float, tuple[int, ...]] = (0.0, ())

    def search(start: int, chosen: tuple[int, ...], value: float, room: tuple[int, float, int]) -> None:
        nonlocal best
        if value > best[0]:
            best = (value, chosen)
        parameters, macs, seeds = room
        for index in range(start, len(pool)):
            if value + sum(o.value for o in pool[index : index + seeds]) <= best[0]:
                return
            option = pool[index]
            after = (
                parameters - option.candidate.parameters,
                macs - option.candidate.macs_per_example,
                seeds - 1,
            )
            if min(after) < 0 or any(_clash(pool[i], option, overlaps) for i in chosen):
                continue
            search(index + 1, (*chosen, index), value + option.value, after)

    macs_left = float("inf") if limits.macs_left is None else limits.macs_left
    search(0, (), 0.0, (limits.parameters_left, macs_left, limits.seeds_left))
    return [pool[index] for index in best[1]]


def _clash(one: Option, other: Option, overlaps: Mapping[str, Sequence[str]]) -> bool:
    a, b = one.candidate.slot, other.candidate.slot
    return a == b or b in overlaps.get(a, ()) or a in overlaps.get(b, ())


def overlaps_of(state: SystemState) -> dict[str, tuple[str, ...]]:
    """For each slot the other slots in its region."""
    return {slot.slot: slot.overlaps for slot in state.slots if slot.overlaps}
