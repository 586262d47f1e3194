import asyncio
import hashlib
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import (
    ArtifactError,
    CloudEvent,
    EventType,
    FieldReport,
    InputError,
    KernelState,
    Role,
    canonical_json,
)
from esper_runtime.oona import BundledServer, BusRole
from esper_runtime.urza import Library, Transferred, export_library, import_library
from tests.oona.bus import kill
from tests.urza.libraries import js, say, with_library
from tests.urza.sayings import BLUEPRINT, artifact, compiled, kernel_spec, ruling, verdict

SPEC, OTHER = kernel_spec(), kernel_spec(flags=("other",))


def everything(library: Library) -> dict[BusRole, Library]:
    """One connection that may say everything."""
    return dict.fromkeys(BusRole, library)


async def say_report(library: Library, number: int, digest: str) -> None:
    """A training tells what a kernel did."""
    told = FieldReport(
        kernel=SPEC.kernel_id,
        digest=digest,
        blueprint=SPEC.blueprint,
        run=f"run-{number}",
        seed="s0",
        slot="layers.0",
        outcome="Fossilized",
        steps=100,
        parameters=64,
    )
    event = CloudEvent.new(EventType.REPORT, "/runs/local/x", told, f"report-{number}")
    await js(library).publish(f"esper.run.local.run-{number}.report", event.encoded())


async def fill(library: Library, keyring: KeyRing, folder: Path) -> str:
    """Blueprints, one of them archived; a validated kernel and a superseded one. Returns a digest."""
    identity = await library.enter(BLUEPRINT)
    await library.archive(await library.enter(list(catalogue().values())[-1]), "too large")
    digests = []
    for number, spec in enumerate((SPEC, OTHER)):
        path, digest = artifact(folder, spec, BLUEPRINT, bytes(range(256)) * (1 + 8000 * number))
        await library.put_artifact(path)
        await say(library, keyring, compiled(spec, digest, path.stat().st_size), verdict(spec, digest))
        digests.append(digest)
    await say(library, keyring, ruling(OTHER, "Superseded", 1, by=SPEC.kernel_id))
    for number in range(3):
        await say_report(library, number, digests[0])
    assert identity in await library.blueprints()
    return digests[0]


@pytest.fixture
def exported(server: BundledServer, keyring: KeyRing, tmp_path: Path) -> Path:
    """A library's file; its bus is gone."""

    async def work(library: Library) -> None:
        await fill(library, keyring, tmp_path)
        done = await export_library(library, tmp_path / "library.esper")
        assert (done.blueprints, done.words, done.artifacts, done.left_out) == (2, 5, 2, [])
        assert done.reports == 3

    with_library(server, keyring.trust, work)
    server.stop()
    return tmp_path / "library.esper"


@pytest.fixture
def fresh(tmp_path: Path) -> BundledServer:
    """A server without a library; to be started by the test."""
    return BundledServer(tmp_path / "fresh")


async def state(library: Library) -> tuple[object, ...]:
    """All that a library holds."""
    words = [(role, word.key) for role, word in await library.words()]
    return await library.records(), await library.blueprints(), words, set(await library.artifacts.list())


