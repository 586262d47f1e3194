import base64
import hashlib
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from esper_runtime.artifact import KeyRing, encode_public_keys, read_public_keys
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import ArtifactError, KernelState, Role, Ruling, Signed


@pytest.fixture(autouse=True)
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "esper"))
    return KeyRing(tmp_path / "esper")


def listed(capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert invoke(["keys", "list", "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_machine_without_keys_has_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys)["keys"] == []
    assert invoke(["keys", "list"]) == 0
    assert "0 keys in" in capsys.readouterr().out


def test_a_rotated_key_verifies_and_the_new_one_signs(
    ring: KeyRing, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ring.ensure(Role.URABRASK).key
    assert invoke(["keys", "rotate", "urabrask"]) == 0
    states = {each["key"]: each["state"] for each in listed(capsys)["keys"]}
    assert states.pop(old) == "verifies"
    assert list(states.values()) == ["signs"]
    assert invoke(["keys", "rotate", "urabrask", "--overlap-days", "0"]) == 0
    assert [each["state"] for each in listed(capsys)["keys"]] == ["over", "over", "signs"]


def test_all_roles_are_rotated_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["keys", "rotate"]) == 0
    assert [each["role"] for each in listed(capsys)["keys"]] == [role.value for role in Role]


def test_what_is_revoked_is_shown_with_its_reason(ring: KeyRing, capsys: pytest.CaptureFixture[str]) -> None:
    key = ring.ensure(Role.TEZZERET).key
    assert invoke(["keys", "revoke", key, "--reason", "it was copied"]) == 0
    assert invoke(["keys", "revoke", "a" * 64, "--reason", "it crashed"]) == 0
    found = listed(capsys)
    assert found["keys"][0]["state"] == "revoked: it was copied"
    assert found["revokedDigests"] == {"a" * 64: "it crashed"}
    assert invoke(["keys", "list"]) == 0
    assert "it crashed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nonsense", "0" * 16])
def test_a_name_that_cannot_be_revoked_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["keys", "revoke", name, "--reason", "x"]) == 2
    assert "neither a known key nor a digest" in capsys.readouterr().err


def test_a_folder_that_others_can_write_is_told(ring: KeyRing, capsys: pytest.CaptureFixture[str]) -> None:
    ring.home.chmod(0o777)
    assert invoke(["keys", "list"]) == 1
    assert f"run: chmod go-w {ring.home}" in capsys.readouterr().err


# Another machine's keys


@pytest.fixture
def there(tmp_path: Path) -> KeyRing:
    """Another machine."""
    return KeyRing(tmp_path / "there")


