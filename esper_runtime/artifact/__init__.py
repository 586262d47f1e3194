"""Artifacts, signatures and keys: what a kernel's file looks like, who vouches for it, and whom we believe.

Nothing here is parsed before the digest over the whole archive and the signatures were checked.
"""

from esper_runtime.artifact.archive import (
    ArchiveLimits,
    decode_archive,
    encode_archive,
    pack,
    read_archive,
)
from esper_runtime.artifact.artifact import VerifiedArtifact, artifact_files, open_artifact
from esper_runtime.artifact.guarded import HOME_VARIABLE, esper_home, guarded_folder, write_atomically
from esper_runtime.artifact.keys import OVERLAP, KeyRing, sign_with
from esper_runtime.artifact.public import encode_public_keys, fingerprint, read_public_keys
from esper_runtime.artifact.statements import (
    MAY_SAY,
    decode_signed,
    encode_signed,
    parse_statement,
    read_canonical,
    signed_from,
)
from esper_runtime.artifact.trust import Revocation, Trust, TrustedKey, TrustList

__all__ = [
    "HOME_VARIABLE",
    "MAY_SAY",
    "OVERLAP",
    "ArchiveLimits",
    "KeyRing",
    "Revocation",
    "Trust",
    "TrustList",
    "TrustedKey",
    "VerifiedArtifact",
    "artifact_files",
    "decode_archive",
    "decode_signed",
    "encode_archive",
    "encode_public_keys",
    "encode_signed",
    "esper_home",
    "fingerprint",
    "guarded_folder",
    "open_artifact",
    "pack",
    "parse_statement",
    "read_archive",
    "read_canonical",
    "read_public_keys",
    "sign_with",
    "signed_from",
    "write_atomically",
]