def test_a_library_comes_back_from_its_file_and_twice_is_as_good_as_once(
    exported: Path, fresh: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        seen: list[tuple[int, int]] = []
        done = await import_library(exported, everything(library), lambda *at: seen.append(at))
        assert (done.blueprints, done.words, done.artifacts, done.left_out) == (2, 5, 2, [])
        assert done.reports == 3
        assert list(await library.reports()) == [f"report-{number}" for number in range(3)]
        assert seen[-1][0] == seen[-1][1] - 2 * len(exported.read_bytes().splitlines(keepends=True)[-1])
        before = await state(library)
        records = await library.records()
        assert records[SPEC.kernel_id].state is KernelState.VALIDATED
        assert records[OTHER.kernel_id].superseded_by == SPEC.kernel_id
        for record in records.values():
            assert record.digest is not None
            await library.fetch_artifact(record.digest, tmp_path / "fetched")
        last = (await js(library).stream_info("LIBRARY")).state.last_seq
        assert await import_library(exported, everything(library)) == Transferred()
        assert await state(library) == before
        assert (await js(library).stream_info("LIBRARY")).state.last_seq == last
        again = tmp_path / "again.esper"
        await export_library(library, again)
        assert again.read_bytes().splitlines()[1:-1] == exported.read_bytes().splitlines()[1:-1]

    with fresh:
        with_library(fresh, keyring.trust, work)


def test_each_role_of_a_guarded_bus_brings_its_own(
    exported: Path, guarded: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        speakers = {
            role: await Library.connect(guarded.address_of(role), keyring.trust)
            for role in (BusRole.TEZZERET, BusRole.URABRASK, BusRole.TRAINING)
        }
        done = await import_library(exported, speakers | {BusRole.PLANNER: library})
        assert (done.blueprints, done.words, done.artifacts, done.reports) == (2, 5, 2, 3)
        for one in speakers.values():
            await one.close()

    with_library(guarded, keyring.trust, work)


def test_what_was_changed_or_cut_off_is_refused_and_changes_nothing(
    exported: Path, fresh: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    data, draw = exported.read_bytes(), random.Random(0)
    bad = tmp_path / "bad.esper"

    async def work(library: Library) -> None:
        nothing = await state(library)
        for _ in range(60):
            changed = bytearray(data)
            changed[draw.choice([draw.randrange(4000), draw.randrange(len(data))])] ^= 1 << draw.randrange(8)
            bad.write_bytes(changed)
            with pytest.raises(ArtifactError):
                await import_library(bad, everything(library))
        for length in [0, 1, len(data) - 1, len(data) - 2, *(draw.randrange(len(data)) for _ in range(30))]:
            bad.write_bytes(data[:length])
            with pytest.raises(ArtifactError):
                await import_library(bad, everything(library))
        time = json.loads(data.split(b"\n", 1)[0])["time"].encode()
        entries = rewritten(data, lambda found: found.insert(0, found.pop(1))).rsplit(b"\n", 2)[0]
        for whole in (
            data.replace(time, b"1" + time[1:], 1),
            entries + b"\n" + data.rsplit(b"\n", 2)[1] + b"\n",
        ):
            assert len(whole) == len(data)
            assert whole != data
            bad.write_bytes(whole)
            with pytest.raises(ArtifactError, match="what comes before the end"):
                await import_library(bad, everything(library))
        bad.write_bytes(data + b"\n")
        with pytest.raises(ArtifactError, match="goes on behind its end"):
            await import_library(bad, everything(library))
        assert await state(library) == nothing

    with fresh:
        with_library(fresh, keyring.trust, work)


def rewritten(data: bytes, change: Callable[[list[tuple[dict, bytes]]], None]) -> bytes:
    """A file whose entries were changed by somebody who makes all its digests right again."""
    header, rest = data.split(b"\n", 1)
    entries = []
    while True:
        line, rest = rest.split(b"\n", 1)
        told = json.loads(line)
        if "fileSha256" in told:
            break
        entries.append((told, rest[: told["bytes"]]))
        rest = rest[told["bytes"] + 1 :]
    change(entries)
    out = header + b"\n"
    for told, payload in entries:
        told |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        out += canonical_json(told) + b"\n" + payload + b"\n"
    end = {"entries": len(entries), "fileSha256": hashlib.sha256(out).hexdigest()}
    return out + canonical_json(end) + b"\n"


def _replace(kind: str, old: bytes, new: bytes) -> Callable[[list[tuple[dict, bytes]]], None]:
    def change(entries: list[tuple[dict, bytes]]) -> None:
        index = next(i for i, (told, data) in enumerate(entries) if told["kind"] == kind and old in data)
        entries[index] = (entries[index][0], entries[index][1].replace(old, new))

    return change


def _as_urabrask(entries: list[tuple[dict, bytes]]) -> None:
    next(told for told, _ in entries if told["kind"] == "tezzeret")["kind"] = "urabrask"


def _rename(kind: str) -> Callable[[list[tuple[dict, bytes]]], None]:
    def change(entries: list[tuple[dict, bytes]]) -> None:
        told = next(told for told, _ in entries if told["kind"] == kind)
        told["name"] = told["name"][:-1] + ("0" if told["name"][-1] != "0" else "1")

    return change


def _drop_words(entries: list[tuple[dict, bytes]]) -> None:
    entries[:] = [one for one in entries if one[0]["kind"] != "tezzeret"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_replace("urabrask", b"0.1", b"0.0"), "does not belong to this statement"),
        (_replace("blueprint", b'"relu"', b'"exec"'), "blueprint bp-"),
        (_replace("blueprint", b'"relu"', b'"silu"'), "its graph is bp-"),
        (_replace("report", b'"steps":100', b'"steps":-1'), "not a field report"),
        (_replace("artifact", b"parts", b"Parts"), "has the digest"),
        (_as_urabrask, "urabrask must have signed it"),
        (_rename("urabrask"), "is that of"),
        (_rename("artifact"), "has the digest"),
        (_rename("blueprint"), "its graph is"),
        (_drop_words, "no word in the file names it"),
    ],
)
def test_digests_that_were_made_right_again_help_no_forger(
    exported: Path,
    fresh: BundledServer,
    keyring: KeyRing,
    tmp_path: Path,
    change: Callable[[list[tuple[dict, bytes]]], None],
    says: str,
) -> None:
    bad = tmp_path / "bad.esper"
    bad.write_bytes(rewritten(exported.read_bytes(), change))

    async def work(library: Library) -> None:
        nothing = await state(library)
        with pytest.raises(ArtifactError, match=says):
            await import_library(bad, everything(library))
        assert await state(library) == nothing

    with fresh:
        with_library(fresh, keyring.trust, work)


def test_a_file_signed_with_keys_that_are_not_ours_is_refused(
    exported: Path, fresh: BundledServer, tmp_path: Path
) -> None:
    stranger = KeyRing(tmp_path / "stranger")

    async def work(library: Library) -> None:
        with pytest.raises(ArtifactError, match="unknown key"):
            await import_library(exported, everything(library))

    with fresh:
        with_library(fresh, stranger.trust, work)


def test_words_of_revoked_and_expired_keys_are_left_out_and_said(
    exported: Path, fresh: BundledServer, keyring: KeyRing
) -> None:
    keyring.rotate(Role.URABRASK, overlap=timedelta(0))
    keyring.revoke(keyring.ensure(Role.PLANNER).key, "lost")

    async def work(library: Library) -> None:
        done = await import_library(exported, everything(library))
        assert (done.words, done.artifacts) == (2, 2)
        assert len(done.left_out) == 3
        assert {record.state for record in (await library.records()).values()} == {"PendingBenchmark"}

    with fresh:
        with_library(fresh, keyring.trust, work)


def test_a_file_of_another_version_is_refused_in_words(
    exported: Path, fresh: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    cases = {
        "version 2": exported.read_bytes().replace(b'"esperLibrary":1', b'"esperLibrary":2', 1),
        "something else": b"{}\n",
        "is no library file": b"\x7fELF" + bytes(100_000),
    }

    async def work(library: Library) -> None:
        for says, data in cases.items():
            bad.write_bytes(data)
            with pytest.raises(ArtifactError, match=says):
                await import_library(bad, everything(library))
        with pytest.raises(InputError, match="cannot be read"):
            await import_library(tmp_path / "nowhere", everything(library))

    with fresh:
        with_library(fresh, keyring.trust, work)


def test_an_import_goes_on_after_the_server_was_killed(
    exported: Path, fresh: BundledServer, keyring: KeyRing
) -> None:
    async def work(library: Library) -> None:
        async def disturb() -> None:
            await asyncio.sleep(0.05)
            await asyncio.to_thread(kill, fresh)
            await asyncio.to_thread(fresh.restart)

        await asyncio.gather(import_library(exported, everything(library)), disturb())
        assert len(await library.words()) == 5
        assert len(await library.artifacts.list()) == 2

    with fresh:
        with_library(fresh, keyring.trust, work)


def test_what_is_broken_or_does_not_count_is_left_out_of_an_export_and_said(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        digest = await fill(library, keyring, tmp_path)
        found = await library.artifacts.find(digest)
        assert found is not None
        await js(library).purge_stream("OBJ_artifacts", subject=f"$O.artifacts.C.{found.chunks}")
        await js(library).publish("$KV.verdicts.x", b"rubbish")
        done = await export_library(library, tmp_path / "file")
        assert (done.words, done.artifacts) == (5, 1)
        assert [any(word in line for line in done.left_out) for word in ("is broken", "malformed")] == [
            True
        ] * 2
        with pytest.raises(InputError, match="cannot be written"):
            await export_library(library, tmp_path / "nowhere" / "file")
        assert not list(tmp_path.glob(".file*"))

    with_library(server, keyring.trust, work)
