import asyncio
import shutil
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import ArtifactError, BusError, InputError, KernelState
from esper_runtime.oona import ARTIFACTS, BundledServer, BusRole
from esper_runtime.urza import Library, NoBucketError
from tests.oona.bus import kill
from tests.urza.libraries import js, say, until, with_library
from tests.urza.sayings import BLUEPRINT, artifact, compiled, digest_of, kernel_spec, sign, verdict

SPEC = kernel_spec()
A = digest_of("a")
STREAM = f"OBJ_{ARTIFACTS}"


def big(folder: Path, size: int = 5_000_000, flag: str = "big") -> tuple[Path, str]:
    """A real artifact of several chunks."""
    spec = kernel_spec(flags=(flag,))
    noise = bytes(range(256)) * (size // 256)
    return artifact(folder, spec, BLUEPRINT, noise)


async def restart_soon(server: BundledServer, after: float) -> None:
    """Kill the server, and start it again on its files."""
    await asyncio.sleep(after)
    await asyncio.to_thread(kill, server)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(server.restart)


def test_a_server_killed_in_the_middle_of_puts_loses_nothing(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    specs = [kernel_spec(flags=(str(number),)) for number in range(60)]

    async def work(library: Library) -> None:
        path, digest = big(tmp_path)

        async def talk() -> None:
            for spec in specs:
                await say(library, keyring, compiled(spec, A))

        async def store() -> None:
            assert await library.put_artifact(path) == digest

        async def disturb() -> None:
            for _ in range(3):
                await restart_soon(server, 0.15)

        await asyncio.gather(talk(), store(), disturb())
        records = await library.records()
        assert set(records) == {spec.kernel_id for spec in specs}
        assert len(await library.words()) == len(specs)
        await library.fetch_artifact(digest, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == path.read_bytes()

    with_library(server, keyring.trust, work)


def test_a_watcher_goes_on_after_the_server_was_killed(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        watching = await Library.connect(server.address, keyring.trust)
        seen: dict[str, KernelState] = {}

        async def read() -> None:
            async for record in watching.watch(current=True):
                seen[record.kernel] = record.state

        reading = asyncio.create_task(read())
        await say(library, keyring, compiled(SPEC, A))
        await restart_soon(server, 0)
        await say(library, keyring, verdict(SPEC, A))

        async def told() -> bool:
            return seen.get(SPEC.kernel_id) is KernelState.VALIDATED

        await until(told)
        assert not reading.done()
        reading.cancel()
        await watching.close()

    with_library(server, keyring.trust, work)


def test_lost_storage_is_seen_by_a_new_incarnation(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        await say(library, keyring, compiled(SPEC, A))
        reader = await Library.connect(server.address, keyring.trust)
        sleeper = await Library.connect(server.address, keyring.trust)
        before = library.incarnation
        assert before is not None
        assert reader.incarnation == before
        await restart_soon(server, 0)
        assert len(await library.records()) == 1
        assert library.incarnation == before
        await asyncio.to_thread(server.stop)
        shutil.rmtree(tmp_path / "bus" / "streams")
        await asyncio.to_thread(server.start)
        with pytest.raises(NoBucketError):
            await reader.records()
        assert await library.records() == {}
        assert library.incarnation not in (None, before)
        anew = [kernel_spec(flags=(str(number),)) for number in range(3)]
        assert await say(library, keyring, *(compiled(spec, A) for spec in anew)) == [True] * 3
        for one in (reader, sleeper):
            assert set(await one.records()) == {spec.kernel_id for spec in anew}
            assert one.incarnation == library.incarnation
            await one.close()

    with_library(server, keyring.trust, work)


def test_a_library_that_was_half_made_is_finished_by_its_keeper(
    server: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        await js(library).purge_stream("KV_blueprints")
        async with await Library.connect(server.address, keyring.trust) as reader:
            assert reader.incarnation is None
        async with await Library.connect(server.address, keyring.trust, keeper=True) as other:
            assert other.incarnation is not None
            await library.refresh()
            assert library.incarnation == other.incarnation

    with_library(server, keyring.trust, work)


def test_what_an_administrator_purged_is_gone_for_everybody(server: BundledServer, keyring: KeyRing) -> None:
    async def work(library: Library) -> None:
        await say(library, keyring, compiled(SPEC, A), compiled(kernel_spec(flags=("x",)), A))
        reader = await Library.connect(server.address, keyring.trust)
        assert len(await reader.records()) == 2
        await js(library).purge_stream("KV_compiled", subject=f"$KV.compiled.{SPEC.kernel_id}.*")
        assert len(await reader.records()) == 1
        await reader.close()

    with_library(server, keyring.trust, work)


def test_an_artifact_is_stored_once_and_in_chunks(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        path, digest = big(tmp_path)
        assert await library.artifacts.put(path) == (digest, True)
        assert await library.artifacts.put(path) == (digest, False)
        state = (await js(library).stream_info(STREAM)).state
        assert state.messages == -(-path.stat().st_size // (1024 * 1024)) + 1
        put = await asyncio.gather(*(library.artifacts.put(big(tmp_path, flag="b")[0]) for _ in range(3)))
        assert sorted(stored for _, stored in put) == [False, False, True]
        assert len(await library.artifacts.list()) == 2

    with_library(server, keyring.trust, work)


def test_the_tools_of_nats_read_what_is_stored(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        path, digest = big(tmp_path)
        await library.put_artifact(path)
        store = await js(library).object_store(ARTIFACTS)
        assert (await store.get_info(digest)).size == path.stat().st_size
        with (tmp_path / "theirs").open("wb") as file:
            await store.get(digest, writeinto=file)
        assert (tmp_path / "theirs").read_bytes() == path.read_bytes()

    with_library(server, keyring.trust, work)


def test_a_corrupted_object_is_refused_and_healed_by_the_next_put(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        path, digest = big(tmp_path)
        await library.put_artifact(path)
        found = await library.artifacts.find(digest)
        assert found is not None
        chunk = await js(library).get_msg(STREAM, seq=1, subject=f"$O.{ARTIFACTS}.C.>", next=True)
        assert chunk.seq is not None
        await js(library).delete_msg(STREAM, chunk.seq)
        await js(library).publish(f"$O.{ARTIFACTS}.C.{found.chunks}", chunk.data or b"")
        target = tmp_path / "out" / "fetched"
        target.parent.mkdir()
        with pytest.raises(ArtifactError, match="is broken in the library"):
            await library.fetch_artifact(digest, target)
        assert list(target.parent.iterdir()) == []
        assert await library.artifacts.put(path) == (digest, True)
        await library.fetch_artifact(digest, target)
        assert target.read_bytes() == path.read_bytes()

    with_library(server, keyring.trust, work)


def test_an_object_that_never_ends_is_read_no_further_than_it_was_said_to_be(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        path, digest = big(tmp_path)
        await library.put_artifact(path)
        found = await library.artifacts.find(digest)
        assert found is not None
        for _ in range(20):
            await js(library).publish(f"$O.{ARTIFACTS}.C.{found.chunks}", b"x" * 1000)
        await library.fetch_artifact(digest, tmp_path / "fetched")
        assert (tmp_path / "fetched").stat().st_size == path.stat().st_size

    with_library(server, keyring.trust, work)


def test_fetching_says_what_is_wrong(server: BundledServer, keyring: KeyRing, tmp_path: Path) -> None:
    async def work(library: Library) -> None:
        with pytest.raises(ArtifactError, match="lacks the artifact"):
            await library.fetch_artifact(A, tmp_path / "x")
        path, digest = big(tmp_path)
        await library.put_artifact(path)
        with pytest.raises(InputError, match="cannot be written"):
            await library.fetch_artifact(digest, tmp_path / "nowhere" / "x")
        with pytest.raises(InputError, match="cannot be read"):
            await library.put_artifact(tmp_path / "nowhere")
        (tmp_path / "empty").touch()
        with pytest.raises(InputError, match="0 bytes"):
            await library.put_artifact(tmp_path / "empty")

    with_library(server, keyring.trust, work)


def test_who_may_not_write_is_told_within_its_patience(guarded: BundledServer, keyring: KeyRing) -> None:
    async def work(_: Library) -> None:
        address = guarded.address_of(BusRole.TRAINING)
        async with await Library.connect(address, keyring.trust, patience=1.0) as own:
            with pytest.raises(BusError, match="not acknowledged within 1 s"):
                await own.publish(sign(keyring, verdict(SPEC, A)))
            assert await own.words() == []

    with_library(guarded, keyring.trust, work)
