"""Conditions of resources: what holds now, with the time of the last change of each."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from esper_runtime.contracts.resources import Condition

Truth = Literal["True", "False", "Unknown"]


class Verdict(NamedTuple):
    """Whether something holds, why in one word (empty: the condition's own name), and why in a sentence."""

    truth: Truth
    reason: str = ""
    message: str = ""


def conditions_after(
    before: Iterable[Condition],
    found: Mapping[str, Verdict],
    order: Iterable[str],
    *,
    generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """The conditions of a status; those of which nothing was found stay as they were.

    Args:
        before: as they are.
        found: by type.
        order: all types, in the order in which they are shown.
        generation: of the spec that was looked at.
        now: seconds since the epoch.
    """
    known = {condition.type: condition for condition in before}
    for kind, verdict in found.items():
        old = known.get(kind)
        known[kind] = Condition(
            type=kind,
            status=verdict.truth,
            reason=verdict.reason or kind,
            message=verdict.message[:1000],
            last_transition_time=(
                rfc3339(now) if old is None or old.status != verdict.truth else old.last_transition_time
            ),
            observed_generation=generation,
        )
    return tuple(known[kind] for kind in order if kind in known)


def rfc3339(moment: float) -> str:
    """Seconds since the epoch as the Kubernetes API writes times."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
