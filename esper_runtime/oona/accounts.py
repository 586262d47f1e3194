"""Keys, accounts and users of a cluster's bus, all derived from one secret: only that must be kept."""

import base64
import binascii
import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from esper_runtime.contracts import InputError, canonical_json, check_subject_word, name_on_bus
from esper_runtime.oona.nkeys import ROLE_TAG, RUN_TAG, Credentials, KeyKind, NatsKey, claims, inbox_of, mint
from esper_runtime.oona.roles import BusRole
from esper_runtime.oona.walls import ROLES, Passage, of_core, of_library, of_role, of_run

_MASTER = "master.key"
_RUN, _NAMESPACE = "run/", "namespace/"
_FOR_GOOD = 2**33
"""A user is revoked up to this date (Unix time; in the year 2242), whenever its JWT was issued."""
_NO_LIMIT = -1


@dataclass(frozen=True)
class BusKeys:
    """The accounts of a bus, and who is let into them.

    ``SYS`` is the server's own. ``CORE`` has the streams of library and forge, and each namespace an account
    with the streams of its runs; only the operator is let into these. Each role and each run has an account
    without storage, which imports what it needs (`esper_runtime.oona.walls`). Users do not expire: a client
    whose JWT has expired is lost for good. A run's user is revoked by its account.

    Attributes:
        master: 32 random bytes, from which all keys follow. Who has them may do everything on this bus.
    """

    master: bytes

    @classmethod
    def generate(cls) -> Self:
        """New ones."""
        return cls(secrets.token_bytes(32))

    def files(self) -> dict[str, str]:
        """What is to be kept, and kept secret, by file name."""
        return {_MASTER: base64.b64encode(self.master).decode() + "\n"}

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Self:
        """What `files` gave; others are passed over.

        Raises:
            InputError: the master key is missing or is none.
        """
        if _MASTER not in files:
            raise InputError(
                f"the bus's keys lack {_MASTER} (there is: {', '.join(sorted(files)) or 'nothing'})"
            )
        try:
            master = base64.b64decode(files[_MASTER].strip(), validate=True)
        except (binascii.Error, ValueError):
            master = b""
        if len(master) != 32:
            raise InputError(f"{_MASTER} must be 32 bytes in base64; restore it from where it was kept")
        return cls(master)

    def secret(self, name: str, size: int = 32) -> bytes:
        """Bytes that follow from the master key and a name (HKDF with SHA-256)."""
        derive = HKDF(algorithm=SHA256(), length=size, salt=b"esper bus 1", info=name.encode())
        return derive.derive(self.master)

    # Accounts

    def operator_jwt(self) -> str:
        """Who signs accounts, and which account is the server's own."""
        operator = self._operator
        nats = {"system_account": self._account("SYS").public, "type": "operator", "version": 2}
        return mint(operator, operator.public, "esper", nats, _now())

    @property
    def system_account(self) -> str:
        """Public key of ``SYS``."""
        return self._account("SYS").public

    def fixed_accounts(self) -> dict[str, str]:
        """JWT by public key of the accounts that every server of this bus has from the start."""
        names: dict[str, str] = {
            self._account("SYS").public: self._account_jwt("SYS"),
            self._account("CORE").public: self.account_jwt(None),
        }
        core = self._account("CORE").public
        for role in ROLES:
            imports = [passage.imported(core) for passage in of_role(role)]
            key = self._account(_of_role(role))
            names[key.public] = self._account_jwt(_of_role(role), imports=imports)
        return names

    def account_jwt(self, namespace: str | None) -> str:
        """The account of a namespace's streams; None: the core's.

        Raises:
            InputError: the namespace cannot stand in a subject.
        """
        if namespace is None:
            return self._account_jwt("CORE", exports=of_core(), storage=True)
        return self._account_jwt(_of_namespace(namespace), exports=of_run(namespace, "*", "*"), storage=True)

    def run_account_jwt(self, namespace: str, run: str, uid: str, attempt: int) -> str:
        """The account of a run, into which only the user of one attempt is let, and earlier ones no more.

        Args:
            namespace: of the run.
            run: its name.
            uid: its resource's.
            attempt: the one that may be there, from 1.

        Raises:
            InputError: namespace or run cannot stand in a subject, or the uid is none.
        """
        name = _of_run(namespace, run, uid)
        on_bus = name_on_bus(run, uid)
        mine = of_run(namespace, on_bus, consumer_name(namespace, on_bus))
        imports = [one.imported(self._account(_of_namespace(namespace)).public) for one in mine]
        imports += [one.imported(self._account("CORE").public) for one in of_library()]
        revoked = {self._user(name, f"attempt {number}").public: _FOR_GOOD for number in range(1, attempt)}
        return self._account_jwt(name, imports=imports, revoked=revoked)

    def run_account(self, namespace: str, run: str, uid: str) -> str:
        """Public key of a run's account."""
        return self._account(_of_run(namespace, run, uid)).public

    def namespace_account(self, namespace: str) -> str:
        """Public key of a namespace's account."""
        return self._account(_of_namespace(namespace)).public

    def deletion_jwt(self, accounts: Iterable[str]) -> str:
        """The order to forget accounts.

        Args:
            accounts: their public keys.
        """
        operator = self._operator
        nats = {"accounts": list(accounts), "type": "generic", "version": 2}
        return mint(operator, operator.public, "delete", nats, _now())

    # Users: each is the text of a .creds file

    def system_creds(self) -> str:
        """Who may push accounts."""
        return self._creds("SYS", "operator", None)

    def operator_creds(self, namespace: str | None) -> str:
        """Who may do everything in a namespace's account; None: in the core."""
        return self._creds("CORE" if namespace is None else _of_namespace(namespace), "operator", None)

    def role_creds(self, role: BusRole) -> str:
        """A role's user.

        Raises:
            InputError: it has no account of its own.
        """
        if role is BusRole.PLANNER:
            return self.operator_creds(None)
        if role not in ROLES:
            raise InputError(
                f"{role.value} has no account on a cluster's bus; a training gets the credentials of its run"
            )
        return self._creds(_of_role(role), role.value, of_role(role), ROLE_TAG)

    def role_digest(self, role: BusRole) -> str:
        """Who a role's user is and what it may do, as 64 hex digits: as long as these stay, so do they.

        Raises:
            InputError: as `role_creds`.
        """
        said = claims(Credentials.parse(self.role_creds(role)).token)
        lasting = {name: value for name, value in said.items() if name not in ("iat", "jti")}
        return hashlib.sha256(canonical_json(lasting)).hexdigest()

    def run_creds(self, namespace: str, run: str, uid: str, attempt: int) -> str:
        """The user of one attempt of a run; the same each time but for its date.

        Raises:
            InputError: as `run_account_jwt`.
        """
        name, on_bus = _of_run(namespace, run, uid), name_on_bus(run, uid)
        mine = (*of_run(namespace, on_bus, consumer_name(namespace, on_bus)), *of_library())
        return self._creds(name, f"attempt {attempt}", mine, RUN_TAG)

    # Derivation

    @property
    def _operator(self) -> NatsKey:
        return NatsKey(KeyKind.OPERATOR, self.secret("operator"))

    def _account(self, name: str) -> NatsKey:
        return NatsKey(KeyKind.ACCOUNT, self.secret(f"account/{name}"))

    def _user(self, account: str, name: str) -> NatsKey:
        return NatsKey(KeyKind.USER, self.secret(f"user/{account}/{name}"))

    def _account_jwt(
        self,
        name: str,
        *,
        exports: Iterable[Passage] = (),
        imports: Iterable[Mapping[str, Any]] = (),
        storage: bool = False,
        revoked: Mapping[str, int] | None = None,
    ) -> str:
        free = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        stored = ("mem_storage", "disk_storage", "streams", "consumer")
        limits: dict[str, Any] = dict.fromkeys(free, _NO_LIMIT) | {"wildcards": True}
        limits |= dict.fromkeys(stored, _NO_LIMIT if storage else 0)
        nats: dict[str, Any] = {
            "limits": limits,
            "default_permissions": {"pub": {}, "sub": {}},
            "exports": [passage.export() for passage in exports],
            "imports": list(imports),
            "type": "account",
            "version": 2,
        }
        if revoked:
            nats["revocations"] = dict(revoked)
        return mint(self._operator, self._account(name).public, name, nats, _now())

    def _creds(self, account: str, name: str, rights: Iterable[Passage] | None, tag: str = "") -> str:
        key = self._user(account, name)
        nats: dict[str, Any] = {"subs": _NO_LIMIT, "data": _NO_LIMIT, "payload": _NO_LIMIT}
        if rights is not None:
            passages = tuple(rights)
            says = [passage.used for passage in passages if not passage.heard]
            hears = [passage.used for passage in passages if passage.heard]
            nats["pub"] = {"allow": says}
            nats["sub"] = {"allow": [f"{inbox_of(key.public)}.>", *hears]}
            nats["tags"] = [tag]
        nats |= {"type": "user", "version": 2}
        token = mint(self._account(account), key.public, f"{account} {name}", nats, _now())
        return Credentials(token, key).text()


