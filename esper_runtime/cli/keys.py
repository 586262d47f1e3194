"""`esper keys`: whose signatures this machine believes, and how to change that."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from esper_runtime.artifact import OVERLAP, KeyRing, TrustedKey, TrustList, esper_home
from esper_runtime.cli.output import output_option, print_json, table
from esper_runtime.contracts import Role

_ROLES = [role.value for role in Role]


@click.group()
def keys() -> None:
    """The keys that sign kernels on this machine: list, rotate, revoke."""


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
    columns = ("role", "key", "state", "since", "until")
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
        "state": _state(ring, key, trusted),
        "since": key.not_before.isoformat(timespec="seconds"),
        "until": key.not_after.isoformat(timespec="seconds") if key.not_after else None,
        "public": key.public,
    }


def _state(ring: KeyRing, key: TrustedKey, trusted: TrustList) -> str:
    if key.key in trusted.revoked_keys:
        return f"revoked: {trusted.revoked_keys[key.key].reason}"
    if key.not_after is not None and key.not_after < datetime.now(UTC):
        return "over"
    return "signs" if ring.signs_with(key) else "verifies"
