from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.contracts import (
    Interface,
    KernelInterface,
    KernelQuery,
    KernelRecord,
    KernelState,
    Pipeline,
    Target,
)
from esper_runtime.urza import KernelIndex
from tests.urza.sayings import SLOT, TARGET, digest_of, kernel_spec, report

TAGS = ("small", "quick", "robust", "frugal")


def record(number: int, *, state: KernelState = KernelState.VALIDATED, **more: Any) -> KernelRecord:
    """A validated kernel; ``more`` is of its report, or its slot, target or pipeline."""
    place = {name: more.pop(name) for name in ("slot", "target", "pipeline", "interface") if name in more}
    spec = kernel_spec(f"bp-{number:012x}", **place)
    digest = digest_of(str(number))
    return KernelRecord(
        kernel=spec.kernel_id, spec=spec, state=state, digest=digest, report=report(spec, digest, **more)
    )


def query(slot: Interface = SLOT, **more: Any) -> KernelQuery:
    """For a slot on the usual target."""
    return KernelQuery(interface=slot, target=more.pop("target", TARGET), **more)


def found(records: Iterable[KernelRecord], asked: KernelQuery) -> list[str]:
    """Blueprints of what answers, best first."""
    return [ranked.record.spec.blueprint for ranked in KernelIndex(records).best(asked)]


@pytest.mark.parametrize("state", [state for state in KernelState if state is not KernelState.VALIDATED])
def test_only_validated_kernels_answer(state: KernelState) -> None:
    assert found([record(1, state=state)], query()) == []


@pytest.mark.parametrize(
    ("slot", "fits"),
    [
        (SLOT, True),
        (Interface(kind="features", width_in=16, width_out=1), True),
        (Interface(kind="features", width_in=17, width_out=8), False),
        (Interface(kind="features", width_in=8, width_out=17), False),
        (Interface(kind="features", width_in=8, width_out=8, dtype="float64"), False),
        (Interface(kind="features", width_in=8, width_out=8, causal=True), False),
        (Interface(kind="tokens", width_in=8, width_out=8, spatial_in=(4,), spatial_out=(4,)), False),
    ],
)
def test_a_kernel_answers_for_the_slots_of_its_class(slot: Interface, fits: bool) -> None:
    assert bool(found([record(1)], query(slot))) is fits


def test_a_kernel_of_another_target_does_not_answer() -> None:
    other = Target(device="cpu", arch="avx2", torch="2.13.0")
    assert found([record(1)], query(target=other)) == []


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ({"required": {"small", "quick"}}, {1}),
        ({"excluded": {"quick"}}, {2}),
        ({"required": {"small"}, "excluded": {"quick"}}, {2}),
        ({"required": {"unheard"}}, set()),
        ({"most_latency_us": 99.0}, set()),
        ({"most_latency_us": 100.0}, {1, 2}),
        ({"most_bytes": 999}, set()),
        ({"most_parameters": 64}, {1, 2}),
        ({"most_parameters": 63}, set()),
        ({"most_risk": 0.1}, {1, 2}),
        ({"most_risk": 0.05}, set()),
        ({"pipelines": {Pipeline.STANDARD}}, set()),
        ({"blueprints": {f"bp-{2:012x}"}}, {2}),
    ],
)
def test_tags_and_limits_narrow_the_answer(asked: dict[str, Any], answers: set[int]) -> None:
    records = [record(1, tags=("small", "quick")), record(2, tags=("small",))]
    assert set(found(records, query(**asked))) == {f"bp-{number:012x}" for number in answers}


@pytest.mark.parametrize(
    ("lacks", "limit"),
    [
        ({"measurements": {}}, {"most_latency_us": 1e9}),
        ({"numbers": {}}, {"most_bytes": 10**9}),
        ({"numbers": {}}, {"most_parameters": 10**9}),
        ({"risk": None}, {"most_risk": 1.0}),
    ],
)
def test_what_was_not_measured_is_within_no_limit(lacks: dict[str, Any], limit: dict[str, Any]) -> None:
    assert found([record(1, **lacks)], query()) != []
    assert found([record(1, **lacks)], query(**limit)) == []


def test_safer_and_faster_kernels_and_those_with_preferred_tags_come_first() -> None:
    plain, risky = record(1), record(2, risk=0.6)
    fast = record(3, numbers={"speedup": 2.0})
    slow = record(4, numbers={"speedup": 0.5})
    unknown = record(5, risk=None)
    order = found([plain, risky, fast, slow, unknown], query())
    assert order == [f"bp-{number:012x}" for number in (3, 1, 2, 5, 4)]
    tagged = record(6, risk=0.6, tags=("frugal",))
    assert found([plain, fast, tagged], query(preferred={"frugal"}))[0] == tagged.spec.blueprint


def test_the_reasons_name_what_the_score_is_made_of() -> None:
    records = [record(1, tags=("small", "quick"), numbers={"speedup": 1.25}, risk=0.2)]
    (ranked,) = KernelIndex(records).best(query(preferred={"quick", "robust"}))
    assert ranked.reasons == ("risk 0.20", "1.25x the speed of eager", "preferred: quick")
    assert ranked.score == pytest.approx(0.8 + 0.2 + 1.0)


def test_a_later_record_takes_the_place_of_the_earlier_one() -> None:
    index = KernelIndex([record(1), record(2)])
    index.put(record(1, state=KernelState.QUARANTINED))
    index.put(record(2, risk=0.5))
    assert [ranked.record.report.risk for ranked in index.best(query()) if ranked.record.report] == [0.5]
    assert len(index) == 1


kernels = st.lists(
    st.builds(
        lambda number, risk, speedup, tags, exact: record(
            number,
            risk=risk,
            numbers={} if speedup is None else {"speedup": speedup},
            tags=tuple(sorted(tags)),
            interface=KernelInterface.of(SLOT, exact=exact),
        ),
        st.integers(0, 40),
        st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        st.none() | st.sampled_from([0.5, 1.0, 2.0]),
        st.sets(st.sampled_from(TAGS)),
        st.booleans(),
    ),
    max_size=40,
    unique_by=lambda one: one.kernel,
)


@given(
    records=kernels,
    best=st.integers(1, 8),
    preferred=st.sets(st.sampled_from(TAGS)),
    required=st.sets(st.sampled_from(TAGS), max_size=1),
)
def test_stopping_early_leaves_out_nothing_that_is_better(
    records: list[KernelRecord], best: int, preferred: set[str], required: set[str]
) -> None:
    index = KernelIndex(records)
    asked = query(preferred=preferred, required=required)
    everything = index.best(asked.model_copy(update={"best": 1000}))
    assert len(everything) == sum(required <= set(one.report.tags) for one in records if one.report)
    scores = [ranked.score for ranked in everything]
    assert scores == sorted(scores, reverse=True)
    assert index.best(asked.model_copy(update={"best": best})) == everything[:best]
    assert KernelIndex(reversed(records)).best(asked) == index.best(asked)
