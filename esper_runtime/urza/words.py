"""Words: what lies in the roles' buckets, and whether it counts."""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from esper_runtime.artifact import Trust, decode_signed, encode_signed
from esper_runtime.contracts import ArtifactError, Role, Signed, Statement


class Fault(StrEnum):
    """Why a word does not count."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    MISPLACED = "misplaced"


@dataclass(frozen=True)
class Word:
    """What a role said of a kernel, its signature checked."""

    statement: Statement
    signed: Signed

    @property
    def encoded(self) -> bytes:
        """As it lies in its role's bucket."""
        return encode_signed(self.signed)

    @property
    def key(self) -> str:
        """Where it lies in its role's bucket."""
        return word_key(self.statement.kernel, self.encoded)


def word_key(kernel: str, data: bytes) -> str:
    """``<kernel>.<first 32 hex digits of the SHA-256 of the word>``.

    A key is taken once and for good; so it names what lies there, and nobody can take the key of a word that
    was not said yet.
    """
    return f"{kernel}.{hashlib.sha256(data).hexdigest()[:32]}"


def hear(data: bytes, role: Role, key: str, trust: Trust) -> Word | Fault:
    """What the value under ``key`` in the bucket of ``role`` says, or why it says nothing.

    Malformed: not in the form of a signed statement. Unsigned: it has no signature. Forged: no key that is
    trusted for this role, and neither revoked nor expired, has signed it, or its statement contradicts itself
    or is not this role's to make. Misplaced: it would count, but lies under the key of another word.
    """
    try:
        signed = decode_signed(data)
    except ArtifactError:
        return Fault.UNSIGNED if _lacks_signature(data) else Fault.MALFORMED
    try:
        statement = trust.verify(signed, role)
    except ArtifactError:
        return Fault.FORGED
    if word_key(statement.kernel, data) != key:
        return Fault.MISPLACED
    return Word(statement, signed)


def _lacks_signature(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not value.get("signature")
