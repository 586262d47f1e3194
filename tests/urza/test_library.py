import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, encode_signed, open_artifact
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    LIBRARY_SUBJECT,
    ArtifactError,
    BlueprintError,
    BusError,
    InputError,
    KernelQuery,
    KernelState,
    KernelWish,
    canonical_json,
)
from esper_runtime.oona import BundledServer, BusAddress, BusRole
from esper_runtime.urza import Fault, Library, NoBucketError, word_key
from esper_runtime.urza.bucket import Bucket
from tests.oona.bus import messages
from tests.urza.libraries import put_raw, say, with_library
from tests.urza.sayings import (
    BLUEPRINT,
    SLOT,
    TARGET,
    artifact,
    compiled,
    digest_of,
    failed,
    kernel_spec,
    ruling,
    sign,
    verdict,
)

SPEC = kernel_spec()
A, B = digest_of("a"), digest_of("b")
QUERY = KernelQuery(interface=SLOT, target=TARGET)


def test_a_kernel_goes_from_a_wish_to_a_query_and_back_out_of_it(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        kernel = SPEC.kernel_id
        identity = await library.enter(BLUEPRINT)
        assert await library.wish(KernelWish(spec=SPEC))
        states = [(await library.records())[kernel].state]
        path, digest = artifact(tmp_path, SPEC, BLUEPRINT)
        assert await library.put_artifact(path) == digest
        said = [
            compiled(SPEC, digest, path.stat().st_size),
            verdict(SPEC, digest),
            ruling(SPEC, "Quarantined", 1),
            ruling(SPEC, "Validated", 2),
        ]
        answers = []
        for statement in said:
            assert await say(library, keyring, statement) == [True]
            record = await library.record(kernel)
            assert record is not None
            states.append(record.state)
            answers.append([ranked.record for ranked in await library.query(QUERY)])
        assert states == ["Pending", "PendingBenchmark", "Validated", "Quarantined", "Validated"]
        assert answers == [[], [record.model_copy(update={"reason": ""})], [], [record]]
        assert (await library.lineage(identity)).kernels == (kernel,)
        fetched = tmp_path / "fetched.kernel"
        await library.fetch_artifact(digest, fetched)
        assert record.compiled is not None
        opened = open_artifact(fetched, record.compiled, record.verdict, keyring.trust)
        assert canonical_id(opened.blueprint) == identity
        await library.archive(identity, "too slow")
        assert await library.query(QUERY) == []
        assert (await library.record(kernel)) == record
        assert (await library.blueprints())[identity].archived == "too slow"
        await library.enter(BLUEPRINT)
        assert await library.query(QUERY) == []
        await library.enter(BLUEPRINT, reinstate=True)
        assert len(await library.query(QUERY)) == 1

    with_library(server, keyring.trust, work)
    kinds = [json.loads(json.dumps(event["data"]))["kind"] for event in messages(server.address, "LIBRARY")]
    assert kinds == ["Blueprint", "Compiled", "Verdict", "Ruling", "Ruling", "Blueprint", "Blueprint"]


def test_a_second_process_sees_the_same(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        await library.enter(BLUEPRINT)
        await say(library, keyring, compiled(SPEC, A), verdict(SPEC, A), failed(kernel_spec(flags=("x",))))
        async with await Library.connect(server.address, keyring.trust) as other:
            assert await other.records() == await library.records()
            assert await other.blueprints() == await library.blueprints()
            assert other.incarnation == library.incarnation

    with_library(server, keyring.trust, work)


def test_every_role_says_its_own_with_its_own_credentials(
    guarded: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        path, digest = artifact(tmp_path, SPEC, BLUEPRINT)
        for role, statement in (
            (BusRole.TEZZERET, compiled(SPEC, digest, path.stat().st_size)),
            (BusRole.URABRASK, verdict(SPEC, digest)),
        ):
            async with await Library.connect(guarded.address_of(role), keyring.trust) as own:
                if role is BusRole.TEZZERET:
                    await own.put_artifact(path)
                await own.fetch_artifact(digest, tmp_path / role)
                assert await say(own, keyring, statement) == [True]
        async with await Library.connect(guarded.address_of(BusRole.TRAINING), keyring.trust) as own:
            assert await own.wish(KernelWish(spec=kernel_spec(flags=("x",))))
            await own.fetch_artifact(digest, tmp_path / "training")
            assert len(await own.query(QUERY)) == 1
        assert len(await library.wishes()) == 1

    with_library(guarded, keyring.trust, work)


def test_what_was_said_before_or_is_settled_is_not_said_again(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        first = [compiled(SPEC, A), verdict(SPEC, A), ruling(SPEC, "Quarantined", 1)]
        assert await say(library, keyring, *first) == [True] * 3
        again = [*first, compiled(SPEC, B), failed(SPEC), verdict(SPEC, A, passed=False)]
        assert await say(library, keyring, *again) == [False] * 6
        assert len(await library.words()) == 3

    with_library(server, keyring.trust, work)


def test_a_failure_to_compile_gives_way_to_an_artifact(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        assert await say(library, keyring, failed(SPEC), failed(SPEC, "again")) == [True, False]
        record = await library.record(SPEC.kernel_id)
        assert record is not None
        assert (record.state, record.reason) == (KernelState.REJECTED, "too large")
        assert await say(library, keyring, compiled(SPEC, A)) == [True]
        record = await library.record(SPEC.kernel_id)
        assert record is not None
        assert record.state is KernelState.PENDING_BENCHMARK

    with_library(server, keyring.trust, work)


def test_words_that_do_not_count_are_passed_over_and_counted(
    guarded: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    stranger = KeyRing(tmp_path / "stranger")
    passed = verdict(SPEC, A)
    forged = encode_signed(sign(stranger, passed))
    borrowed = encode_signed(sign(keyring, compiled(SPEC, A)))
    unsigned = canonical_json(passed.model_dump(mode="json", by_alias=True))
    good = encode_signed(sign(keyring, passed))

    async def work(library: Library) -> None:
        maker, judge = (guarded.address_of(role) for role in (BusRole.TEZZERET, BusRole.URABRASK))
        async with await Library.connect(maker, keyring.trust) as own:
            await say(own, keyring, compiled(SPEC, A))
        for data in (forged, borrowed, unsigned, b"", b"\xff", b"{"):
            key = word_key(SPEC.kernel_id, data)
            await put_raw(judge, "verdicts", key, data)
        await put_raw(judge, "verdicts", "nonsense", good)
        refusal = {"Status": "404", "Description": "Message Not Found"}
        await put_raw(judge, "verdicts", "refusal.1", b"", **refusal)
        await put_raw(judge, "verdicts", "refusal.2", b"", Status="503")
        record = await library.record(SPEC.kernel_id)
        assert record is not None
        assert record.state is KernelState.PENDING_BENCHMARK
        counted = Counter(forged=2, unsigned=1, malformed=5, misplaced=1)
        assert library.ignored == Counter({Fault(name): count for name, count in counted.items()})
        assert len(await library.faults()) == 9
        async with await Library.connect(judge, keyring.trust) as own:
            await say(own, keyring, passed)
        record = await library.record(SPEC.kernel_id)
        assert record is not None
        assert record.state is KernelState.VALIDATED
        assert library.ignored.total() == 9

    with_library(guarded, keyring.trust, work)


def test_we_do_not_say_what_we_would_not_believe(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        with pytest.raises(ArtifactError, match="unknown key"):
            await library.publish(sign(KeyRing(tmp_path / "stranger"), verdict(SPEC, A)))
        assert await library.words() == []

    with_library(server, keyring.trust, work)


def test_a_revocation_is_seen_at_the_next_look(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        other = kernel_spec(flags=("other",))
        await say(
            library,
            keyring,
            *(word(s, d) for s, d in ((SPEC, A), (other, B)) for word in (compiled, verdict)),
        )
        assert len(await library.query(QUERY)) == 2
        keyring.revoke(A, "leaks")
        assert [ranked.record.digest for ranked in await library.query(QUERY)] == [B]
        assert list(await library.records()) == [other.kernel_id]
        assert library.ignored == Counter({Fault.FORGED: 2})
        assert await say(library, keyring, compiled(SPEC, digest_of("c"))) == [True]
        key = keyring.ensure(sign_role := keyring.trust.keys.keys[1].role)
        keyring.revoke(key.key, "lost")
        assert sign_role == "urabrask"
        assert await library.query(QUERY) == []

    with_library(server, keyring.trust, work)


def test_two_writers_at_once_leave_one_record(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        others = [await Library.connect(server.address, keyring.trust, keeper=True) for _ in range(4)]
        digests = [digest_of(str(number)) for number in range(len(others))]
        try:
            await asyncio.gather(
                *(say(one, keyring, compiled(SPEC, d)) for one, d in zip(others, digests, strict=True)),
                *(one.enter(BLUEPRINT, f"writer-{n}") for n, one in enumerate(others)),
                *(
                    one.wish(KernelWish(spec=kernel_spec(flags=("w",)), urgent=n == 2))
                    for n, one in enumerate(others)
                ),
            )
            await asyncio.gather(*(say(one, keyring, *(verdict(SPEC, d) for d in digests)) for one in others))
            seen = [await one.records() for one in (library, *others)]
            assert all(one == seen[0] for one in seen)
            assert seen[0][SPEC.kernel_id].state is KernelState.VALIDATED
            assert len(await library.blueprints()) == 1
            (wish,) = (await library.wishes()).values()
            assert wish.urgent
            assert library.ignored.total() == 0
        finally:
            for one in others:
                await one.close()

    with_library(server, keyring.trust, work)


def test_archiving_and_reinstating_at_once_lose_neither_entry_nor_order(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        identity = await library.enter(BLUEPRINT)
        other = await Library.connect(server.address, keyring.trust, keeper=True)
        await asyncio.gather(
            *(library.archive(identity, f"reason {n}") for n in range(5)),
            *(other.enter(BLUEPRINT, reinstate=True) for _ in range(5)),
        )
        await other.close()
        await library.archive(identity, "at last")
        entry = (await library.blueprints())[identity]
        assert entry.archived is not None
        assert entry.graph == BLUEPRINT

    with_library(server, keyring.trust, work)


def test_the_storage_of_a_blueprint_is_checked_like_a_persons_file(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        identity = await library.enter(BLUEPRINT)
        entry = (await library.blueprints())[identity]
        good = entry.model_dump_json(by_alias=True).encode()
        other = canonical_id(list(catalogue().values())[-1])
        await put_raw(server.address, "blueprints", other, good)
        strange = good.replace(b'"op":"relu"', b'"op":"exec"')
        assert strange != good
        await put_raw(server.address, "blueprints", "bp-" + "0" * 12, strange)
        await put_raw(server.address, "blueprints", "bp-" + "1" * 12, b"\x80")
        assert list(await library.blueprints()) == [identity]
        assert library.ignored.total() == 3

    with_library(server, keyring.trust, work)


def test_a_wish_that_becomes_urgent_is_said_again(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        wishes = [KernelWish(spec=SPEC), KernelWish(spec=SPEC), KernelWish(spec=SPEC, urgent=True)]
        assert [await library.wish(one) for one in (*wishes, wishes[0])] == [True, False, True, False]
        assert (await library.wishes())[SPEC.kernel_id].urgent

    with_library(server, keyring.trust, work)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_urgent_wish_is_not_overtaken_by_one_that_is_not(
    server: BundledServer, keyring: KeyRing, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async def work(library: Library) -> None:
        other = await Library.connect(server.address, keyring.trust)
        real = Bucket.last

        async def last(bucket: Bucket, key: str) -> int:
            """The other's wish comes just before or just after one looks what there is."""
            monkeypatch.setattr(Bucket, "last", real)
            if when == "before":
                await other.wish(KernelWish(spec=SPEC, urgent=True))
            found = await real(bucket, key)
            if when == "after":
                await other.wish(KernelWish(spec=SPEC, urgent=True))
            return found

        monkeypatch.setattr(Bucket, "last", last)
        assert await library.wish(KernelWish(spec=SPEC)) is False
        assert (await library.wishes())[SPEC.kernel_id].urgent
        await other.close()

    with_library(server, keyring.trust, work)


def test_mistakes_are_refused_in_words(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        identity = await library.enter(BLUEPRINT)
        with pytest.raises(InputError, match=f"nearest: {identity}"):
            await library.archive(identity[:-1] + "x", "why")
        with pytest.raises(InputError, match="1 to 500"):
            await library.archive(identity, "")
        with pytest.raises(BlueprintError):
            await library.enter(BLUEPRINT.model_copy(update={"output": "nowhere"}))

    with_library(server, keyring.trust, work)


def test_a_mark_of_deletion_among_words_is_a_word_that_does_not_count(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        before = library.ignored[Fault.MALFORMED]
        for number, mark in enumerate(("DEL", "PURGE")):
            await put_raw(server.address, "verdicts", f"ck.{number}", b"", **{"KV-Operation": mark})
        await library.refresh()
        assert library.ignored[Fault.MALFORMED] == before + 2

    with_library(server, keyring.trust, work)


def test_a_bus_without_a_library_says_so_to_who_does_not_make_one(
    server: BundledServer, keyring: KeyRing
) -> None:
    with pytest.raises(NoBucketError, match="no library"):
        asyncio.run(Library.connect(server.address, keyring.trust))


def test_a_bus_that_is_not_there_is_said_to_be(keyring: KeyRing) -> None:
    with pytest.raises(BusError, match="cannot be reached"):
        asyncio.run(Library.connect(BusAddress(url="nats://127.0.0.1:1"), keyring.trust, patience=0.5))


def test_watchers_are_told_by_an_event(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        reader = await Library.connect(server.address, keyring.trust)
        seen = []

        async def read() -> None:
            async for record in reader.watch():
                seen.append(record.state.value)
                if record.state is KernelState.SUPERSEDED:
                    return

        reading = asyncio.create_task(read())
        for statement in (compiled(SPEC, A), verdict(SPEC, A), ruling(SPEC, "Superseded", 1)):
            await say(library, keyring, statement)
        await asyncio.wait_for(reading, 10)
        assert seen[-1] == "Superseded"
        await reader.close()

    with_library(server, keyring.trust, work)
    assert len(messages(server.address, "LIBRARY", LIBRARY_SUBJECT)) == 3
