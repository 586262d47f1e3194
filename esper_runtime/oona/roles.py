"""Who may say and hear what on the bus of the machine's library: one table, rendered for nats-server.

Within an account the server does not check where an answer is sent, so that a role can have an answer
delivered to a subject that it may not publish to. What counts in the library is therefore the signature
(`esper_runtime.artifact`), and buckets of signed words take each key once and no roll-up, so that nothing
that is delivered to them replaces or removes anything.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from esper_runtime.contracts import LIBRARY_SUBJECT, PROPOSALS_SUBJECT, BusError


class BusRole(StrEnum):
    """A user of the bus. None may make or change streams, for a stream can be told to take in anything."""

    PLANNER = "planner"
    TEZZERET = "tezzeret"
    URABRASK = "urabrask"
    KARN = "karn"
    TRAINING = "training"
    READER = "reader"


@dataclass(frozen=True)
class Rights:
    """What a role may do besides receiving its own replies.

    Attributes:
        says: subjects that it may publish to.
        hears: subjects that it may subscribe to.
        reads: streams that it may read, by direct get or with consumers of its own.
        works: streams on whose given consumers it may pull and acknowledge.
    """

    says: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    works: tuple[str, ...] = ()


_LIBRARY = (
    "LIBRARY",
    "KV_blueprints",
    "KV_wishes",
    "KV_compiled",
    "KV_verdicts",
    "KV_rulings",
    "OBJ_artifacts",
)

MAKER = "maker"
"""The user that makes streams and stores while the server starts, and is removed then."""

TABLE: Mapping[BusRole, Rights] = {
    BusRole.PLANNER: Rights(
        says=(
            "$JS.API.STREAM.PURGE.OBJ_artifacts",
            "$JS.API.STREAM.MSG.DELETE.FORGE",
            "$JS.API.STREAM.MSG.DELETE.DEAD",
            "$JS.API.CONSUMER.DURABLE.CREATE.FORGE.*",
            "$JS.API.CONSUMER.DELETE.FORGE.*",
            "$KV.blueprints.>",
            "$KV.notes.>",
            "$KV.rulings.>",
            "$O.artifacts.>",  # removing what is no longer used
            "esper.forge.>",
            "esper.dead.>",
            LIBRARY_SUBJECT,
        ),
        hears=("esper.>", "$KV.>", "$JS.EVENT.ADVISORY.>"),
        reads=(*_LIBRARY, "KV_notes", "FORGE", "DEAD", "REPORTS", "PROPOSALS"),
    ),
    BusRole.TEZZERET: Rights(
        says=("$KV.compiled.>", "$O.artifacts.>", "esper.dead.compile.*", LIBRARY_SUBJECT),
        hears=(LIBRARY_SUBJECT,),
        reads=_LIBRARY,
        works=("FORGE",),
    ),
    BusRole.URABRASK: Rights(
        says=("$KV.verdicts.>", "esper.dead.evaluate.*", LIBRARY_SUBJECT),
        hears=(LIBRARY_SUBJECT,),
        reads=(*_LIBRARY, "REPORTS"),
        works=("FORGE",),
    ),
    BusRole.KARN: Rights(
        says=(PROPOSALS_SUBJECT, "esper.dead.generate.*"),
        reads=("KV_blueprints",),  # what is new is what is not there
        works=("FORGE",),
    ),
    BusRole.TRAINING: Rights(
        says=("$KV.wishes.>", "esper.run.*.*.report"),
        hears=(LIBRARY_SUBJECT,),
        reads=(*_LIBRARY, "REPORTS"),
    ),
    BusRole.READER: Rights(
        hears=(LIBRARY_SUBJECT,),
        reads=(*_LIBRARY, "DEAD", "REPORTS"),
    ),
}
"""The table of permissions. All that is not in it is refused by the server."""

_ANYBODY = (
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.CONSUMER.INFO.FORGE.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.NAMES.*",
)


def inbox_prefix(user: str | None) -> str:
    """A prefix for the inboxes of one connection: nobody else uses it, and only its role may hear it."""
    own = secrets.token_hex(8)
    return f"_INBOX_{user}.{own}" if user in set(BusRole) else f"_INBOX_{own}"


def publishes(role: BusRole) -> tuple[str, ...]:
    """The subjects that the server lets a role publish to."""
    rights = TABLE[role]
    subjects = [*rights.says, *_ANYBODY]
    for stream in rights.reads:
        subjects += [
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}.>",
            f"$JS.API.CONSUMER.CREATE.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.INFO.{stream}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
            f"$JS.ACK.{stream}.>",
            f"$JS.FC.{stream}.>",
        ]
    for stream in rights.works:
        subjects += [f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*", f"$JS.ACK.{stream}.>"]
    return tuple(dict.fromkeys(subjects))


def subscribes(role: BusRole) -> tuple[str, ...]:
    """The subjects that the server lets a role subscribe to."""
    return (f"_INBOX_{role.value}.>", *TABLE[role].hears)


def authorization(passwords: Mapping[str, str], maker: str | None = None) -> str:
    """The ``authorization`` block of a nats-server's configuration: a user for each role.

    Args:
        passwords: by role.
        maker: password of the user `MAKER`, who may do everything; None for no such user.
    """
    users: list[dict[str, object]] = [
        {
            "user": role.value,
            "password": passwords[role.value],
            "permissions": {
                "publish": {"allow": list(publishes(role))},
                "subscribe": {"allow": list(subscribes(role))},
            },
        }
        for role in BusRole
    ]
    if maker is not None:
        users.append({"user": MAKER, "password": maker})
    return f"authorization {{ users: {json.dumps(users)} }}"


def load_passwords(path: Path) -> dict[str, str]:
    """A random password for each role, kept in a file (0600) that is made where it lacks.

    Raises:
        BusError: the file cannot be used, or others may read it.
    """
    try:
        if path.exists():
            return _read_passwords(path)
        passwords = {role.value: secrets.token_urlsafe(32) for role in BusRole}
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(passwords, file)
            os.link(name, path)  # whole, or not at all; another process may have been first
        finally:
            os.unlink(name)
    except FileExistsError:
        return _read_passwords(path)
    except OSError as error:
        raise BusError(f"{path}: the bus's passwords cannot be kept ({error.strerror})") from error
    return passwords


def _read_passwords(path: Path) -> dict[str, str]:
    if path.stat().st_mode & 0o077:
        raise BusError(f"{path}: holds passwords but others may read it; run: chmod 600 {path}")
    try:
        found = json.loads(path.read_text())
        passwords = {role.value: str(found[role.value]) for role in BusRole}
    except (ValueError, KeyError, TypeError) as error:
        raise BusError(
            f"{path}: lacks the password of a role ({error}); remove it while the bus is not running, "
            "and new ones are made"
        ) from None
    return passwords
