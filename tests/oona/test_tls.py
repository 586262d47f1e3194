"""TLS with client certificates, against a real nats-server that wants them."""

import datetime
import ipaddress
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from esper_runtime.contracts import LOCAL_NAMESPACE, BusError
from esper_runtime.oona import Bridge, BusAddress, find_server
from tests.oona.bus import Journal, eventually, free_port, messages, on_bus

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates; its own is ``ca.pem`` in its folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, folder: Path, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, name, key, certificate)

    @property
    def path(self) -> str:
        return str(self.folder / f"{self.name}.pem")

    def sign(self, name: str) -> tuple[str, str]:
        """A certificate for this machine, for servers and clients; paths of certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            _builder(subject, self.certificate.subject, key)
            .add_extension(here, critical=False)
            .add_extension(usage, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        _write(paths[0], certificate.public_bytes(serialization.Encoding.PEM))
        _write(
            paths[1],
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        return str(paths[0]), str(paths[1])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


def _write(path: Path, blob: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(blob)


@dataclass(frozen=True)
class Secured:
    """A server that lets in who has a certificate of its authority."""

    url: str
    authority: Authority

    def address(self, cert: tuple[str, str] | None, ca: str | None = None) -> BusAddress:
        certificate, key = cert or (None, None)
        return BusAddress(url=self.url, tls_ca=ca or self.authority.path, tls_cert=certificate, tls_key=key)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.new(folder, "authority")
    certificate, key = authority.sign("server")
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\n"
        f"jetstream {{ store_dir: {folder / 'store'} }}\n"
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.path}", '
        "verify: true }\n"
    )
    with subprocess.Popen(
        [str(find_server()), "-c", str(config), "-l", str(folder / "log")], stderr=subprocess.DEVNULL
    ) as server:
        deadline = time.monotonic() + 10
        while "Server is ready" not in ((folder / "log").read_text() if (folder / "log").exists() else ""):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Secured(f"tls://127.0.0.1:{port}", authority)
        server.terminate()


def test_a_run_with_a_certificate_is_on_the_bus(secured: Secured, tmp_path: Path) -> None:
    address = secured.address(secured.authority.sign("trainer"))
    address.store(tmp_path / "bus.json")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(5)
    read = BusAddress.load(tmp_path / "bus.json")
    with Bridge(read, LOCAL_NAMESPACE, "small", "/runs/local/small", journal.path) as bridge:
        eventually(lambda: bridge.counts().journal == 4)
    found = messages(address, "EVENTS", "esper.run.local.small.journal")
    assert [event["data"]["digest"] for event in found] == journal.digests


def test_without_a_certificate_of_the_authority_nobody_gets_in(secured: Secured, tmp_path: Path) -> None:
    stranger = Authority.new(tmp_path, "stranger").sign("trainer")

    async def nothing(client: object) -> None:
        raise AssertionError("it was let in")

    for certificate in (None, stranger):
        with pytest.raises(BusError, match=r"check tlsCa, tlsCert and tlsKey"):
            on_bus(secured.address(certificate), nothing, patience=1.0)


def test_a_server_of_another_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    other = Authority.new(tmp_path, "other")
    address = secured.address(secured.authority.sign("reader"), ca=other.path)
    with Bridge(address, LOCAL_NAMESPACE, "small", "/runs/local/small") as bridge:
        eventually(lambda: bridge.status().error)
        assert "certificate" in (bridge.status().error or "").lower()
        assert bridge.status().connections == 0
        bridge.close(deadline=0.5)
