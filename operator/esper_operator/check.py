"""`esper-operator check`: whether an installation works, in one line for each part. `helm test` runs it."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click

from esper_operator.bus import BUS_SECRET, BusFiles
from esper_operator.kube import KubeApi, KubeError, configured
from esper_operator.rights import Right, Rights, has
from esper_operator.settings import Settings
from esper_operator.trial import CheckError, bus_round_trip, trial_run
from esper_runtime.contracts import BusError, InputError

RIGHTS_VARIABLE = "ESPER_CHECK_RIGHTS"
PARTS = ("rights", "bus", "run")

_AT_ONCE = 8
_SHOWN = 10

Say = Callable[[str], None]


async def check(settings: Settings, parts: Sequence[str], rights: str, place: str, say: Say) -> int:
    """Check parts of an installation, one after the other, all of them whatever fails.

    Args:
        settings: of the release.
        parts: of `PARTS`.
        rights: for `Rights.read`.
        place: namespace in which a run is tried.
        say: prints a line.

    Returns:
        The exit code: 0 where all is well, else 1.

    Raises:
        InputError: there is no way to the API server, or ``rights`` are none.
    """
    wanted = Rights.read(rights) if "rights" in parts else None
    kube = KubeApi(await configured())

    async def review() -> str:
        assert wanted is not None
        return await _review(kube, wanted)

    deeds: dict[str, Callable[[], Awaitable[str]]] = {
        "rights": review,
        "bus": lambda: _bus(settings),
        "run": lambda: trial_run(kube, place, settings.namespace, say),
    }
    failed = 0
    try:
        for part in parts:
            began = time.monotonic()
            try:
                found = await deeds[part]()
                say(f"ok      {part}: {found} ({time.monotonic() - began:.1f} s)")
            except (CheckError, KubeError, BusError, InputError) as error:
                failed += 1
                say(f"FAILED  {part}: {error}")
    finally:
        await kube.close()
    return 1 if failed else 0


async def _review(kube: KubeApi, wanted: Rights) -> str:
    """Ask for every right; the first lines of what is wrong, with what to do."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(right: Right) -> bool:
        async with gate:
            return await has(kube, right)

    given = await asyncio.gather(*map(ask, wanted.given))
    refused = await asyncio.gather(*map(ask, wanted.refused))
    lacking = [right for right, there in zip(wanted.given, given, strict=True) if not there]
    beyond = [right for right, there in zip(wanted.refused, refused, strict=True) if there]
    if lacking:
        raise CheckError(
            f"the operator's service account may not {_list(lacking)}; install with rbac.create=true, or "
            "give the account what `helm template` shows then"
        )
    if beyond:
        raise CheckError(
            f"the operator's service account may {_list(beyond)}, which Esper does not need and which gives "
            "away every Secret there; remove the binding that allows it (`kubectl auth can-i --list "
            "--as=system:serviceaccount:NAMESPACE:NAME` shows the rights)"
        )
    return f"{len(wanted.given)} rights given, {len(wanted.refused)} on Secrets refused"


def _list(rights: Sequence[Right]) -> str:
    more = f", and {len(rights) - _SHOWN} more" if len(rights) > _SHOWN else ""
    return ", ".join(map(str, rights[:_SHOWN])) + more


async def _bus(settings: Settings) -> str:
    if not settings.nats_url:
        return "none: nats.url is empty, so runs train alone"
    files = BusFiles.read(Path(settings.bus_keys))
    if files is None:
        raise CheckError(
            f"{settings.bus_keys} holds no keys: the operator makes the Secret {BUS_SECRET} at its first "
            f"start; `kubectl -n {settings.namespace} logs deployment/esper-operator` says why it did not"
        )
    with tempfile.TemporaryDirectory() as folder:
        authority = Path(folder, "ca.crt")
        authority.write_text(files.ca)
        return await bus_round_trip(files, settings, str(authority) if files.ca else None)


@click.command(
    "check",
    epilog="""\b
Examples:
  esper-operator check                        all parts
  esper-operator check rights bus             with the operator's own account and the bus's keys
  esper-operator check run --in team-a        a run of half a minute, made and removed again

\b
Exit codes: 0 all is well, 1 something is not (the line says what, and what to do), 2 wrong settings.""",
)
@click.argument("parts", nargs=-1, type=click.Choice(PARTS), metavar="[rights] [bus] [run]")
@click.option(
    "--rights", envvar=RIGHTS_VARIABLE, default="[]", metavar="JSON", help="That the account should have."
)
@click.option(
    "--in", "place", metavar="NAMESPACE", help="Where the run is tried; default: the release's namespace."
)
@click.pass_obj
def check_command(settings: Settings, parts: Sequence[str], rights: str, place: str | None) -> None:
    """Check an installation from inside the cluster: rights, the bus, a run. `helm test` calls it."""
    try:
        code = asyncio.run(
            check(
                settings, parts or PARTS, rights, place or settings.namespace, lambda line: click.echo(line)
            )
        )
    except InputError as error:
        click.echo(error, err=True)
        code = 2
    sys.exit(code)
