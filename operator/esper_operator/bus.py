"""The bus of a release: its keys, made once and kept in a Secret, and what pods get in with."""

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from esper_operator.credentials import RunOnBus
from esper_operator.kube import SECRET, AlreadyThereError, Kube, Object
from esper_operator.settings import Settings, bytes_of
from esper_runtime.artifact import TrustedKey, TrustList
from esper_runtime.artifact.statements import key_id
from esper_runtime.contracts import InputError, Role, canonical_json
from esper_runtime.oona import BusKeeper, BusKeys, BusRole, nats_config, tls_files

BUS_SECRET, NATS_SECRET = "esper-bus", "esper-nats"
STORE = "/data"
"""Where a server keeps streams and accounts."""
NATS_CONFIG = "/etc/esper-nats"
"""Where a server finds its configuration and TLS files."""

FOR_STREAMS = 9
"""Tenths of a server's volume that streams may take; the rest is for accounts and files in the making."""

_LOOK = 2.0
_MOUNT_SECONDS = 300.0
_WORKERS = {role: BusRole(role.value) for role in (Role.TEZZERET, Role.URABRASK, Role.KARN)}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BusFiles:
    """What must be kept of a bus.

    Attributes:
        keys: from which everything follows.
        ca: certificate of the authority (PEM); empty for a bus without TLS.
        ca_key: its key (PEM).
    """

    keys: BusKeys
    ca: str = ""
    ca_key: str = ""

    @classmethod
    def generate(cls, tls: bool) -> "BusFiles":
        """New ones."""
        made = tls_files(["esper-nats"]) if tls else {"ca.crt": "", "ca.key": ""}
        return cls(BusKeys.generate(), made["ca.crt"], made["ca.key"])

    @classmethod
    def read(cls, folder: Path) -> "BusFiles | None":
        """What is mounted; None where nothing is yet.

        Raises:
            InputError: what is there is not what was kept.
        """
        if not (folder / "master.key").exists():
            return None
        texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
        return cls(BusKeys.from_files(texts), texts.get("ca.crt", ""), texts.get("ca.key", ""))

    def texts(self) -> dict[str, str]:
        """By file name."""
        tls = {"ca.crt": self.ca, "ca.key": self.ca_key} if self.ca else {}
        return self.keys.files() | tls


async def first_start(kube: Kube, settings: Settings, owner: Object | None) -> BusFiles:
    """The bus's keys; where the release has none yet they are made, with every Secret that follows from them.

    Killed anywhere, the next start goes on: all follows from the first Secret, and what is there stays.

    Args:
        kube: the API.
        settings: of the release.
        owner: an owner reference for what is made, so that it goes with the release.

    Raises:
        KubeError: a Secret cannot be made.
        InputError: a Secret of that name is there, and what is mounted of it are no keys.
    """
    mount = Path(settings.bus_keys)
    files = BusFiles.read(mount)
    if files is None:
        files = BusFiles.generate(settings.nats_tls)
        try:
            await kube.create(SECRET, _secret(BUS_SECRET, "nats", files.texts(), settings, owner))
            _log.info("made the keys of the bus; they are in the Secret %s", BUS_SECRET)
        except AlreadyThereError:
            files = await _mounted(mount)
    for name, (component, texts) in secrets_of(files, settings).items():
        try:
            await kube.create(SECRET, _secret(name, component, texts, settings, owner))
        except AlreadyThereError:
            continue
    return files


