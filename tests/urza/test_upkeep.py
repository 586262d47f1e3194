from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import KernelState
from esper_runtime.oona import BundledServer
from esper_runtime.urza import Library, collect_garbage, verify_library
from tests.urza.libraries import js, say, with_library
from tests.urza.sayings import BLUEPRINT, artifact, compiled, kernel_spec, ruling, verdict

SPEC, OTHER, THIRD = kernel_spec(), kernel_spec(flags=("other",)), kernel_spec(flags=("third",))


async def make(library: Library, keyring: KeyRing, folder: Path, *, named: bool = True) -> list[str]:
    """Three artifacts, of which two are named by words."""
    digests = []
    for spec in (SPEC, OTHER, THIRD):
        path, digest = artifact(folder, spec, BLUEPRINT)
        await library.put_artifact(path)
        if named and spec is not THIRD:
            await say(library, keyring, compiled(spec, digest, path.stat().st_size), verdict(spec, digest))
        digests.append(digest)
    return digests


def test_only_artifacts_that_no_word_names_are_garbage(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        digests = await make(library, keyring, tmp_path)
        await say(library, keyring, ruling(OTHER, "Quarantined", 1))
        await js(library).publish("$O.artifacts.C.cutoff", b"x" * 1000)
        keyring.revoke(digests[0], "leaks")
        assert (await collect_garbage(library)).artifacts == ()
        planned = await collect_garbage(library, dry_run=True, grace=0)
        assert [one.digest for one in planned.artifacts] == [digests[2]]
        assert planned.orphans == {"cutoff": 1}
        assert set(await library.artifacts.list()) == set(digests)
        assert await collect_garbage(library, grace=0) == planned
        assert set(await library.artifacts.list()) == set(digests[:2])
        left = await collect_garbage(library, grace=0)
        assert (left.artifacts, left.orphans) == ((), {})
        for digest in digests[:2]:
            await library.fetch_artifact(digest, tmp_path / "fetched")
        assert (await js(library).stream_info("OBJ_artifacts")).state.messages == 4

    with_library(server, keyring.trust, work)


def test_a_removed_artifact_can_be_stored_again(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        digests = await make(library, keyring, tmp_path, named=False)
        await collect_garbage(library, grace=0)
        assert await library.artifacts.list() == {}
        assert set(await make(library, keyring, tmp_path)) == set(digests)

    with_library(server, keyring.trust, work)


def test_verifying_says_of_every_kernel_whether_it_is_what_was_signed(
    server: BundledServer, keyring: KeyRing, tmp_path: Path
) -> None:
    async def work(library: Library) -> None:
        digests = await make(library, keyring, tmp_path)
        swapped, wrong = artifact(tmp_path, kernel_spec(flags=("swapped",)), BLUEPRINT)
        await library.put_artifact(swapped)
        await say(library, keyring, compiled(THIRD, wrong, swapped.stat().st_size))
        await js(library).publish("$KV.verdicts.x", b"rubbish")
        found = {one.what: one for one in await verify_library(library)}
        assert {what for what, one in found.items() if one.passed} == {SPEC.kernel_id, OTHER.kernel_id}
        assert "describes" in found[THIRD.kernel_id].says
        assert "malformed" in found["verdicts/x"].says
        one = await library.artifacts.find(digests[0])
        assert one is not None
        await library.artifacts.remove(one)
        found = {one.what: one for one in await verify_library(library)}
        assert "lacks the artifact" in found[SPEC.kernel_id].says
        record = await library.record(SPEC.kernel_id)
        assert record is not None
        assert record.state is KernelState.VALIDATED

    with_library(server, keyring.trust, work)


def test_an_artifact_that_is_stored_again_waits_anew_for_its_word(
    server: BundledServer, keyring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.urza.artifacts.FRESH", -1.0)

    async def work(library: Library) -> None:
        path, digest = artifact(tmp_path, SPEC, BLUEPRINT)
        times = []
        for _ in range(2):
            await library.put_artifact(path)
            (one,) = (await library.artifacts.list()).values()
            times.append(one.stored)
        assert times[1] > times[0]
        await library.fetch_artifact(digest, tmp_path / "fetched")
        assert (await collect_garbage(library, grace=0)).orphans == {}

    with_library(server, keyring.trust, work)
