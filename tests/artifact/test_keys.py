import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, Trust, esper_home, open_artifact
from esper_runtime.contracts import ArtifactError, InputError, Role
from tests.artifact.kernels import made


def keys_of(ring: KeyRing) -> Path:
    return ring.home / "keys"


def test_a_key_is_made_once_and_nobody_else_can_read_it(ring: KeyRing) -> None:
    first = ring.ensure(Role.TEZZERET)
    assert ring.ensure(Role.TEZZERET) == first
    assert ring.ensure(Role.URABRASK).key != first.key
    private = keys_of(ring) / f"tezzeret-{first.key}.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys_of(ring).stat().st_mode) == 0o700
    assert stat.S_IMODE(ring.home.stat().st_mode) == 0o700


def _ensure(home: Path, start, found) -> None:
    start.wait()
    found.put([KeyRing(home).ensure(role).key for role in Role])


def test_processes_that_start_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Event(), context.Queue()
    children = [context.Process(target=_ensure, args=(tmp_path / "esper", start, found)) for _ in range(6)]
    for child in children:
        child.start()
    start.set()
    answers = [found.get(timeout=30) for _ in children]
    for child in children:
        child.join()
    assert all(answer == answers[0] for answer in answers)
    assert len(Trust.load(tmp_path / "esper").keys.keys) == len(Role)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_private_key_that_is_open_to_others_is_refused(ring: KeyRing, mode: int) -> None:
    kernel = made(ring)
    (private,) = keys_of(ring).glob("tezzeret-*.pem")
    private.chmod(mode)
    with pytest.raises(ArtifactError, match=f"chmod 600 {private}"):
        ring.sign(Role.TEZZERET, kernel.statement)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("inner", ["", "keys"])
def test_a_folder_that_others_can_write_is_refused(ring: KeyRing, mode: int, inner: str) -> None:
    ring.ensure(Role.TEZZERET)
    folder = ring.home / inner
    folder.chmod(mode)
    with pytest.raises(ArtifactError, match=f"chmod go-w {folder}"):
        KeyRing(ring.home)


def test_a_folder_that_others_could_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ArtifactError, match=f"chmod o-w {tmp_path / 'open'}"):
        KeyRing(tmp_path / "open" / "esper")
    (tmp_path / "open").chmod(0o1777)
    KeyRing(tmp_path / "open" / "esper").ensure(Role.PLANNER)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_trust_list_that_others_can_write_is_refused(ring: KeyRing, mode: int) -> None:
    trust = ring.trust
    path = keys_of(ring) / "trust.json"
    path.chmod(mode)
    with pytest.raises(ArtifactError, match=f"chmod go-w {path}"):
        Trust.load(ring.home)
    path.chmod(0o644)
    os.replace(path, path.with_suffix(".moved"))
    with pytest.raises(ArtifactError, match="cannot be read"):
        _ = trust.keys


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(ring: KeyRing) -> None:
    kernel = made(ring)
    (private,) = keys_of(ring).glob("tezzeret-*.pem")
    os.chown(private, 1234, 1234)
    with pytest.raises(ArtifactError, match="belongs to user 1234"):
        ring.sign(Role.TEZZERET, kernel.statement)
    os.chown(keys_of(ring), 1234, 1234)
    with pytest.raises(ArtifactError, match="belongs to user 1234"):
        KeyRing(ring.home)


def test_links_in_the_place_of_keys_are_not_followed(ring: KeyRing, tmp_path: Path) -> None:
    kernel = made(ring)
    (private,) = keys_of(ring).glob("tezzeret-*.pem")
    os.replace(private, tmp_path / "elsewhere.pem")
    private.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ring.sign(Role.TEZZERET, kernel.statement)


def test_a_file_that_holds_another_key_is_refused(ring: KeyRing) -> None:
    kernel = made(ring)
    (private,) = keys_of(ring).glob("tezzeret-*.pem")
    (other,) = keys_of(ring).glob("urabrask-*.pem")
    private.write_bytes(other.read_bytes())
    with pytest.raises(ArtifactError, match="holds the key"):
        ring.sign(Role.TEZZERET, kernel.statement)
    private.write_bytes(b"rubbish")
    with pytest.raises(ArtifactError, match="not a private key"):
        ring.sign(Role.TEZZERET, kernel.statement)


