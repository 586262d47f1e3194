"""NATS keys (Ed25519 in base32 with a checksum) and the signed claims (JWT) that they mint."""

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from esper_runtime.contracts import InputError

IMPORTED_API = "esper.api"
"""What stands for ``$JS.API`` in an account that imports its requests to JetStream."""
RUN_TAG, ROLE_TAG = "esper:run", "esper:role"
"""Tags of users whose account has no streams of its own: a run's, and a role's."""

_SEED = 18 << 3
"""First byte of a seed: it is written as S."""


class KeyKind(IntEnum):
    """What a key is for; the value is the first byte of its public form, written as O, A or U."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


@dataclass(frozen=True)
class NatsKey:
    """A private key.

    Attributes:
        kind: what it is for.
        raw: its 32 bytes.
    """

    kind: KeyKind
    raw: bytes

    @classmethod
    def from_seed(cls, text: str) -> Self:
        """The key in a seed (``SU...``, ``SA...``, ``SO...``).

        Raises:
            InputError: it is none.
        """
        wrong = InputError("not the seed of a NATS key: it is written SU, SA or SO and 56 more characters")
        try:
            data = base64.b32decode(text.strip() + "=" * (-len(text.strip()) % 8))
        except (binascii.Error, ValueError):
            raise wrong from None
        if len(data) != 36 or data[0] & 0xF8 != _SEED:
            raise wrong
        body, check = data[:-2], int.from_bytes(data[-2:], "little")
        kind = (data[0] & 0x07) << 5 | data[1] >> 3
        if binascii.crc_hqx(body, 0) != check or kind not in set(KeyKind):
            raise wrong
        return cls(KeyKind(kind), body[2:])

    @property
    def seed(self) -> str:
        """The private form."""
        return _encoded(bytes([_SEED | self.kind >> 5, (self.kind & 0x1F) << 3]) + self.raw)

    @property
    def public(self) -> str:
        """The public form."""
        public = Ed25519PrivateKey.from_private_bytes(self.raw).public_key()
        return _encoded(bytes([self.kind]) + public.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.raw).sign(data)


def mint(signer: NatsKey, subject: str, name: str, nats: Mapping[str, Any], issued: int) -> str:
    """A JWT as nats-server takes it.

    Args:
        signer: who says it.
        subject: public key that it is about.
        name: for people.
        nats: the claims proper.
        issued: Unix time in seconds.
    """
    body: dict[str, Any] = {"iat": issued, "iss": signer.public, "name": name, "sub": subject, "nats": nats}
    body["jti"] = secrets.token_hex(16)  # a server that has deleted an account passes over the very same text
    text = _part({"typ": "JWT", "alg": "ed25519-nkey"}) + "." + _part(body)
    return text + "." + _plain(signer.sign(text.encode()))


def claims(token: str) -> dict[str, Any]:
    """What a JWT says; its signature is not checked, which is the server's business.

    Raises:
        InputError: it is no JWT.
    """
    try:
        part = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return {"sub": str(found["sub"]), **found}
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise InputError("not a NATS JWT: three parts in base64, the second of them JSON") from error


@dataclass(frozen=True)
class Credentials:
    """What a ``.creds`` file holds: who one is, signed by the account, and the key that proves it."""

    token: str
    key: NatsKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a ``.creds`` file.

        Raises:
            InputError: it lacks the JWT or the seed of a user, or these do not belong together.
        """
        token, seed = _between(text, "NATS USER JWT"), _between(text, "USER NKEY SEED")
        key = NatsKey.from_seed(seed)
        if claims(token)["sub"] != key.public:
            raise InputError("the JWT is about another key than the one beside it")
        return cls(token, key)

    @property
    def user(self) -> str:
        """Public key of the user."""
        return str(claims(self.token)["sub"])

    @property
    def imports(self) -> bool:
        """Whether its account has no streams but imports what it needs, and all that it uses was made."""
        return bool({RUN_TAG, ROLE_TAG} & set(self._tags))

    @property
    def of_run(self) -> bool:
        """Whether it is a run's on a cluster."""
        return RUN_TAG in self._tags

    @property
    def _tags(self) -> tuple[str, ...]:
        return tuple(str(tag) for tag in claims(self.token).get("nats", {}).get("tags", ()))

    def sign_nonce(self, nonce: str) -> bytes:
        """The answer to a server that wants the key proved."""
        return base64.b64encode(self.key.sign(nonce.encode()))

    def text(self) -> str:
        """The file's text."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.key.seed}\n------END USER NKEY SEED------\n"
        )


def inbox_of(user: str) -> str:
    """Beginning of the inboxes that a user with a key may hear, and nobody else.

    Args:
        user: its public key.
    """
    return f"_INBOX_{user}"


def _between(text: str, what: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines[:-1]):
        if line.startswith("-----BEGIN") and what in line:
            return lines[number + 1]
    raise InputError(f"not a credentials file: it lacks the part {what!r}")


def _encoded(body: bytes) -> str:
    check = binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(body + check).decode().rstrip("=")


def _part(value: Mapping[str, Any]) -> str:
    return _plain(json.dumps(value, separators=(",", ":")).encode())


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
