"""`esper keys`: whose signatures this machine believes, and how to change that."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from esper_runtime.artifact import (
    OVERLAP,
    KeyRing,
    TrustedKey,
    TrustList,
    encode_public_keys,
    esper_home,
    fingerprint,
    read_public_keys,
    write_atomically,
)
from esper_runtime.cli.output import notice, output_option, print_json, table
from esper_runtime.contracts import InputError, Role

_ROLES = [role.value for role in Role]


@click.group()
def keys() -> None:
    """The keys that sign kernels: this machine's, and those of others that it believes."""


@keys.command(
    "list",
    epilog="""\b
Examples:
  esper keys list
  esper keys list --output json""",
)
@output_option
def list_keys(output: str) -> None:
    """List the keys that are believed, and what was revoked."""
    ring = KeyRing(esper_home())
    trusted = ring.trust.keys
    data = [_data(ring, key, trusted) for key in trusted.keys]
    revoked = {digest: found.reason for digest, found in trusted.revoked_digests.items()}
    if output == "json":
        print_json({"home": str(ring.home), "keys": data, "revokedDigests": revoked})
        return
    columns = ("role", "key", "machine", "state", "since", "until")
    rows = [tuple(each[column] or "-" for column in columns) for each in data]
    table(f"{len(rows)} keys in {ring.home / 'keys'}", columns, rows)
    if revoked:
        table("Revoked artifacts", ("digest", "reason"), revoked.items())


@keys.command(
    epilog="""\b
Examples:
  esper keys rotate
  esper keys rotate urabrask --overlap-days 0"""
)
@click.argument("roles", nargs=-1, type=click.Choice(_ROLES), metavar="[ROLE]...")
@click.option(
    "--overlap-days",
    type=click.FloatRange(0, 3650),
    default=OVERLAP.days,
    show_default=True,
    help="How long signatures of the keys before still count.",
)
def rotate(roles: tuple[str, ...], overlap_days: float) -> None:
    """Sign with new keys from now on: of the given ROLEs, or of all."""
    ring = KeyRing(esper_home())
    for role in roles or _ROLES:
        new = ring.rotate(Role(role), timedelta(days=overlap_days))
        click.echo(f"{role}: signs with {new.key} from now on")


@keys.command(
    epilog="""\b
Examples:
  esper keys export here.json         then, on the other machine: esper keys trust here.json"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
def export(file: Path) -> None:
    """Write this machine's public keys into FILE, for `esper keys trust` on another one.

    No private key leaves the machine. The fingerprints are shown, to be compared over there.
    """
    own = KeyRing(esper_home()).own()
    write_atomically(file, encode_public_keys(own), 0o644)
    _show(f"{len(own)} public keys in {file}", own)


@keys.command(
    epilog="""\b
Examples:
  esper keys trust there.json                          all keys that the other machine has exported
  esper keys trust there.json --role urabrask          only what tells which kernels have passed
  esper keys trust there.pem --role tezzeret --yes     a public key in PEM, without a question

What these keys sign is believed as if it came from here: kernels, compiled code among them, run on this
machine on their word. Compare the fingerprints with those that `esper keys export` shows over there.
`esper keys revoke KEY` ends it."""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(_ROLES),
    help="Only keys of this role (may be given several times); needed for a key in PEM.",
)
@click.option("--machine", help="What to call the other machine; default: the file's name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def trust(file: Path, roles: tuple[str, ...], machine: str | None, yes: bool) -> None:
    """Believe the keys of another machine that are in FILE, each for its role.

    Then `esper library import` takes what that machine has exported.
    """
    ring = KeyRing(esper_home())
    found = read_public_keys(file, [Role(role) for role in roles])
    _show(f"{len(found)} public keys in {file}", found)
    if not yes:
        _ask()
    added = ring.believe(found, machine or file.stem[:64])
    for key in added:
        click.echo(f"{key.role.value}: {key.key} is believed from now on")
    if len(added) < len(found):
        click.echo(f"{len(found) - len(added)} of them were believed before")


def _ask() -> None:
    """Go on where a person says yes.

    Raises:
        InputError: they say no, or there is nobody to ask.
    """
    try:
        sure = click.confirm("Are these the fingerprints of the other machine?", err=True)
    except click.Abort:
        notice("")
        raise InputError("nobody has answered, so nothing is believed; --yes does not ask") from None
    if not sure:
        raise InputError("nothing was changed: these keys are not believed")


def _show(title: str, found: Sequence[TrustedKey]) -> None:
    rows = [(key.role.value, key.key, fingerprint(key)) for key in found]
    table(title, ("role", "key", "fingerprint"), rows)


@keys.command(
    epilog="""\b
Examples:
  esper keys revoke 3f2a9c0d1e4b5a67 --reason "the file was copied"
  esper keys revoke DIGEST --reason "it crashed a host"

What a revoked key signed counts no more: those kernels are made and tested again when they are needed. A
revoked artifact counts no more whoever signed it. Neither can be taken back."""
)
@click.argument("name", metavar="KEY|DIGEST")
@click.option("--reason", required=True, help="Why; shown wherever it is refused.")
def revoke(name: str, reason: str) -> None:
    """Believe a KEY (16 hex digits), or an artifact by its DIGEST (64 hex digits), no more."""
    KeyRing(esper_home()).revoke(name, reason)
    click.echo(f"{name} is revoked")


def _data(ring: KeyRing, key: TrustedKey, trusted: TrustList) -> dict[str, Any]:
    return {
        "role": key.role.value,
        "key": key.key,
        "machine": key.machine or "this one",
        "state": _state(ring, key, trusted),
        "since": key.not_before.isoformat(timespec="seconds"),
        "until": key.not_after.isoformat(timespec="seconds") if key.not_after else None,
        "public": key.public,
        "fingerprint": fingerprint(key),
    }


def _state(ring: KeyRing, key: TrustedKey, trusted: TrustList) -> str:
    if key.key in trusted.revoked_keys:
        return f"revoked: {trusted.revoked_keys[key.key].reason}"
    if key.not_after is not None and key.not_after < datetime.now(UTC):
        return "over"
    return "signs" if ring.signs_with(key) else "verifies"
