"""Which validated kernels a run may plant, and which it likes better: by tags, risk and measured time."""

from collections.abc import Collection

from esper_runtime.contracts import Candidate, KernelSelector, KernelSummary

BONUS = 0.1
"""A candidate with all preferred tags counts as if it had gained so much more; with half of them, half."""


def why_not(kernel: KernelSummary, selector: KernelSelector) -> str | None:
    """Why the manifest does not allow a kernel; None where it does. What was not measured is not allowed
    where it is limited."""
    tags = frozenset(kernel.tags)
    if missing := [tag for tag in selector.required if tag not in tags]:
        return f"it lacks the tag {missing[0]!r} of growth.kernels.required (it has {_listed(kernel.tags)})"
    if present := [tag for tag in selector.excluded if tag in tags]:
        return f"it has the tag {present[0]!r} of growth.kernels.excluded"
    if selector.most_risk < 1 and kernel.risk is None:
        return f"its risk is unknown, and growth.kernels.mostRisk is {selector.most_risk:g}"
    if kernel.risk is not None and kernel.risk > selector.most_risk:
        return f"its risk {kernel.risk:.2f} is above growth.kernels.mostRisk {selector.most_risk:g}"
    return None


def liking(candidate: Candidate, preferred: Collection[str]) -> float:
    """What a candidate's gain is multiplied by for its preferred tags, from 1 to 1 + `BONUS`."""
    if not preferred:
        return 1.0
    return 1.0 + BONUS * len(frozenset(preferred).intersection(candidate.tags)) / len(frozenset(preferred))


def order(candidate: Candidate) -> tuple[float, float]:
    """Breaks ties between equal promises: less risk first, then less measured time; unknown last."""
    risk, forward = candidate.risk, candidate.forward_us
    return (float("inf") if risk is None else risk, float("inf") if forward is None else forward)


def in_words(candidate: Candidate, preferred: Collection[str]) -> str:
    """What is known of a candidate's kernel, for an explanation; empty where it has none."""
    if candidate.kernel is None:
        return ""
    known = [f"kernel {candidate.kernel}"]
    known.append("risk unknown" if candidate.risk is None else f"risk {candidate.risk:.2f}")
    if candidate.forward_us is not None:
        known.append(f"{candidate.forward_us:.0f} us a forward pass when tested")
    if candidate.tags:
        known.append(_listed(candidate.tags))
    liked = [tag for tag in preferred if tag in candidate.tags]
    if liked:
        known.append(f"preferred for {_listed(liked)}: {liking(candidate, preferred):.2f} times its gain")
    return ", ".join(known)


def _listed(tags: Collection[str]) -> str:
    return ", ".join(sorted(tags)) or "no tags"