def test_after_a_rotation_old_signatures_count_until_the_overlap_ends(ring: KeyRing) -> None:
    kernel, trust = made(ring), ring.trust
    new = ring.rotate(Role.URABRASK, timedelta(days=2))
    now = datetime.now(UTC)
    assert trust.verify(kernel.verdict, Role.URABRASK) == kernel.said
    assert trust.verify(kernel.verdict, Role.URABRASK, now + timedelta(days=1)) == kernel.said
    with pytest.raises(ArtifactError, match="which counted until"):
        trust.verify(kernel.verdict, Role.URABRASK, now + timedelta(days=3))
    again = ring.sign(Role.URABRASK, kernel.said)
    assert again.signature.key == new.key != kernel.verdict.signature.key
    assert trust.verify(again, Role.URABRASK, now + timedelta(days=3)) == kernel.said
    assert [path.name for path in keys_of(ring).glob("urabrask-*.pem")] == [f"urabrask-{new.key}.pem"]


def test_a_second_rotation_does_not_lengthen_an_older_keys_life(ring: KeyRing) -> None:
    first = ring.ensure(Role.PLANNER)
    ring.rotate(Role.PLANNER, timedelta(days=1))
    ring.rotate(Role.PLANNER, timedelta(days=9))
    found = ring.trust.keys.find(first.key)
    assert found is not None
    assert found.not_after is not None
    assert found.not_after < datetime.now(UTC) + timedelta(days=2)


def test_a_key_does_not_count_before_it_was_made(ring: KeyRing) -> None:
    kernel = made(ring)
    with pytest.raises(ArtifactError, match="counts only from"):
        ring.trust.verify(kernel.verdict, Role.URABRASK, datetime.now(UTC) - timedelta(hours=1))


def test_a_revoked_key_counts_no_more_in_processes_that_run(ring: KeyRing, tmp_path: Path) -> None:
    kernel, trust = made(ring), ring.trust
    path = kernel.at(tmp_path / "k")
    open_artifact(path, kernel.compiled, kernel.verdict, trust)
    old = kernel.verdict.signature.key
    ring.revoke(old, "it was copied")
    with pytest.raises(ArtifactError, match=f"{old}, which is revoked: it was copied"):
        open_artifact(path, kernel.compiled, kernel.verdict, trust)
    assert not list(keys_of(ring).glob(f"*{old}*"))
    again = ring.sign(Role.URABRASK, kernel.said)
    assert again.signature.key != old
    open_artifact(path, kernel.compiled, again, trust)


def test_a_revoked_digest_counts_no_more_whoever_signed_it(ring: KeyRing, tmp_path: Path) -> None:
    kernel, other = made(ring), made(ring, "conv-pair-bn")
    ring.revoke(kernel.statement.digest, "it crashed hosts")
    for signed, role in ((kernel.compiled, Role.TEZZERET), (kernel.verdict, Role.URABRASK)):
        with pytest.raises(ArtifactError, match="is revoked: it crashed hosts"):
            ring.trust.verify(signed, role)
    open_artifact(other.at(tmp_path / "k"), other.compiled, other.verdict, ring.trust)


def test_revoking_twice_keeps_the_first_reason(ring: KeyRing) -> None:
    ring.revoke("0" * 64, "first")
    ring.revoke("0" * 64, "second")
    assert ring.trust.keys.revoked_digests["0" * 64].reason == "first"


@pytest.mark.parametrize("name", ["", "xyz", "0" * 16, "0" * 63, "G" * 64])
def test_only_keys_that_are_known_and_digests_can_be_revoked(ring: KeyRing, name: str) -> None:
    with pytest.raises(InputError, match="neither a known key nor a digest"):
        ring.revoke(name, "because")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 2}', '{"version": 1, "more": 1}'])
def test_a_trust_list_that_is_none_is_refused_by_name(ring: KeyRing, text: str) -> None:
    ring.ensure(Role.TEZZERET)
    (keys_of(ring) / "trust.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"trust\.json: not a list of trusted keys"):
        Trust.load(ring.home)
    with pytest.raises(ArtifactError, match="not a list of trusted keys"):
        ring.ensure(Role.TEZZERET)


def test_a_key_under_a_wrong_name_is_refused(ring: KeyRing) -> None:
    ring.ensure(Role.TEZZERET)
    path = keys_of(ring) / "trust.json"
    data = json.loads(path.read_text())
    data["keys"][0]["key"] = "0" * 16
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="not the name of its public bytes"):
        Trust.load(ring.home)


def test_the_machines_folder_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "mine"))
    assert esper_home() == tmp_path / "mine"
    monkeypatch.delenv("ESPER_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert esper_home() == tmp_path / "data" / "esper"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert esper_home() == tmp_path / "home" / ".local" / "share" / "esper"
    assert stat.S_IMODE(esper_home().stat().st_mode) == 0o700
