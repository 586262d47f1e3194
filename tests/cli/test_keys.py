import json
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import Role


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
