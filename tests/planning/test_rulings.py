"""Kernels that were validated are superseded, quarantined and reinstated by rule."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.contracts import FieldReport, KernelNote, KernelRecord, KernelState, Pipeline
from esper_runtime.planning import (
    ForgeState,
    Quarantine,
    QuarantineRule,
    Reinstate,
    Supersede,
    plan_forge,
    supersedes,
)
from tests.planning.forge_world import digest, record, spec

SPEC = spec(1)
VALIDATED = record(SPEC, KernelState.VALIDATED)
QUARANTINED = record(SPEC, KernelState.QUARANTINED)


def report(run: str, failure: str | None = None, of: str = digest(7)) -> FieldReport:
    return FieldReport(
        kernel=SPEC.kernel_id,
        digest=of,
        blueprint=SPEC.blueprint,
        run=run,
        seed="s1",
        slot="0",
        outcome="Culled" if failure else "Fossilized",
        failure=failure,
        steps=10,
        parameters=3,
    )


def state(*records: KernelRecord, **more: object) -> ForgeState:
    return ForgeState(now=0, records={each.kernel: each for each in records}, **more)  # type: ignore[arg-type]


def ruled(*records: KernelRecord, **more: object) -> tuple[object, ...]:
    return plan_forge(state(*records, **more)).actions


def runs(failing: int, sound: int) -> list[FieldReport]:
    bad = [report(f"bad-{n}", "RuntimeError") for n in range(failing)]
    return bad + [report(f"good-{n}") for n in range(sound)]


@pytest.mark.parametrize(
    ("failing", "sound", "convicted"),
    [(0, 0, False), (1, 0, False), (1, 9, False), (2, 0, True), (2, 3, True), (2, 4, False), (8, 30, True)],
)
def test_failures_in_several_runs_convict_where_their_share_is_surely_too_large(
    failing: int, sound: int, convicted: bool
) -> None:
    actions = ruled(VALIDATED, reports=runs(failing, sound))
    assert [type(action) for action in actions] == ([Quarantine] if convicted else [])


def test_many_failures_in_one_run_are_one_failing_run() -> None:
    assert ruled(VALIDATED, reports=[report("r", "boom")] * 50) == ()


def test_reports_on_another_artifact_of_the_kernel_do_not_count() -> None:
    others = [report(f"r{n}", "boom", of=digest(8)) for n in range(5)]
    assert ruled(VALIDATED, reports=others) == ()


def test_being_culled_is_no_failure() -> None:
    culled = [report(f"r{n}").model_copy(update={"outcome": "Culled"}) for n in range(5)]
    assert ruled(VALIDATED, reports=culled) == ()


def test_a_quarantine_lasts_until_a_person_pardons_the_runs() -> None:
    reports = runs(2, 0)
    assert ruled(QUARANTINED, reports=reports) == ()
    assert ruled(QUARANTINED, reports=reports + runs(0, 100)) == ()
    note = KernelNote(kernel=SPEC.kernel_id, pardoned=("bad-0", "bad-1"))
    pardoned = {"notes": {SPEC.kernel_id: note}, "reports": reports}
    assert [type(action) for action in ruled(QUARANTINED, **pardoned)] == [Reinstate]
    assert ruled(VALIDATED, **pardoned) == ()


def test_a_revoked_digest_is_quarantined_while_it_is_revoked() -> None:
    [out] = ruled(VALIDATED, revoked=frozenset({digest(7)}))
    assert isinstance(out, Quarantine)
    assert "revoked" in out.reason
    assert ruled(QUARANTINED, revoked=frozenset({digest(7)})) == ()
    assert [type(action) for action in ruled(QUARANTINED)] == [Reinstate]


@given(failing=st.integers(0, 40), sound=st.integers(0, 40))
def test_one_more_failing_run_never_acquits_and_one_more_sound_run_never_convicts(
    failing: int, sound: int
) -> None:
    rule = QuarantineRule()
    if rule.convicts(failing, failing + sound):
        assert rule.convicts(failing + 1, failing + 1 + sound)
    else:
        assert not rule.convicts(failing, failing + sound + 1)


def made(pipeline: Pipeline = Pipeline.FAST, state_: str = "Validated", **more: object) -> KernelRecord:
    toolchain = {name: str(value) for name, value in more.items() if name not in ("trains", "speedup")}
    rest = {name: value for name, value in more.items() if name in ("trains", "speedup")}
    return record(spec(1, pipeline, **toolchain), KernelState(state_), **rest)  # type: ignore[arg-type]


def test_a_kernel_made_with_newer_tools_supersedes_the_old_one_once_it_is_validated() -> None:
    old, new = made(esper="0.9.0"), made(esper="0.10.0")
    [action] = ruled(old, new)
    assert isinstance(action, Supersede)
    assert (action.kernel, action.by) == (old.kernel, new.kernel)
    assert ruled(made(esper="0.9.0", state_="Superseded"), new) == ()


def test_a_kernel_that_is_not_validated_supersedes_nothing() -> None:
    for state_ in ("PendingBenchmark", "Rejected", "Quarantined"):
        actions = ruled(made(esper="1"), made(esper="2", state_=state_), reports=runs(2, 0))
        assert not [action for action in actions if isinstance(action, Supersede)]


def test_what_is_superseded_comes_back_when_the_newer_one_is_quarantined() -> None:
    old, new = made(esper="1", state_="Superseded"), made(esper="2")
    actions = ruled(old, new, revoked=frozenset({digest(7)}))
    assert {type(action) for action in actions} == {Quarantine}
    other = new.model_copy(update={"digest": digest(9)})
    actions = ruled(old, other, revoked=frozenset({digest(9)}))
    assert [type(action) for action in actions] == [Quarantine, Reinstate]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (made(esper="1", gcc="2"), made(esper="2", gcc="1")),
        (made(esper="1"), made(esper="1", gcc="1")),
        (made(esper="1"), made(esper="2", trains=False)),
        (made(esper="1"), made(Pipeline.STANDARD, esper="2")),
        (made(Pipeline.STANDARD, esper="1", speedup=2.0), made(Pipeline.AGGRESSIVE, esper="1", speedup=1.5)),
        (made(Pipeline.STANDARD, esper="1", speedup=2.0), made(Pipeline.AGGRESSIVE, esper="1")),
    ],
    ids=["mixed tools", "other tools", "does not train", "fast is kept", "slower", "not measured"],
)
def test_what_is_not_better_in_every_way_supersedes_nothing(old: KernelRecord, new: KernelRecord) -> None:
    assert ruled(old, new) == ()


records = st.builds(
    made,
    st.sampled_from(list(Pipeline)),
    st.sampled_from(["Validated", "Superseded", "Quarantined"]),
    esper=st.integers(1, 3),
    gcc=st.integers(1, 2),
    trains=st.booleans(),
    speedup=st.sampled_from([None, 0.5, 1.0, 2.0]),
)


@given(st.lists(records, min_size=3, max_size=3))
def test_superseding_is_a_strict_order(three: list[KernelRecord]) -> None:
    for a, b, c in product(three, repeat=3):
        assert not supersedes(a, a)
        if supersedes(a, b) and supersedes(b, c):
            assert supersedes(a, c)


@given(st.lists(records, max_size=8), st.lists(st.integers(0, 6), max_size=8))
def test_rulings_settle_at_once_and_leave_something_in_use(many: list[KernelRecord], bad: list[int]) -> None:
    known = {each.kernel: each for each in many}
    reports = [
        report(f"r{n}", "boom").model_copy(update={"kernel": each.kernel})
        for n, each in zip(bad, known.values(), strict=False)
    ]
    before = dict(known)
    for _ in range(3):
        actions = plan_forge(ForgeState(now=0, records=known, reports=reports)).actions
        for action in actions:
            new = {Supersede: "Superseded", Quarantine: "Quarantined", Reinstate: "Validated"}[type(action)]
            known[action.kernel] = known[action.kernel].model_copy(update={"state": KernelState(new)})
    assert plan_forge(ForgeState(now=0, records=known, reports=reports)).actions == ()
    usable = [each for each in known.values() if each.state is not KernelState.QUARANTINED]
    assert not usable or any(each.state is KernelState.VALIDATED for each in usable)
    assert before.keys() == known.keys()
