"""Words: what lies in the roles' buckets, and whether it counts."""

import json
from dataclasses import dataclass
from enum import StrEnum

from esper_runtime.artifact import Trust, decode_signed
from esper_runtime.contracts import (
    ArtifactError,
    Compiled,
    CompileFailed,
    Role,
    Ruling,
    Signed,
    Statement,
    Verdict,
)

FAILED = "failed"
"""Last part of the key of a failure to compile, in the place of a digest."""


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
    def key(self) -> str:
        """Where it lies in its role's bucket; a word is said once under its key."""
        return word_key(self.statement)


def word_key(statement: Statement) -> str:
    """``<kernel>.<digest>`` for what is said of an artifact, ``<kernel>.failed`` where none could be made,
    ``<kernel>.<time in digits>-<state>`` for rulings."""
    match statement:
        case Compiled() | Verdict():
            last = statement.digest
        case CompileFailed():
            last = FAILED
        case Ruling():
            digits = "".join(letter for letter in statement.time[:23] if letter.isdigit())
            last = f"{digits}-{statement.state.value}"
    return f"{statement.kernel}.{last}"


def hear(data: bytes, role: Role, key: str, trust: Trust) -> Word | Fault:
    """What the value under ``key`` in the bucket of ``role`` says, or why it says nothing.

    Malformed: not in the form of a signed statement. Unsigned: it has no signature. Forged: no key that is
    trusted for this role, and neither revoked nor expired, has signed it, or its statement contradicts itself
    or is not this role's to make. Misplaced: it counts, but under another key.
    """
    try:
        signed = decode_signed(data)
    except ArtifactError:
        return Fault.UNSIGNED if _lacks_signature(data) else Fault.MALFORMED
    try:
        word = Word(trust.verify(signed, role), signed)
    except ArtifactError:
        return Fault.FORGED
    return word if word.key == key else Fault.MISPLACED


def _lacks_signature(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not value.get("signature")
