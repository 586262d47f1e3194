"""The library from the command line: this machine's own bus, real artifacts, real signatures."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import Role
from esper_runtime.local.home import HomeBus
from esper_runtime.oona import BundledServer, BusRole
from esper_runtime.urza import Library
from tests.urza.libraries import js, say, with_library
from tests.urza.sayings import BLUEPRINT, artifact, compiled, failed, kernel_spec, ruling, verdict

SPEC, OTHER, BAD = (kernel_spec(flags=flags) for flags in ((), ("other",), ("bad",)))
BP = canonical_id(BLUEPRINT)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder."""
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bus(home: Path) -> Iterator[HomeBus]:
    """The machine's bus, running as long as the test."""
    with HomeBus("run", home) as bus:
        yield bus


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A person's blueprint."""
    path = tmp_path / "mine.json"
    path.write_text(BLUEPRINT.model_dump_json(by_alias=True))
    return path


def fill(bus: HomeBus, folder: Path) -> list[str]:
    """Two validated kernels, one of them superseded, and one that could not be made."""
    keyring = KeyRing(bus.home)

    async def work() -> list[str]:
        digests = []
        planner, tezzeret, urabrask = [
            await Library.connect(bus.address_of(role), keyring.trust, keeper=role is BusRole.PLANNER)
            for role in (BusRole.PLANNER, BusRole.TEZZERET, BusRole.URABRASK)
        ]
        for spec in (SPEC, OTHER):
            path, digest = artifact(folder, spec, BLUEPRINT)
            await tezzeret.put_artifact(path)
            await say(tezzeret, keyring, compiled(spec, digest, path.stat().st_size))
            await say(urabrask, keyring, verdict(spec, digest))
            digests.append(digest)
        await say(tezzeret, keyring, failed(BAD, "it is too large"))
        await say(planner, keyring, ruling(OTHER, "Superseded", 1, by=SPEC.kernel_id))
        for one in (tezzeret, urabrask, planner):
            await one.close()
        return digests

    return asyncio.run(work())


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What a command says to a program."""
    capsys.readouterr()
    assert invoke([*arguments, "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_persons_blueprint_is_entered_archived_and_taken_out_again(
    bus: HomeBus, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["library", "ls"]) == 0
    assert "the library is empty" in capsys.readouterr().out
    assert invoke(["blueprint", "add", str(file)]) == 0
    assert f"{BP} is in the library" in capsys.readouterr().out
    (entry,) = told(capsys, "library", "ls")["blueprints"]
    assert (entry["blueprint"], entry["name"], entry["origin"]) == (BP, BLUEPRINT.name, "User")
    assert invoke(["blueprint", "archive", BLUEPRINT.name, "--reason", "never kept"]) == 0
    (entry,) = told(capsys, "library", "ls")["blueprints"]
    assert entry["archived"] == "never kept"
    assert invoke(["blueprint", "add", str(file)]) == 0
    (entry,) = told(capsys, "library", "ls")["blueprints"]
    assert entry["archived"] is None


def test_of_several_files_none_is_entered_where_one_is_refused(
    bus: HomeBus, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(BLUEPRINT.model_dump_json(by_alias=True).replace('"relu"', '"exec"'))
    assert invoke(["blueprint", "add", str(file), str(broken)]) == 2
    said = capsys.readouterr().err
    assert "broken.json" in said
    assert "'exec'" in said
    assert told(capsys, "library", "ls")["blueprints"] == []


def test_kernels_are_listed_and_shown(
    bus: HomeBus, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke(["blueprint", "add", str(file)])
    digests = fill(bus, tmp_path)
    capsys.readouterr()
    assert invoke(["library", "ls"]) == 0
    said = capsys.readouterr().out
    for word in (
        SPEC.kernel_id,
        BLUEPRINT.name,
        "features 1-16",
        "1 Validated",
        "Superseded",
        "it is too large",
    ):
        assert word in said, said
    found = told(capsys, "library", "ls", "--state", "Validated")
    assert [one["kernel"] for one in found["kernels"]] == [SPEC.kernel_id]
    shown = told(capsys, "library", "show", SPEC.kernel_id)
    assert (shown["digest"], shown["lineage"]["supersedes"]) == (digests[0], [OTHER.kernel_id])
    assert invoke(["library", "show", SPEC.kernel_id]) == 0
    said = capsys.readouterr().out
    for word in (digests[0], "forward_us", "finite", "supersedes", "tezzeret ", "risk"):
        assert word in said, said
    assert invoke(["library", "show", BP]) == 0
    assert "linear" in capsys.readouterr().out
    assert invoke(["library", "show", "ck-000000000000"]) == 2
    assert "no blueprint or kernel" in capsys.readouterr().err
    assert invoke(["library", "ls", "--blueprint", BLUEPRINT.name + "x"]) == 2
    assert f"nearest: {BLUEPRINT.name!r}" in capsys.readouterr().err


def test_a_library_is_moved_to_another_machine_that_believes_its_keys(
    bus: HomeBus,
    home: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    invoke(["blueprint", "add", str(file)])
    fill(bus, tmp_path)
    exported = tmp_path / "library.esper"
    done = told(capsys, "library", "export", str(exported))
    assert (done["blueprints"], done["words"], done["artifacts"]) == (1, 6, 2)
    before = told(capsys, "library", "ls")
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "other"))
    assert invoke(["library", "import", str(exported)]) == 1
    assert "unknown key" in capsys.readouterr().err
    shutil.copytree(home / "keys", tmp_path / "other" / "keys", dirs_exist_ok=True)
    done = told(capsys, "library", "import", str(exported))
    assert (done["blueprints"], done["words"], done["artifacts"]) == (1, 6, 2)
    after = told(capsys, "library", "ls")
    assert after["kernels"] == before["kernels"]
    assert after["incarnation"] != before["incarnation"]
    assert told(capsys, "library", "import", str(exported))["words"] == 0
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 1
    exported.write_bytes(data)
    assert invoke(["library", "import", str(exported)]) == 1
    assert "was changed" in capsys.readouterr().err


def test_verifying_finds_what_was_changed_behind_our_back(
    bus: HomeBus, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(bus, tmp_path)
    assert invoke(["library", "verify"]) == 0
    assert capsys.readouterr().out.count("ok") == 2

    async def damage() -> None:
        async with await Library.connect(bus.address_of(BusRole.PLANNER), KeyRing(bus.home).trust) as own:
            one = next(iter((await own.artifacts.list()).values()))
            await js(own).purge_stream("OBJ_artifacts", subject=f"$O.artifacts.C.{one.chunks}")

    asyncio.run(damage())
    assert invoke(["library", "verify"]) == 1
    assert "is broken in the library" in capsys.readouterr().out


def test_garbage_is_shown_before_it_is_removed(
    bus: HomeBus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bus, tmp_path)
    path, digest = artifact(tmp_path, kernel_spec(flags=("unnamed",)), BLUEPRINT)

    async def store() -> None:
        async with await Library.connect(bus.address_of(BusRole.TEZZERET), KeyRing(bus.home).trust) as own:
            await own.put_artifact(path)

    asyncio.run(store())
    assert told(capsys, "library", "gc")["artifacts"] == []
    monkeypatch.setattr("esper_runtime.urza.collect_garbage.__kwdefaults__", {"dry_run": False, "grace": 0.0})
    planned = told(capsys, "library", "gc", "--dry-run")
    assert [one["digest"] for one in planned["artifacts"]] == [digest]
    assert told(capsys, "library", "gc")["artifacts"] == planned["artifacts"]
    assert told(capsys, "library", "gc")["artifacts"] == []
    assert invoke(["library", "verify"]) == 0


def test_another_bus_is_named_by_its_file_or_url(
    home: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BundledServer(tmp_path / "elsewhere") as server:
        named = ["--bus", str(server.address_file)]
        assert invoke(["library", "ls", *named]) == 1
        assert "the bus has no library" in capsys.readouterr().err
        assert invoke(["blueprint", "add", str(file), *named]) == 0
        assert [one["blueprint"] for one in told(capsys, "library", "ls", *named)["blueprints"]] == [BP]
        assert not (home / "bus").exists()
        assert invoke(["library", "ls", "--bus", server.address.url]) == 1
        assert "refuses" in capsys.readouterr().err
    assert invoke(["library", "ls", "--bus", "gopher://x"]) == 2


def test_the_files_of_a_bus_with_roles_are_found_beside_the_planners(
    home: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HomeBus("run", home) as bus:
        invoke(["blueprint", "add", str(file)])
        fill(bus, tmp_path)
        assert invoke(["library", "export", str(tmp_path / "x")]) == 0
    with BundledServer(tmp_path / "guarded", roles=True) as server:
        done = told(capsys, "library", "import", str(tmp_path / "x"), "--bus", str(server.address_file))
        assert (done["words"], done["artifacts"]) == (6, 2)
        assert len(with_library(server, KeyRing(home).trust, lambda own: own.records())) == 3


def test_another_machines_library_is_taken_once_its_keys_are_trusted(
    bus: HomeBus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bus, tmp_path)
    library, keys = str(tmp_path / "library.esper"), str(tmp_path / "keys.json")
    assert invoke(["library", "export", library]) == 0
    assert invoke(["keys", "export", keys]) == 0
    signer = KeyRing(bus.home).ensure(Role.URABRASK).key
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "elsewhere"))
    with HomeBus("run", tmp_path / "elsewhere"):
        assert invoke(["library", "import", library]) == 1
        assert "`esper keys trust` takes another machine's" in capsys.readouterr().err
        assert told(capsys, "library", "ls")["kernels"] == []
        assert invoke(["keys", "trust", keys, "--yes"]) == 0
        assert invoke(["library", "import", library]) == 0
        states = {one["kernel"]: one["state"] for one in told(capsys, "library", "ls")["kernels"]}
        assert states[SPEC.kernel_id] == "Validated"
        assert states[OTHER.kernel_id] == "Superseded"
        assert invoke(["library", "verify"]) == 0
        assert invoke(["keys", "revoke", signer, "--reason", "it was stolen"]) == 0
        states = {one["kernel"]: one["state"] for one in told(capsys, "library", "ls")["kernels"]}
        assert states[SPEC.kernel_id] == "PendingBenchmark"
