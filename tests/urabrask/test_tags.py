"""Tags by percentile, and a risk that is learned from what runs have reported."""

from typing import Any

import pytest

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import Check, FieldReport, ValidationReport
from esper_runtime.urabrask.tags import Experience, operators, risk, tags

MLP, LINEAR = catalogue()["mlp-bn"], catalogue()["low-rank"]


def report(**numbers: float) -> ValidationReport:
    return ValidationReport(
        kernel="ck-000000000000",
        digest="0" * 64,
        passed=True,
        checks=(Check(name="load", passed=True),),
        numbers=numbers,
        seconds=1.0,
    )


def field_report(blueprint: Any, **more: Any) -> FieldReport:
    told = {"run": "r", "seed": "s", "slot": "x", "outcome": "Fossilized", "steps": 1, "parameters": 1}
    return FieldReport(
        kernel="ck-000000000000", digest="0" * 64, blueprint=canonical_id(blueprint), **(told | more)
    )


def test_until_there_are_thirty_reports_thresholds_are_fixed() -> None:
    few = [report(training_us=1.0)] * 29
    assert "fast" in tags({"training_us": 150.0}, few)
    assert "slow" in tags({"training_us": 5_000.0}, few)
    assert tags({"training_us": 1_000.0}, few) == ()


def test_from_thirty_reports_on_the_quarters_of_the_population_count() -> None:
    many = [report(training_us=float(n)) for n in range(1, 101)]
    assert "fast" in tags({"training_us": 20.0}, many)
    assert tags({"training_us": 50.0}, many) == ()
    assert "slow" in tags({"training_us": 90.0}, many)


def test_what_was_not_measured_has_no_tag() -> None:
    assert tags({}, []) == ()


@pytest.mark.parametrize(("speedup", "tag"), [(1.2, "faster"), (1.0, "not-faster"), (0.8, "not-faster")])
def test_a_compiled_kernel_says_whether_it_is_faster(speedup: float, tag: str) -> None:
    assert tags({"training_speedup": speedup}, []) == (f"training-{tag}-than-eager",)


def test_without_experience_the_risk_is_the_largest_share_of_a_bound() -> None:
    assert risk(MLP, {"gain_share": 0.3, "drift_share": 0.1}, Experience()) == 0.3
    assert risk(MLP, {}, Experience()) is None


def test_with_experience_the_operator_that_fails_most_counts() -> None:
    graphs = {canonical_id(one): one for one in (MLP, LINEAR)}
    told = [field_report(LINEAR) for _ in range(30)]
    told += [field_report(MLP, failure="not finite") for _ in range(5)]
    told += [field_report(MLP) for _ in range(5)]
    experience = Experience.of(told, graphs)
    assert experience.all_seeds == 40
    assert experience.all_failures == 5
    risky, safe = risk(MLP, {"gain_share": 0.9}, experience), risk(LINEAR, {"gain_share": 0.9}, experience)
    assert risky is not None
    assert safe is not None
    # (5 + 4 * 5.5 / 41) / (10 + 4) and (0 + 4 * 5.5 / 41) / (30 + 4)
    assert risky == pytest.approx((5 + 4 * 5.5 / 41) / 14)
    assert safe == pytest.approx((4 * 5.5 / 41) / 34)
    assert operators(MLP) & operators(LINEAR) == set()


def test_a_seed_that_was_rolled_back_counts_as_failed_and_one_that_was_culled_does_not() -> None:
    graphs = {canonical_id(MLP): MLP}
    told = [field_report(MLP, outcome="RolledBack"), field_report(MLP, outcome="Culled")]
    assert Experience.of(told, graphs).all_failures == 1
    assert Experience.of(told, {}).all_seeds == 0
