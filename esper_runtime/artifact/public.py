"""Public keys on their way between machines: the file that one writes and another one takes."""

import base64
import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import ValidationError

from esper_runtime.artifact.guarded import read_bounded
from esper_runtime.artifact.statements import key_id
from esper_runtime.artifact.trust import TrustedKey, TrustList
from esper_runtime.contracts import InputError, Role

_LARGEST = 1_048_576


def fingerprint(key: TrustedKey) -> str:
    """The SHA-256 of a public key in groups of four hex digits, for people to compare; it begins with the
    key's name."""
    digits = hashlib.sha256(key.raw).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def encode_public_keys(keys: Collection[TrustedKey]) -> bytes:
    """A file that `read_public_keys` takes on another machine."""
    return TrustList(keys=tuple(key.model_copy(update={"machine": None}) for key in keys)).encoded()


def read_public_keys(path: Path, roles: Collection[Role] = ()) -> tuple[TrustedKey, ...]:
    """The public keys in a file: one that `encode_public_keys` has made, or a public key in PEM.

    Args:
        path: of the file.
        roles: whose keys are taken; all, if there are none. A PEM file does not say whose its key is: one
            role is needed.

    Raises:
        InputError: the file is neither, holds a private key, has no key of the roles, or none that counts.
        ArtifactError: it cannot be read.
    """
    data = read_bounded(path, _LARGEST)
    if b"PRIVATE KEY" in data:
        raise InputError(
            f"{path}: holds a private key, which is not to leave its machine; `esper keys export FILE` over "
            "there writes the public ones"
        )
    if data.lstrip().startswith(b"-----BEGIN"):
        return (_from_pem(path, data, roles),)
    try:
        found = TrustList.model_validate_json(data, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(
            f"{path}: not a file of public keys: {place}: {first['msg']}. `esper keys export FILE` on the "
            "other machine writes one; a public Ed25519 key in PEM is taken too"
        ) from None
    wanted = [key for key in found.keys if not roles or key.role in roles]
    if not wanted:
        there = ", ".join(sorted({key.role.value for key in found.keys})) or "none"
        asked = ", ".join(role.value for role in roles) or "any role"
        raise InputError(f"{path}: has no key of {asked}; keys of: {there}")
    now = datetime.now(UTC)
    current = [
        key.model_copy(update={"machine": None})
        for key in wanted
        if key.key not in found.revoked_keys and (key.not_after is None or key.not_after > now)
    ]
    if not current:
        raise InputError(f"{path}: its keys are over or revoked: {', '.join(key.key for key in wanted)}")
    return tuple(current)


def _from_pem(path: Path, data: bytes, roles: Collection[Role]) -> TrustedKey:
    if len(roles) != 1:
        raise InputError(
            f"{path}: a key in PEM does not say whose it is; give one --role of "
            f"{', '.join(role.value for role in Role)}"
        )
    try:
        public = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: not a public key in PEM: {error}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise InputError(f"{path}: not an Ed25519 key, which is the only kind that signs kernels")
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    (role,) = roles
    return TrustedKey(
        role=role,
        key=key_id(raw),
        public=base64.b64encode(raw).decode(),
        not_before=datetime.now(UTC),
    )