def secrets_of(files: BusFiles, settings: Settings) -> dict[str, tuple[str, dict[str, str]]]:
    """Component and texts of the Secrets that follow from the keys, by name."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    if settings.nats_deployed:
        found[NATS_SECRET] = ("nats", _nats_files(files, settings))
    names = worker_secrets(files, settings)
    for role, bus_role in _WORKERS.items():
        found[names[role.value]] = (role.value, worker_files(files, settings, role, bus_role))
    return found


def worker_secrets(files: BusFiles, settings: Settings) -> dict[str, str]:
    """Names of the workers' Secrets by role.

    The operator may not change a Secret. So another bus, other keys and other rights make other names: a
    worker never gets in with what an earlier configuration of the release has left.
    """
    common = _way_in(files, settings, "") | {"trust.json": trust_list(files.keys).encoded().decode()}
    found = {}
    for role, bus_role in _WORKERS.items():
        made_of = canonical_json({"files": common, "user": files.keys.role_digest(bus_role)})
        found[role.value] = f"esper-{role.value}-{hashlib.sha256(made_of).hexdigest()[:8]}"
    return found


def worker_files(files: BusFiles, settings: Settings, role: Role, bus_role: BusRole) -> dict[str, str]:
    """What a worker finds in ``/etc/esper``: its way in, the key that it signs with, and whom it believes."""
    private = signing_key(files.keys, role)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {
        **_way_in(files, settings, files.keys.role_creds(bus_role)),
        f"{role.value}-{trusted_key(files.keys, role).key}.pem": pem,
        "trust.json": trust_list(files.keys).encoded().decode(),
    }


def signing_key(keys: BusKeys, role: Role) -> Ed25519PrivateKey:
    """The key that a role signs with in this release."""
    return Ed25519PrivateKey.from_private_bytes(keys.secret(f"sign/{role.value}"))


def trusted_key(keys: BusKeys, role: Role) -> TrustedKey:
    """Its public half, as those know it who believe it."""
    raw = signing_key(keys, role).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    began = datetime(2025, 1, 1, tzinfo=UTC)
    return TrustedKey(role=role, key=key_id(raw), public=base64.b64encode(raw).decode(), not_before=began)


def trust_list(keys: BusKeys) -> TrustList:
    """The public keys of all roles of this release."""
    return TrustList(keys=tuple(trusted_key(keys, role) for role in Role))


class BusCredentials:
    """The bus's side of runs, on the release's bus.

    Args:
        keeper: the operator's hand on the bus.
        files: of the bus.
        settings: of the release.
    """

    def __init__(self, keeper: BusKeeper, files: BusFiles, settings: Settings) -> None:
        self.keeper = keeper
        self.worker_secrets = worker_secrets(files, settings)
        self._files, self._settings = files, settings

    async def files(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """See `esper_operator.credentials.Credentials`."""
        keys = self._files.keys
        await self.keeper.prepare_run(run.namespace, run.name, run.uid, attempt)
        creds = keys.run_creds(run.namespace, run.name, run.uid, attempt)
        return {
            **_way_in(self._files, self._settings, creds),
            "trust.json": trust_list(keys).encoded().decode(),
        }


def _way_in(files: BusFiles, settings: Settings, creds: str) -> dict[str, str]:
    address = {"url": settings.nats_url, "credentials": "/etc/esper/user.creds"}
    if files.ca:
        address["tlsCa"] = "/etc/esper/ca.crt"
    found = {"bus.json": json.dumps(address, indent=1) + "\n", "user.creds": creds}
    return found | ({"ca.crt": files.ca} if files.ca else {})


def _nats_files(files: BusFiles, settings: Settings) -> dict[str, str]:
    hosts = [f"esper-nats-{index}.esper-nats-peers" for index in range(settings.nats_replicas)]
    peers = [f"{host}.{settings.namespace}.svc:6222" for host in hosts] if len(hosts) > 1 else []
    config = nats_config(
        files.keys,
        store=STORE,
        tls=NATS_CONFIG if files.ca else None,
        storage=bytes_of(settings.nats_storage) // 10 * FOR_STREAMS,
        peers=peers,
    )
    if not files.ca:
        return {"nats.conf": config}
    domain = f"{settings.namespace}.svc"
    names = ["esper-nats", f"esper-nats.{domain}", f"esper-nats.{domain}.cluster.local", "localhost"]
    names += [f"{host}.{domain}" for host in hosts]
    made = tls_files(names, (files.ca, files.ca_key))
    return {"nats.conf": config} | {name: made[name] for name in ("tls.crt", "tls.key", "ca.crt")}


async def _mounted(mount: Path) -> BusFiles:
    """Wait for a Secret that another process has made: the kubelet mounts it within a minute or two."""
    _log.info("the Secret %s is there; waiting for its mount at %s", BUS_SECRET, mount)
    for _ in range(int(_MOUNT_SECONDS / _LOOK)):
        files = BusFiles.read(mount)
        if files is not None:
            return files
        await asyncio.sleep(_LOOK)
    raise InputError(
        f"{mount}: the Secret {BUS_SECRET} exists, but its keys did not appear here within "
        f"{_MOUNT_SECONDS:g} s; is it mounted, and is it the one that the operator has made? If it is not, "
        f"delete it together with {NATS_SECRET}"
    )


def _secret(
    name: str, component: str, texts: Mapping[str, str], settings: Settings, owner: Object | None
) -> Object:
    head: Object = {
        "name": name,
        "namespace": settings.namespace,
        "labels": {
            "app.kubernetes.io/name": "esper",
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/managed-by": "esper-operator",
        },
    }
    if owner is not None:
        head["ownerReferences"] = [owner]
    return {"metadata": head, "type": "Opaque", "stringData": dict(texts)}
