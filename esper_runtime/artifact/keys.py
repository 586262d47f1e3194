"""The keys that the machine's workers sign with: made at first use, rotated, revoked."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from esper_runtime.artifact.guarded import guarded_folder, locked, read_private, write_atomically
from esper_runtime.artifact.statements import MAY_SAY, key_id, statement_bytes
from esper_runtime.artifact.trust import (
    KEYS_FOLDER,
    MOST_KEYS,
    TRUST_FILE,
    Revocation,
    Trust,
    TrustedKey,
    TrustList,
    read_trust_list,
)
from esper_runtime.contracts import (
    ArtifactError,
    InputError,
    Proposal,
    Role,
    Signature,
    Signed,
    Statement,
)

OVERLAP = timedelta(days=30)
"""How long a key that was replaced still verifies."""


def sign_with(private: Ed25519PrivateKey, statement: Statement | Proposal) -> Signed:
    """The statement with the signature of a key, whose role is to be one that may say it."""
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    data = statement_bytes(statement)
    value = base64.b64encode(private.sign(data)).decode()
    return Signed(statement=data.decode(), signature=Signature(key=key_id(public), value=value))


class KeyRing:
    """Keys of all roles in ``<home>/keys``: one private key in use for each, and the trust list.

    Private keys are ``<role>-<key>.pem`` (0600); nothing is used that others may read or write. Several
    processes may use the folder at once.

    Args:
        home: the machine's folder (`esper_home`); made where it lacks.

    Raises:
        ArtifactError: the folder cannot be made, or is not ours alone to write.
    """

    def __init__(self, home: Path) -> None:
        self.home = guarded_folder(Path(home))
        self._folder = guarded_folder(self.home / KEYS_FOLDER)
        self._trust_file = self._folder / TRUST_FILE

    @property
    def trust(self) -> Trust:
        """The trust of this machine; the list is made where there is none.

        Raises:
            ArtifactError: the list may not be used.
        """
        with locked(self._folder):
            if not self._trust_file.exists():
                self._store(TrustList())
        return Trust.load(self.home)

    def ensure(self, role: Role) -> TrustedKey:
        """The key that ``role`` signs with; a new one where there is none that counts.

        Raises:
            ArtifactError: a file of the ring may not be used.
        """
        with locked(self._folder):
            return self._in_use(role) or self._new(role)

    def sign(self, role: Role, statement: Statement | Proposal) -> Signed:
        """The statement with the signature of ``role``.

        Raises:
            ArtifactError: it is not this role's to say, or the key may not be used.
        """
        if MAY_SAY[type(statement)] != role:
            raise ArtifactError(f"a {statement.kind} is not for {role} to say")
        return sign_with(self._private(role, self.ensure(role).key), statement)

    def rotate(self, role: Role, overlap: timedelta = OVERLAP) -> TrustedKey:
        """Sign with a new key from now on; the ones before still verify for ``overlap``, and cannot sign.

        Raises:
            ArtifactError: a file of the ring may not be used.
        """
        now = datetime.now(UTC)
        with locked(self._folder):
            known = self._load()
            until = now + overlap
            kept = [
                key.model_copy(update={"not_after": min(key.not_after or until, until)})
                if key.role == role and key.machine is None
                else key
                for key in known.keys
            ]
            self._store(known.model_copy(update={"keys": tuple(kept)}))
            new = self._new(role)
            for key in kept:
                if key.role == role:
                    self._path(role, key.key).unlink(missing_ok=True)
        return new

    def revoke(self, name: str, reason: str) -> None:
        """Believe a key, or an artifact, no more, whoever signed it; this cannot be taken back.

        A revoked key's private half is deleted; its role gets a new one when it signs next.

        Args:
            name: a key (16 hex digits) that is known, or an artifact's digest (64 hex digits).
            reason: for people, at most 500 characters.

        Raises:
            InputError: ``name`` is neither; ``reason`` is too long.
            ArtifactError: a file of the ring may not be used.
        """
        if len(reason) > 500:
            raise InputError(f"a reason of {len(reason)} characters; allowed: 500")
        with locked(self._folder):
            known = self._load()
            revoked = Revocation(time=datetime.now(UTC), reason=reason)
            key = known.find(name)
            if key is not None:
                change = {"revoked_keys": {name: revoked} | known.revoked_keys}
            elif len(name) == 64 and not set(name) - set("0123456789abcdef"):
                change = {"revoked_digests": {name: revoked} | known.revoked_digests}
            else:
                keys = ", ".join(key.key for key in known.keys) or "none"
                raise InputError(
                    f"{name!r} is neither a known key nor a digest (64 hex digits); known keys: {keys}"
                )
            self._store(known.model_copy(update=change))
            if key is not None:
                self._path(key.role, key.key).unlink(missing_ok=True)

    def own(self) -> tuple[TrustedKey, ...]:
        """The public keys of this machine that count now, of all roles; those that lack are made.

        Raises:
            ArtifactError: a file of the ring may not be used.
        """
        now = datetime.now(UTC)
        with locked(self._folder):
            for role in Role:
                if self._in_use(role) is None:
                    self._new(role)
            known = self._load()
        return tuple(
            key
            for key in known.keys
            if key.machine is None
            and key.key not in known.revoked_keys
            and (key.not_after is None or key.not_after > now)
        )

    def believe(self, keys: Sequence[TrustedKey], machine: str) -> list[TrustedKey]:
        """Believe what another machine's keys sign, each for its role, until it is over or revoked.

        Args:
            keys: its public keys (`read_public_keys`).
            machine: what a person calls it, 1 to 64 characters.

        Returns:
            Those that were not known before.

        Raises:
            InputError: a key was revoked here, is known as that of another role, or there are too many;
                nothing is changed.
            ArtifactError: a file of the ring may not be used.
        """
        if not 0 < len(machine) <= 64:
            raise InputError(f"a machine's name of {len(machine)} characters; allowed: 1 to 64")
        with locked(self._folder):
            known = self._load()
            for key in keys:
                there = known.find(key.key)
                if key.key in known.revoked_keys:
                    why = known.revoked_keys[key.key].reason
                    raise InputError(f"key {key.key} was revoked here ({why}); that cannot be taken back")
                if there is not None and there.role != key.role:
                    raise InputError(
                        f"key {key.key} is known as one of {there.role.value}; it cannot be one of "
                        f"{key.role.value} too: each role has keys of its own"
                    )
            new = {key.key: key for key in keys if known.find(key.key) is None}
            if len(known.keys) + len(new) > MOST_KEYS:
                raise InputError(f"{len(known.keys) + len(new)} keys; at most {MOST_KEYS} can be believed")
            added = [key.model_copy(update={"machine": machine}) for key in new.values()]
            if added:
                self._store(known.model_copy(update={"keys": (*known.keys, *added)}))
        return added

    def signs_with(self, key: TrustedKey) -> bool:
        """Whether it is the key that its role signs with now, on this machine."""
        with locked(self._folder):
            used = self._in_use(key.role)
        return used is not None and used.key == key.key

    def _in_use(self, role: Role) -> TrustedKey | None:
        now = datetime.now(UTC)
        known = self._load()
        usable = [
            key
            for key in known.keys
            if key.role == role
            and key.key not in known.revoked_keys
            and (key.not_after is None or key.not_after > now)
            and self._path(role, key.key).exists()
        ]
        return max(usable, key=lambda key: key.not_before, default=None)

    def _new(self, role: Role) -> TrustedKey:
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        key = TrustedKey(
            role=role,
            key=key_id(public),
            public=base64.b64encode(public).decode(),
            not_before=datetime.now(UTC),
        )
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(self._path(role, key.key), pem, 0o600)
        known = self._load()
        self._store(known.model_copy(update={"keys": (*known.keys, key)}))
        return key

    def _private(self, role: Role, key: str) -> Ed25519PrivateKey:
        path = self._path(role, key)
        try:
            private = load_pem_private_key(read_private(path), password=None)
        except ValueError as error:
            raise ArtifactError(f"{path}: not a private key: {error}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ArtifactError(f"{path}: not an Ed25519 key")
        found = key_id(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        if found != key:
            raise ArtifactError(f"{path}: holds the key {found}; remove the file, and a new key is made")
        return private

    def _path(self, role: Role, key: str) -> Path:
        return self._folder / f"{role.value}-{key}.pem"

    def _load(self) -> TrustList:
        return read_trust_list(self._trust_file) if self._trust_file.exists() else TrustList()

    def _store(self, known: TrustList) -> None:
        write_atomically(self._trust_file, known.encoded(), 0o644)