@pytest.fixture
def exported(there: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The public keys of the other machine."""
    with monkeypatch.context() as patch:
        patch.setenv("ESPER_HOME", str(there.home))
        assert invoke(["keys", "export", str(tmp_path / "build-box.json")]) == 0
    return tmp_path / "build-box.json"


def groups(public: str) -> str:
    digits = hashlib.sha256(base64.b64decode(public)).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, 64, 4))


def signed(ring: KeyRing) -> Signed:
    ruling = Ruling(kernel="ck-000000000001", state=KernelState.QUARANTINED, reason="x")
    return ring.sign(Role.PLANNER, ruling)


def test_both_sides_show_the_same_fingerprints_and_no_private_key_leaves(
    there: KeyRing, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ESPER_HOME", str(there.home))
        assert invoke(["keys", "export", str(exported)]) == 0
    over_there = capsys.readouterr().out
    assert invoke(["keys", "trust", str(exported), "--yes"]) == 0
    here = capsys.readouterr().out
    for key in there.own():
        assert groups(key.public) in over_there
        assert groups(key.public) in here
        assert key.key == groups(key.public).replace(" ", "")[:16]
    assert "PRIVATE" not in exported.read_text()
    assert str(there.home) not in exported.read_text()


def test_what_a_trusted_machine_signs_counts_until_its_key_is_revoked(
    ring: KeyRing, there: KeyRing, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = signed(there)
    with pytest.raises(ArtifactError, match=r"unknown key .* `esper keys trust` takes another machine's"):
        ring.trust.verify(word, Role.PLANNER)
    assert invoke(["keys", "trust", str(exported), "--yes"]) == 0
    assert ring.trust.verify(word, Role.PLANNER)
    with pytest.raises(ArtifactError, match="urabrask must have signed it"):
        ring.trust.verify(word, Role.URABRASK)
    foreign = {each["key"]: each for each in listed(capsys)["keys"] if each["machine"] == "build-box"}
    assert {(each["role"], each["state"]) for each in foreign.values()} == {
        (role.value, "verifies") for role in Role
    }
    assert all(each["fingerprint"] == groups(each["public"]) for each in foreign.values())
    assert invoke(["keys", "revoke", word.signature.key, "--reason", "it was stolen"]) == 0
    with pytest.raises(ArtifactError, match="revoked: it was stolen"):
        ring.trust.verify(word, Role.PLANNER)
    assert invoke(["keys", "trust", str(exported), "--yes"]) == 2
    assert "was revoked here (it was stolen); that cannot be taken back" in capsys.readouterr().err


def test_only_the_roles_that_are_named_are_taken_and_twice_is_as_good_as_once(
    ring: KeyRing, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keys", "trust", str(exported), "--role", "urabrask", "--machine", "lab", "--yes"]
    assert invoke(command) == 0
    assert [(each["role"], each["machine"]) for each in listed(capsys)["keys"]] == [("urabrask", "lab")]
    before = ring.trust.keys
    assert invoke(command) == 0
    assert "1 of them were believed before" in capsys.readouterr().out
    assert ring.trust.keys == before


def test_a_rotation_here_leaves_another_machines_keys_alone_and_they_are_not_exported(
    ring: KeyRing, there: KeyRing, exported: Path, tmp_path: Path
) -> None:
    assert invoke(["keys", "trust", str(exported), "--yes"]) == 0
    assert invoke(["keys", "rotate", "--overlap-days", "0"]) == 0
    assert ring.trust.verify(signed(there), Role.PLANNER)
    assert invoke(["keys", "export", str(tmp_path / "ours.json")]) == 0
    ours = {key.key for key in read_public_keys(tmp_path / "ours.json")}
    assert ours == {key.key for key in ring.own()}
    assert not ours & {key.key for key in there.own()}


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("", 2)])
def test_a_person_is_asked_first(
    ring: KeyRing, exported: Path, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert invoke(["keys", "trust", str(exported)]) == code
    assert bool(ring.trust.keys.keys) is (code == 0)


def pem_of(private: Any) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_public_key_in_pem_is_taken_for_the_role_that_is_named(ring: KeyRing, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    file = tmp_path / "there.pem"
    file.write_bytes(pem_of(private))
    assert invoke(["keys", "trust", str(file), "--role", "tezzeret", "--yes"]) == 0
    (key,) = ring.trust.keys.keys
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert (key.role, key.raw, key.machine) == (Role.TEZZERET, raw, "there")


def private_pem(folder: Path) -> bytes:
    ring = KeyRing(folder / "third")
    key = ring.ensure(Role.TEZZERET)
    return (ring.home / "keys" / f"tezzeret-{key.key}.pem").read_bytes()


def over(folder: Path) -> bytes:
    ring = KeyRing(folder / "third")
    old = ring.ensure(Role.TEZZERET)
    ring.rotate(Role.TEZZERET, timedelta(0))
    return encode_public_keys([key for key in ring.trust.keys.keys if key.key == old.key])


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (lambda _: b"nonsense", (), "not a file of public keys"),
        (lambda _: b'{"version": 2}', (), "not a file of public keys: version"),
        (lambda _: b'{"keys": []}', (), "has no key of any role; keys of: none"),
        (lambda _: b" " * 2_000_000, (), "2,000,000 bytes; allowed"),
        (private_pem, ("--role", "tezzeret"), "holds a private key, which is not to leave its machine"),
        (over, (), "its keys are over or revoked"),
        (lambda _: pem_of(Ed25519PrivateKey.generate()), (), "does not say whose it is; give one --role"),
        (lambda _: pem_of(ec.generate_private_key(ec.SECP256R1())), ("--role", "planner"), "not an Ed25519"),
        (lambda _: b"-----BEGIN PUBLIC KEY-----\nAAAA\n", ("--role", "planner"), "not a public key in PEM"),
        (
            lambda folder: encode_public_keys(KeyRing(folder / "third").own()).replace(
                b'"public": "', b'"public": "AA'
            ),
            (),
            "not a file of public keys: keys.0.public",
        ),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_and_changes_nothing(
    ring: KeyRing,
    tmp_path: Path,
    data: Callable[[Path], bytes],
    options: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(data(tmp_path))
    assert invoke(["keys", "trust", str(file), *options, "--yes"]) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert str(file) in said
    assert ring.trust.keys.keys == ()


def test_a_key_cannot_have_two_roles_and_a_link_or_a_missing_file_is_refused(
    ring: KeyRing, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ring.ensure(Role.URABRASK)
    file = tmp_path / "two.json"
    file.write_bytes(encode_public_keys([own.model_copy(update={"role": Role.PLANNER})]))
    assert invoke(["keys", "trust", str(file), "--yes"]) == 2
    assert f"key {own.key} is known as one of urabrask" in capsys.readouterr().err
    (tmp_path / "link.json").symlink_to(exported)
    for name in ("link.json", "nowhere.json"):
        assert invoke(["keys", "trust", str(tmp_path / name), "--yes"]) == 1
        assert "cannot be read" in capsys.readouterr().err
    assert ring.trust.keys.keys == (own,)
