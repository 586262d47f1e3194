"""Statements as bytes: what is signed, who may say what, and the one form of a signed statement."""

import base64
import binascii
import hashlib
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from esper_runtime.contracts import (
    ArtifactError,
    Compiled,
    CompileFailed,
    ContractModel,
    Proposal,
    Role,
    Ruling,
    Signature,
    Signed,
    Statement,
    Verdict,
    canonical_json,
)

MAY_SAY: dict[type[ContractModel], Role] = {
    Compiled: Role.TEZZERET,
    CompileFailed: Role.TEZZERET,
    Verdict: Role.URABRASK,
    Ruling: Role.PLANNER,
    Proposal: Role.KARN,
}
"""Whose signature makes which statement count."""

_LARGEST = 1_048_576
_SAYING: TypeAdapter[Statement | Proposal] = TypeAdapter(Statement | Proposal)


def key_id(public: bytes) -> str:
    """The name of a raw public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def statement_bytes(statement: Statement | Proposal) -> bytes:
    """The bytes that are signed: canonical JSON, camelCase."""
    return canonical_json(statement.model_dump(mode="json", by_alias=True))


def parse_statement(text: str) -> Statement | Proposal:
    """The statement in a text whose signature was checked before.

    Raises:
        ArtifactError: it is not canonical JSON, no statement, or contradicts itself.
    """
    read_canonical(text.encode(), "the statement")
    try:
        statement = _SAYING.validate_json(text, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ArtifactError(f"not a statement: {place}: {first['msg']}") from None
    _check_agreement(statement)
    return statement


def encode_signed(signed: Signed) -> bytes:
    """A signed statement in its one form as a file or message."""
    return canonical_json(signed.model_dump(mode="json", by_alias=True))


def decode_signed(data: bytes) -> Signed:
    """What `encode_signed` made. Nothing is verified here.

    Raises:
        ArtifactError: it is too large or is not in the one allowed form.
    """
    return signed_from(read_canonical(data, "the signed statement"))


def signed_from(data: object) -> Signed:
    """A signed statement of parsed JSON.

    Raises:
        ArtifactError: it is none, or its signature is not written in the one allowed way.
    """
    try:
        signed = Signed.model_validate_json(json.dumps(data), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ArtifactError(f"not a signed statement: {place}: {first['msg']}") from None
    signature_bytes(signed.signature)
    return signed


def signature_bytes(signature: Signature) -> bytes:
    """The 64 bytes of a signature.

    Raises:
        ArtifactError: the text is not the one Base64 form of them.
    """
    try:
        value = base64.b64decode(signature.value, validate=True)
    except binascii.Error as error:
        raise ArtifactError(f"the signature is not Base64: {error}") from None
    if base64.b64encode(value).decode() != signature.value:
        raise ArtifactError("the signature is not written in its one allowed form")
    return value


def read_canonical(data: bytes, what: str) -> Any:
    """Parse JSON that must be in canonical form, at most 1 MiB.

    Raises:
        ArtifactError: ``what`` is too large, no JSON, or JSON in another form than the canonical one.
    """
    if len(data) > _LARGEST:
        raise ArtifactError(f"{what}: {len(data):,} bytes; allowed: {_LARGEST:,}")
    try:
        value = json.loads(data)
        same = canonical_json(value) == data
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, NaN, huge numbers, deep nesting
        raise ArtifactError(f"{what} is not canonical JSON: {error}") from None
    if not same:
        raise ArtifactError(f"{what} is JSON, but not in the one allowed form (sorted, no spaces)")
    return value


def _check_agreement(statement: Statement | Proposal) -> None:
    """A statement that says two things about one kernel says nothing."""
    if isinstance(statement, Compiled | CompileFailed):
        found = statement.spec.kernel_id
        if found != statement.kernel:
            raise ArtifactError(f"the statement names {statement.kernel}, but its spec is that of {found}")
    if isinstance(statement, Verdict):
        report = statement.report
        if (report.kernel, report.digest) != (statement.kernel, statement.digest):
            raise ArtifactError(
                f"the verdict names {statement.kernel}, but its report is about {report.kernel} "
                f"({report.digest[:16]})"
            )
