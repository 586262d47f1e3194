"""Validated kernels by tags, risk and measured time: what the manifest allows, and what it likes better."""

import pytest

from esper_runtime.contracts import Candidate, KernelInterface, KernelSelector, KernelSummary, Measured
from esper_runtime.tamiyo import why_not
from esper_runtime.tamiyo.choose import options
from esper_runtime.tamiyo.kernels import in_words, liking

KERNEL = KernelSummary(
    kernel="ck-000000000001",
    digest="0" * 64,
    blueprint="bp-000000000001",
    name="mlp",
    interface=KernelInterface(kind="features", least_in=1, most_in=16, least_out=1, most_out=16),
    pipeline="fast",
    trains=True,
    tags=("light", "small"),
    risk=0.3,
)


def candidate(blueprint: str, gain: float = 0.1, **known) -> Candidate:
    return Candidate(
        slot="a",
        blueprint=blueprint,
        name=blueprint,
        parameters=100,
        macs_per_example=10,
        gain=Measured(mean=gain, standard_error=0.0, count=10),
        trial_steps=10,
        kernel="ck-000000000001",
        **known,
    )


def order(*candidates: Candidate, preferred=()) -> list[str]:
    return [option.candidate.blueprint for option in options(candidates, 1.96, 1.0, preferred)]


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        ({}, None),
        ({"required": ["small"]}, None),
        ({"required": ["small", "fast"]}, "lacks the tag 'fast'"),
        ({"excluded": ["light"]}, "has the tag 'light'"),
        ({"mostRisk": 0.2}, "risk 0.30 is above"),
        ({"mostRisk": 0.3}, None),
    ],
)
def test_the_manifest_allows_kernels_by_tags_and_risk(selector, why) -> None:
    found = why_not(KERNEL, KernelSelector.model_validate(selector))
    assert found is None if why is None else why in found


def test_an_unknown_risk_is_allowed_only_where_none_is_too_high() -> None:
    unknown = KERNEL.model_copy(update={"risk": None})
    assert "unknown" in why_not(unknown, KernelSelector())
    assert why_not(unknown, KernelSelector(most_risk=1.0)) is None


def test_equal_promises_are_ordered_by_risk_and_then_by_measured_time() -> None:
    slow = candidate("slow", risk=0.1, forward_us=90.0)
    fast = candidate("fast", risk=0.1, forward_us=20.0)
    risky = candidate("risky", risk=0.4, forward_us=1.0)
    unknown = candidate("unknown")
    assert order(unknown, risky, slow, fast) == ["fast", "slow", "risky", "unknown"]
    assert order(fast, candidate("better", 0.2, risk=0.9)) == ["better", "fast"]


def test_preferred_tags_outweigh_a_small_difference_of_gain_and_no_large_one() -> None:
    liked = candidate("liked", 0.100, tags=("small", "light"))
    plain, best = candidate("plain", 0.105), candidate("best", 0.2)
    assert order(liked, plain, best) == ["best", "plain", "liked"]
    assert order(liked, plain, best, preferred=("small", "light")) == ["best", "liked", "plain"]
    assert liking(liked, ("small", "fast")) == pytest.approx(1.05)


def test_an_explanation_names_the_kernel_and_what_is_known_of_it() -> None:
    known = candidate("x", risk=0.25, forward_us=83.2, tags=("small",))
    text = in_words(known, ("small",))
    assert text == (
        "kernel ck-000000000001, risk 0.25, 83 us a forward pass when tested, small, "
        "preferred for small: 1.10 times its gain"
    )
    assert "risk unknown" in in_words(candidate("y"), ())
