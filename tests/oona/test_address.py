from pathlib import Path

import pytest
from pydantic import ValidationError

from esper_runtime.contracts import InputError
from esper_runtime.oona import BUS_VARIABLE, BusAddress


def test_an_address_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    address = BusAddress(url="tls://bus.example:4222", user="me", password="secret", tls_ca="/ca.pem")
    address.store(tmp_path / "bus.json")
    assert BusAddress.load(tmp_path / "bus.json") == address
    assert (tmp_path / "bus.json").stat().st_mode & 0o777 == 0o600


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BUS_VARIABLE, raising=False)
    assert BusAddress.from_environment() is None
    BusAddress(url="nats://localhost:4222").store(tmp_path / "bus.json")
    monkeypatch.setenv(BUS_VARIABLE, str(tmp_path / "bus.json"))
    assert BusAddress.from_environment() == BusAddress(url="nats://localhost:4222")


def test_the_environment_may_name_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUS_VARIABLE, "nats://10.0.0.7:4222")
    assert BusAddress.from_environment() == BusAddress(url="nats://10.0.0.7:4222")
    monkeypatch.setenv(BUS_VARIABLE, "http://10.0.0.7:4222")
    with pytest.raises(InputError, match=r"ESPER_BUS: .*must be like nats://"):
        BusAddress.from_environment()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "http://x:1"}, "must be like nats://"),
        ({"url": "nats://"}, "must be like nats://"),
        ({"url": "nats://x:notaport"}, "notaport"),
        ({"url": "nats://me:pw@x:1"}, "must not carry a user"),
        ({"url": "nats://x:1", "token": "t", "user": "u", "password": "p"}, "not several"),
        ({"url": "nats://x:1", "user": "u"}, "belong together"),
        ({"url": "nats://x:1", "tls_cert": "c"}, "belong together"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BusAddress(**fields)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bus.json"
    BusAddress(url="nats://x:1", token="t").store(path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        BusAddress.load(path)


@pytest.mark.parametrize("text", ["", "[]", '{"url": 3}', '{"url": "nats://x:1", "tokn": "t"}', "\0"])
def test_a_file_that_is_no_address_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bus.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bus\.json: not a bus address"):
        BusAddress.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        BusAddress.load(tmp_path / "missing.json")


def test_files_that_cannot_be_used_are_named() -> None:
    with pytest.raises(InputError, match=r"/no/ca\.pem"):
        BusAddress(url="tls://x:1", tls_ca="/no/ca.pem").connect_options()
    with pytest.raises(InputError, match=r"/no/user\.creds"):
        BusAddress(url="nats://x:1", credentials="/no/user.creds").connect_options()
