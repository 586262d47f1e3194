from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.artifact import KeyRing, encode_signed
from esper_runtime.contracts import KernelState, KernelWish, Role, Signed, canonical_json
from esper_runtime.urza import Fault, Word, fold, hear, word_key
from tests.urza.sayings import compiled, digest_of, failed, kernel_spec, ruling, sign, verdict

SPEC = kernel_spec()
A, B = digest_of("a"), digest_of("b")


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def said(keyring: KeyRing) -> dict[str, Word]:
    """Words that contradict each other in every way they can, with real signatures."""
    statements = {
        "made a": compiled(SPEC, A),
        "made b": compiled(SPEC, B),
        "failed": failed(SPEC),
        "a passed": verdict(SPEC, A),
        "a failed": verdict(SPEC, A, passed=False),
        "b failed": verdict(SPEC, B, passed=False),
        "quarantined": ruling(SPEC, "Quarantined", 1),
        "reinstated": ruling(SPEC, "Validated", 2),
        "superseded": ruling(SPEC, "Superseded", 3, by="ck-" + "1" * 12),
    }
    return {name: Word(statement, sign(keyring, statement)) for name, statement in statements.items()}


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["made a"], KernelState.PENDING_BENCHMARK),
        (["made a", "a passed"], KernelState.VALIDATED),
        (["made a", "a failed"], KernelState.REJECTED),
        (["failed"], KernelState.REJECTED),
        (["failed", "made a", "a passed"], KernelState.VALIDATED),
        (["made a", "b failed"], KernelState.PENDING_BENCHMARK),
        (["made b", "a passed"], KernelState.PENDING_BENCHMARK),
        (["made a", "made b", "a passed", "b failed"], KernelState.VALIDATED),
        (["made b", "made a", "a passed", "b failed"], KernelState.REJECTED),
        (["made a", "a passed", "a failed"], KernelState.VALIDATED),
        (["made a", "a failed", "a passed"], KernelState.REJECTED),
        (["made a", "a passed", "quarantined"], KernelState.QUARANTINED),
        (["made a", "a passed", "reinstated", "quarantined"], KernelState.VALIDATED),
        (["made a", "a passed", "superseded", "reinstated"], KernelState.SUPERSEDED),
        (["made a", "reinstated"], KernelState.PENDING_BENCHMARK),
        (["made a", "a failed", "reinstated"], KernelState.REJECTED),
    ],
)
def test_a_state_follows_from_what_was_said(
    said: dict[str, Word], words: list[str], state: KernelState
) -> None:
    record = fold([said[name] for name in words])
    assert record is not None
    assert record.state is state


def test_nothing_is_known_where_nothing_was_said() -> None:
    assert fold([]) is None


def test_verdicts_and_rulings_about_what_nobody_made_are_no_record(said: dict[str, Word]) -> None:
    assert fold([said["a passed"], said["superseded"]]) is None


def test_a_wish_alone_is_pending_and_gives_way_to_what_was_said(said: dict[str, Word]) -> None:
    wish = KernelWish(spec=SPEC)
    pending = fold([], wish)
    assert pending is not None
    assert (pending.kernel, pending.state) == (SPEC.kernel_id, KernelState.PENDING)
    assert fold([said["made a"]], wish) == fold([said["made a"]])


def test_a_record_carries_the_words_it_follows_from(said: dict[str, Word]) -> None:
    record = fold([said[name] for name in ("made a", "a passed", "superseded")])
    assert record is not None
    assert record.compiled == said["made a"].signed
    assert record.verdict == said["a passed"].signed
    assert (record.digest, record.superseded_by) == (A, "ck-" + "1" * 12)
    assert record.reason == "Superseded at 3"


@given(data=st.data())
def test_only_the_order_within_a_role_matters(said: dict[str, Word], data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(list(said.values())), max_size=12))
    roles: dict[str, list[Word]] = {"Compiled": [], "Verdict": [], "Ruling": []}
    for word in words:
        roles[word.statement.kind.replace("CompileFailed", "Compiled")].append(word)
    turns = data.draw(st.permutations([role for role, own in roles.items() for _ in own]))
    queues = {role: iter(own) for role, own in roles.items()}
    assert fold([next(queues[role]) for role in turns]) == fold(words)


@given(data=st.data())
def test_the_order_of_rulings_is_that_of_their_times(said: dict[str, Word], data: st.DataObject) -> None:
    rulings = [said[name] for name in ("quarantined", "reinstated", "superseded")]
    words = [said["made a"], said["a passed"]]
    assert fold(words + data.draw(st.permutations(rulings))) == fold(words + rulings)


@given(data=st.data())
def test_saying_it_again_changes_nothing(said: dict[str, Word], data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(list(said.values())), max_size=8))
    assert fold(words) == fold(words + words)


@given(data=st.data())
def test_a_kernel_is_validated_only_by_a_verdict_on_its_own_artifact(
    said: dict[str, Word], data: st.DataObject
) -> None:
    record = fold(data.draw(st.lists(st.sampled_from(list(said.values())), max_size=12)))
    if record is not None and record.state is KernelState.VALIDATED:
        assert record.verdict == said["a passed"].signed
        assert record.compiled == said["made a"].signed


def test_a_word_is_heard_with_its_roles_signature_under_its_own_key(keyring: KeyRing) -> None:
    for statement, role in ((compiled(SPEC, A), Role.TEZZERET), (verdict(SPEC, A), Role.URABRASK)):
        word = Word(statement, sign(keyring, statement))
        assert hear(word.encoded, role, word.key, keyring.trust) == word


def test_what_does_not_count_is_told_apart(keyring: KeyRing, tmp_path: Path) -> None:
    said = verdict(SPEC, A)
    signed = sign(keyring, said)
    other = sign(KeyRing(tmp_path / "other"), said)
    swapped = Signed(statement=signed.statement, signature=other.signature)
    changed = Signed(statement=signed.statement.replace("0.1", "0.2"), signature=signed.signature)
    borrowed = sign(keyring, compiled(SPEC, A))
    cases = {
        Fault.MALFORMED: [b"", b"{", b"\xff\xfe", b"7", b"[]", b" " + encode_signed(signed)],
        Fault.UNSIGNED: [
            canonical_json(said.model_dump(mode="json", by_alias=True)),
            canonical_json({"statement": signed.statement}),
            canonical_json({"statement": signed.statement, "signature": None}),
        ],
        Fault.FORGED: [encode_signed(one) for one in (other, swapped, changed, borrowed)],
    }
    for fault, values in cases.items():
        for value in values:
            key = word_key(SPEC.kernel_id, value)
            assert hear(value, Role.URABRASK, key, keyring.trust) is fault, (fault, value)
    key = word_key("ck-" + "0" * 12, encode_signed(signed))
    assert hear(encode_signed(signed), Role.URABRASK, key, keyring.trust) is Fault.MISPLACED
    assert hear(encode_signed(signed), Role.URABRASK, SPEC.kernel_id, keyring.trust) is Fault.MISPLACED


def test_a_revoked_digest_unsays_what_was_said(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    statement = compiled(SPEC, A)
    word = Word(statement, sign(ring, statement))
    assert hear(word.encoded, Role.TEZZERET, word.key, ring.trust) == word
    ring.revoke(A, "leaks")
    assert hear(word.encoded, Role.TEZZERET, word.key, ring.trust) is Fault.FORGED