def account_name(token: str) -> str:
    """What an account's JWT calls it."""
    return str(claims(token).get("name", ""))


def run_of_account(name: str) -> tuple[str, str, str] | None:
    """Namespace, name and uid of the run that an account of this name is for; None where it is for no run."""
    words = name.removeprefix(_RUN).split("/")
    if not name.startswith(_RUN) or len(words) != 3:
        return None
    return words[0], words[1].rpartition("-")[0], words[2]


def namespace_of_account(name: str) -> str | None:
    """The namespace that an account of this name is for; None where it is for none."""
    return name.removeprefix(_NAMESPACE) if name.startswith(_NAMESPACE) else None


def consumer_name(namespace: str, run: str) -> str:
    """Name of the durable consumer with which a run reads its directives."""
    return f"run_{namespace}_{run}"


def _of_role(role: BusRole) -> str:
    return f"role/{role.value}"


def _of_namespace(namespace: str) -> str:
    return f"{_NAMESPACE}{check_subject_word(namespace, 'namespace')}"


def _of_run(namespace: str, run: str, uid: str) -> str:
    """The whole uid is in it: what two short ones have in common is no way in."""
    return f"{_RUN}{check_subject_word(namespace, 'namespace')}/{name_on_bus(run, uid)}/{uid}"


def _now() -> int:
    return int(time.time())
