"""The configuration of a cluster's nats-servers, and their TLS files."""

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from esper_runtime.oona.accounts import BusKeys

MAX_MESSAGE = 8 * 1024 * 1024
"""Largest message of the bus in bytes; NATS' own default is 1 MiB."""
CLIENT_PORT, MONITOR_PORT, CLUSTER_PORT = 4222, 8222, 6222
CERTIFICATE_YEARS = 10
"""How long a certificate holds."""

_GIB = 1024**3
_TLS = """\
tls {{
  cert_file: "{folder}/tls.crt"
  key_file: "{folder}/tls.key"
  ca_file: "{folder}/ca.crt"{more}
}}
"""


def nats_config(
    keys: BusKeys,
    *,
    store: str,
    tls: str | None,
    host: str = "0.0.0.0",
    port: int = CLIENT_PORT,
    monitor: int | None = MONITOR_PORT,
    storage: int = 10 * _GIB,
    peers: Sequence[str] = (),
    cluster_port: int = CLUSTER_PORT,
) -> str:
    """The text of ``nats.conf``. Each server of a cluster gets its name by ``--name``.

    Args:
        keys: of the bus.
        store: folder for streams and accounts.
        tls: folder with ``tls.crt``, ``tls.key`` and ``ca.crt``; None for a bus without TLS.
        host: to listen on.
        port: for clients.
        monitor: port for ``/healthz`` and the server's figures; None for none.
        storage: bytes for streams. Each stream takes its bound from this when it is made.
        peers: addresses (``HOST:PORT``) of all servers of a cluster, this one among them; empty for one
            server alone.
        cluster_port: on which this one hears the others.
    """
    accounts = keys.fixed_accounts()
    lines = [
        f"listen: {json.dumps(f'{host}:{port}')}",
        f"max_payload: {MAX_MESSAGE}",
        "max_control_line: 32KB",
        "lame_duck_grace_period: 2s",
        "lame_duck_duration: 30s",
        f"operator: {keys.operator_jwt()}",
        f"system_account: {keys.system_account}",
        f"resolver {{\n  type: full\n  dir: {json.dumps(store + '/accounts')}\n"
        '  allow_delete: true\n  interval: "2m"\n  timeout: "800ms"\n  limit: 1000000\n}',
        "resolver_preload {",
        *(f"  {public}: {token}" for public, token in accounts.items()),
        "}",
        f"jetstream {{\n  store_dir: {json.dumps(store + '/streams')}\n"
        f"  max_memory_store: 67108864\n  max_file_store: {storage}\n}}",
    ]
    if monitor is not None:
        lines.insert(1, f"http: {json.dumps(f'{host}:{monitor}')}")
    if tls is not None:
        lines.append(_TLS.format(folder=tls, more=""))
    if peers:
        lines.append(_cluster(keys, tls, host, cluster_port, peers))
    return "\n".join(lines) + "\n"


def _cluster(keys: BusKeys, tls: str | None, host: str, port: int, peers: Sequence[str]) -> str:
    password = base64.urlsafe_b64encode(keys.secret("routes")).decode().rstrip("=")
    routes = "\n".join(f"    nats-route://esper:{password}@{peer}" for peer in peers)
    secured = "" if tls is None else _TLS.format(folder=tls, more="\n  verify: true")
    return (
        f"cluster {{\n  name: esper\n  listen: {json.dumps(f'{host}:{port}')}\n"
        f"  authorization {{ user: esper, password: {json.dumps(password)} }}\n"
        f"  no_advertise: true\n  routes: [\n{routes}\n  ]\n{secured}}}"
    )


def tls_files(
    names: Sequence[str], authority: tuple[str, str] | None = None, years: int = CERTIFICATE_YEARS
) -> dict[str, str]:
    """Certificates of a bus: ``ca.crt``, ``ca.key``, ``tls.crt`` and ``tls.key``, all PEM.

    Args:
        names: host names and IP addresses under which the server is reached.
        authority: certificate and key (PEM) of the one that signs; default: a new one.
        years: that they hold.
    """
    if authority is None:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _authority(ca_key, years)
    else:
        ca = x509.load_pem_x509_certificate(authority[0].encode())
        loaded = serialization.load_pem_private_key(authority[1].encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        ca_key = loaded
    key = ec.generate_private_key(ec.SECP256R1())
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder("esper-nats", ca.subject, key, years)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return {
        "ca.crt": _pem(ca),
        "ca.key": _private(ca_key),
        "tls.crt": _pem(certificate),
        "tls.key": _private(key),
    }


def _authority(key: ec.EllipticCurvePrivateKey, years: int) -> x509.Certificate:
    subject = _subject("esper-bus-ca")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder("esper-bus-ca", subject, key, years)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, years: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365 * years))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
