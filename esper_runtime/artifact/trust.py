"""Whom we believe: public keys by role with their times, revoked keys and revoked digests."""

import base64
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, Field, ValidationError, model_validator

from esper_runtime.artifact.guarded import guarded_folder, read_trusted
from esper_runtime.artifact.statements import MAY_SAY, key_id, parse_statement, signature_bytes
from esper_runtime.contracts import (
    ArtifactError,
    Compiled,
    ContractModel,
    Proposal,
    Role,
    Sha256,
    Signed,
    Statement,
    Verdict,
)

KEYS_FOLDER, TRUST_FILE = "keys", "trust.json"
MOST_KEYS = 1024
SKEW = timedelta(minutes=5)
"""A key may be this much younger than the clock says, so that a clock set back does not stop a machine."""


class TrustedKey(ContractModel):
    """A public key, whose it is and when it counts.

    ``public``: the 32 raw bytes in Base64. ``machine``: what a person calls the machine that it came from;
    absent for the keys of this one.
    """

    role: Role
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    public: str = Field(pattern=r"^[A-Za-z0-9+/]{43}=$")
    not_before: AwareDatetime
    not_after: AwareDatetime | None = None
    machine: str | None = Field(default=None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _named_by_its_bytes(self) -> Self:
        if key_id(self.raw) != self.key:
            raise ValueError(f"key {self.key} is not the name of its public bytes")
        return self

    @property
    def raw(self) -> bytes:
        """The public key's bytes."""
        return base64.b64decode(self.public)


class Revocation(ContractModel):
    """When something was revoked, and why."""

    time: AwareDatetime
    reason: str = Field(max_length=500)


class TrustList(ContractModel):
    """``keys/trust.json``."""

    version: Literal[1] = 1
    keys: tuple[TrustedKey, ...] = Field(default=(), max_length=MOST_KEYS)
    revoked_keys: dict[str, Revocation] = Field(default_factory=dict, max_length=1024)
    revoked_digests: dict[Sha256, Revocation] = Field(default_factory=dict, max_length=65_536)

    def find(self, key: str) -> TrustedKey | None:
        """The key with this name."""
        return next((known for known in self.keys if known.key == key), None)

    def encoded(self) -> bytes:
        """As a file that people can read."""
        return self.model_dump_json(by_alias=True, indent=1).encode() + b"\n"


def read_trust_list(path: Path) -> TrustList:
    """What ``trust.json`` says.

    Raises:
        ArtifactError: it cannot be read, others may change it, or it is no such list.
    """
    data = read_trusted(path)
    try:
        return TrustList.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ArtifactError(
            f"{path}: not a list of trusted keys: {place}: {first['msg']}. Restore it, or move the folder "
            "away: new keys are made, and what the old ones signed is made anew"
        ) from None


class Trust:
    """Verifies statements against a list of keys.

    With `load`, the file is looked at before each verification, so that a revocation counts at once in every
    process. May be used from several threads.

    Args:
        keys: the list.
    """

    def __init__(self, keys: TrustList) -> None:
        self._current: Callable[[], TrustList] = lambda: keys

    @classmethod
    def load(cls, home: Path) -> Self:
        """The trust of a machine, from ``<home>/keys/trust.json``.

        Raises:
            ArtifactError: there is none yet (`KeyRing.ensure` makes it), or it may not be used.
        """
        path = guarded_folder(home / KEYS_FOLDER) / TRUST_FILE
        trust = cls(read_trust_list(path))
        trust._current = _Watched(path)
        return trust

    @property
    def keys(self) -> TrustList:
        """The list as it is now."""
        return self._current()

    def verify(self, signed: Signed, role: Role, at: datetime | None = None) -> Statement:
        """The statement on a kernel, where ``role`` has signed it; nothing of it is parsed before that is
        known.

        Args:
            signed: the statement with its signature.
            role: who must have said it.
            at: the time to judge the key by; now, if not given.

        Raises:
            ArtifactError: the key is unknown, of another role, expired or revoked; the signature is wrong;
                the statement is not this role's to make, not canonical, or about a revoked digest.
        """
        statement = self._verified(signed, role, at)
        if isinstance(statement, Proposal):
            raise ArtifactError(f"a {statement.kind} says nothing about a kernel")
        if isinstance(statement, Compiled | Verdict) and statement.digest in self.keys.revoked_digests:
            reason = self.keys.revoked_digests[statement.digest].reason
            raise ArtifactError(f"the artifact {statement.digest[:16]} is revoked: {reason}")
        return statement

    def verify_proposal(self, signed: Signed) -> Proposal:
        """What the generator proposes, where it has signed it.

        Raises:
            ArtifactError: as `verify`.
        """
        statement = self._verified(signed, Role.KARN, None)
        if not isinstance(statement, Proposal):
            raise ArtifactError(f"a {statement.kind} is no proposal")
        return statement

    def _verified(self, signed: Signed, role: Role, at: datetime | None) -> Statement | Proposal:
        known, key = self.keys, signed.signature.key
        found = known.find(key)
        if found is None:
            raise ArtifactError(
                f"signed with the unknown key {key}; `esper keys list` shows the known ones, and "
                "`esper keys trust` takes another machine's"
            )
        if key in known.revoked_keys:
            raise ArtifactError(f"signed with key {key}, which is revoked: {known.revoked_keys[key].reason}")
        if found.role != role:
            raise ArtifactError(f"signed with key {key} of {found.role}; {role} must have signed it")
        now = at or datetime.now(UTC)
        if now < found.not_before - SKEW:
            raise ArtifactError(f"signed with key {key}, which counts only from {found.not_before} on")
        if found.not_after is not None and now > found.not_after:
            raise ArtifactError(f"signed with key {key}, which counted until {found.not_after}")
        value = signature_bytes(signed.signature)
        try:
            Ed25519PublicKey.from_public_bytes(found.raw).verify(value, signed.statement.encode())
        except (InvalidSignature, UnicodeEncodeError):
            raise ArtifactError(
                f"the signature of key {key} ({role}) does not belong to this statement"
            ) from None
        statement = parse_statement(signed.statement)
        if MAY_SAY[type(statement)] != role:
            raise ArtifactError(f"a {statement.kind} is not for {role} to say")
        return statement


class _Watched:
    """A trust list that is read again when its file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int, int], TrustList] | None = None

    def __call__(self) -> TrustList:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise ArtifactError(f"{self._path}: cannot be read ({error.strerror})") from error
        stamp = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        read = self._read
        if read is None or read[0] != stamp:
            read = (stamp, read_trust_list(self._path))
            self._read = read
        return read[1]
