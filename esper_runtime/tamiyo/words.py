"""The words of a planting: what a person needs to know to agree or disagree with it."""

from esper_runtime.contracts import Probe, SystemState
from esper_runtime.tamiyo.choose import Option

LONGEST = 2000
"""Characters that an explanation may have (contracts)."""


def planting(
    option: Option, rival: Option | None, why: str, left: int, z: float, state: SystemState, kernel: str = ""
) -> str:
    """Why this option is planted: reason, measured gain with its interval, rival, and share of the budget.

    Args:
        option: what is planted.
        rival: the best option of any other slot.
        why: reason for planting now, and for this option where it does not have the largest gain.
        left: parameters that growth may still use.
        z: half-width of the interval in standard errors.
        state: the snapshot of the boundary.
        kernel: what is known of the kernel that would run.
    """
    candidate, gain = option.candidate, option.gain
    compared = "" if rival is None else f" (best of the other slots {rival.gain.mean:.3g})"
    return clip(
        f"step {state.step} of {state.total_steps}: {why}; '{candidate.name}' at {candidate.slot} lowers the "
        f"training loss by {gain.mean:.3g} +- {z * gain.standard_error:.2g} in a trial of "
        f"{candidate.trial_steps} steps{compared}; it takes {candidate.parameters:,} of {left:,} parameters "
        f"left" + (f"; {kernel}" if kernel else "")
    )


def passed_over(first: Option, best: Option, state: SystemState) -> str:
    """Why ``first`` is planted although ``best`` gained more in its trial."""
    now = state.budget.macs_now
    times = (now + first.candidate.macs_per_example) / (now + best.candidate.macs_per_example)
    share = first.value / best.value
    return (
        f"'{best.candidate.name}' at {best.candidate.slot} gained {best.gain.mean:.3g}, but short trials "
        f"favour what starts fast, and the next computes {times:.2g} times as much at {share:.0%} of its gain"
    )


def trying(probe: Probe) -> str:
    """What a probe does."""
    return f"{len(probe.candidates)} candidates are tried for {probe.steps} steps each on copies of the model"


def clip(text: str) -> str:
    """The text, cut where it is longer than a decision may be."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
