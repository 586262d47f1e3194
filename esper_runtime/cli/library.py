"""`esper library`, `esper blueprint add` and `archive`: blueprints and kernels of a machine, or of a bus."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper_runtime.blueprint import load_blueprint
from esper_runtime.cli.at_library import at_library, bus_option, with_speakers
from esper_runtime.cli.kernels import (
    blueprint_data,
    kernel_data,
    lineage_data,
    print_blueprints,
    print_entry,
    print_kernel,
    print_kernels,
)
from esper_runtime.cli.models import blueprint
from esper_runtime.cli.output import bar, notice, output_option, print_json, table
from esper_runtime.contracts import (
    BlueprintEntry,
    ContractModel,
    InputError,
    KernelRecord,
    KernelState,
    Origin,
    nearest,
)

if TYPE_CHECKING:
    from esper_runtime.oona import BusRole
    from esper_runtime.urza import Library, Lineage, Transferred


@click.group()
def library() -> None:
    """Blueprints, kernels and their artifacts: list, show, check, move."""


@library.command(
    epilog="""\b
Examples:
  esper library ls
  esper library ls --state Validated --blueprint mlp-4
  esper library ls --output json"""
)
@click.option(
    "--state", type=click.Choice([state.value for state in KernelState]), help="Only kernels in this state."
)
@click.option("--blueprint", "which", metavar="NAME|ID", help="Only this blueprint and its kernels.")
@bus_option
@output_option
def ls(state: str | None, which: str | None, bus: str | None, output: str) -> None:
    """List the blueprints and kernels of the library."""

    async def work(own: "Library") -> tuple[dict[str, Any], list[BlueprintEntry], list[KernelRecord]]:
        records, blueprints = await own.records(), await own.blueprints()
        ids = set(blueprints) if which is None else {_blueprint_id(which, blueprints)}
        shown = [entry for entry in blueprints.values() if entry.blueprint in ids]
        kernels = [
            record
            for record in records.values()
            if (which is None or record.spec.blueprint in ids) and state in (None, record.state.value)
        ]
        about = {
            "incarnation": own.incarnation,
            "ignored": {fault.value: number for fault, number in own.ignored.items() if number},
        }
        return about, shown, kernels

    about, blueprints, kernels = at_library(bus, work)
    blueprints.sort(key=lambda entry: (entry.graph.interface, entry.graph.name))
    names = {entry.blueprint: entry.graph.name for entry in blueprints}
    kernels.sort(key=lambda record: (names.get(record.spec.blueprint, ""), record.kernel))
    if output == "json":
        entries = [blueprint_data(entry) for entry in blueprints]
        print_json(about | {"blueprints": entries, "kernels": [kernel_data(one) for one in kernels]})
        return
    if not blueprints and not kernels:
        click.echo(
            "the library is empty; `esper run` enters the catalogue, `esper blueprint add FILE` your own"
        )
    if blueprints:
        print_blueprints(blueprints, kernels)
    if kernels:
        print_kernels(kernels, names)
    if about["ignored"]:
        counts = ", ".join(f"{number} {fault}" for fault, number in about["ignored"].items())
        notice(f"words that do not count: {counts} (`esper library verify` lists them)")


@library.command(
    epilog="""\b
Examples:
  esper library show bp-0123456789ab
  esper library show ck-0123456789ab --output json"""
)
@click.argument("identity", metavar="ID")
@bus_option
@output_option
def show(identity: str, bus: str | None, output: str) -> None:
    """Show a blueprint (bp-...) or kernel (ck-...): what is known of it, and its lineage."""

    async def work(own: "Library") -> "tuple[Lineage, KernelRecord | None, BlueprintEntry | None]":
        found = await own.lineage(identity)
        entries = await own.blueprints()
        return found, await own.record(identity), entries.get(found.blueprint)

    relations, record, entry = at_library(bus, work)
    told: ContractModel | None = record if record is not None else entry
    if output == "json":
        data = {} if told is None else told.model_dump(mode="json", by_alias=True)
        print_json(data | {"lineage": lineage_data(relations)})
    elif record is not None:
        print_kernel(record, entry, relations)
    else:
        print_entry(entry, relations)


@library.command(
    epilog="""\b
Examples:
  esper library export library.esper
  esper library export /backup/library.esper --bus nats://bus.example:4222"""
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@bus_option
@output_option
def export(path: Path, bus: str | None, output: str) -> None:
    """Write the library into one FILE: blueprints, signed words, artifacts, field reports."""
    from esper_runtime.urza import export_library

    with bar("export", in_bytes=True) as progress:
        done = at_library(bus, lambda own: export_library(own, path, progress))
    _print_transferred(done, f"{path}: ", output)


@library.command(
    "import",
    epilog="""\b
Examples:
  esper library import library.esper
  esper library import /backup/library.esper --bus nats://bus.example:4222

The whole file is checked before anything is entered. What is there stays as it is; importing twice changes
nothing. Words count only with signatures that this machine believes (`esper keys list`).""",
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@bus_option
@output_option
def import_(path: Path, bus: str | None, output: str) -> None:
    """Bring what FILE holds into a library that lacks it."""
    from esper_runtime.urza import import_library

    with bar("check and import", in_bytes=True) as progress:

        async def work(speakers: "dict[BusRole, Library]") -> "Transferred":
            return await import_library(path, speakers, progress)

        done = with_speakers(bus, work)
    _print_transferred(done, f"{path}: new: ", output)


@library.command(
    epilog="""\b
Examples:
  esper library verify
  esper library verify --output json"""
)
@bus_option
@output_option
def verify(bus: str | None, output: str) -> int:
    """Check every artifact against its digest, signatures and blueprint.

    Words that do not count are listed. Exit code 1 when something does not match.
    """
    from esper_runtime.urza import verify_library

    with bar("verify") as progress:
        found = at_library(bus, lambda own: verify_library(own, progress))
    if output == "json":
        print_json([{"what": one.what, "passed": one.passed, "says": one.says} for one in found])
    elif found:
        rows = [("ok" if one.passed else "BAD", one.what, one.says) for one in found]
        table("", ("", "what", "finding"), rows)
    else:
        click.echo("the library has no kernels yet")
    return int(any(not one.passed for one in found))


@library.command(
    epilog="""\b
Examples:
  esper library gc --dry-run
  esper library gc"""
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@bus_option
@output_option
def gc(dry_run: bool, bus: str | None, output: str) -> None:
    """Remove artifacts that no record names.

    Only what is older than an hour goes: a word that names it may be on its way. Blueprints, kernels, reports
    and all that was said of them stay for good.
    """
    from esper_runtime.urza import collect_garbage

    found = at_library(bus, lambda own: collect_garbage(own, dry_run=dry_run))
    size = sum(one.bytes for one in found.artifacts)
    if output == "json":
        artifacts = [{"digest": one.digest, "bytes": one.bytes} for one in found.artifacts]
        print_json({"removed": not dry_run, "artifacts": artifacts, "unfinished": found.orphans})
        return
    if found.artifacts:
        rows = [
            (one.digest, f"{one.bytes:,}", one.stored.isoformat(timespec="seconds"))
            for one in found.artifacts
        ]
        table("", ("artifact", "bytes", "stored"), rows, ("bytes",))
    verb = "would be removed" if dry_run else "removed"
    click.echo(
        f"{verb}: {len(found.artifacts)} artifacts, {size:,} bytes; "
        f"what was left of {len(found.orphans)} unfinished puts"
    )


@blueprint.command(
    epilog="""\b
Examples:
  esper blueprint add my-blueprint.yaml
  esper blueprint add blueprints/*.yaml --bus nats://bus.example:4222

An entered blueprint goes the same way as the built-in ones: the forge makes kernels of it for the slots that
trainings have, they are tested, and may then be planted. One that was archived is taken out again."""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@bus_option
def add(files: tuple[Path, ...], bus: str | None) -> None:
    """Enter blueprint FILEs into the library, once all of them have passed the static check."""
    graphs = [load_blueprint(path) for path in files]

    async def work(own: "Library") -> list[str]:
        return [await own.enter(graph, Origin.USER.value, reinstate=True) for graph in graphs]

    for path, identity in zip(files, at_library(bus, work, make=True), strict=True):
        click.echo(f"{path}: {identity} is in the library")


@blueprint.command(
    epilog="""\b
Examples:
  esper blueprint archive bp-0123456789ab --reason "never kept"
  esper blueprint archive mlp-4 --reason "too small for us"

`esper blueprint add FILE` takes a blueprint out of the archive."""
)
@click.argument("name", metavar="NAME|ID")
@click.option("--reason", default="archived by a person", show_default=True, help="Why; kept with it.")
@bus_option
def archive(name: str, reason: str, bus: str | None) -> None:
    """Offer a blueprint and its kernels no more; all that is known of them stays."""

    async def work(own: "Library") -> str:
        identity = _blueprint_id(name, await own.blueprints())
        await own.archive(identity, reason)
        return identity

    click.echo(f"{at_library(bus, work)} is archived")


def _print_transferred(done: "Transferred", begin: str, output: str) -> None:
    if output == "json":
        counts = {"blueprints": done.blueprints, "words": done.words, "artifacts": done.artifacts}
        counts["reports"] = done.reports
        print_json(counts | {"bytes": done.bytes, "leftOut": done.left_out})
        return
    click.echo(
        f"{begin}{done.blueprints} blueprints, {done.words} signed words, {done.artifacts} artifacts "
        f"({done.bytes:,} bytes), {done.reports} field reports"
    )
    for line in done.left_out:
        notice(f"left out: {line}")


def _blueprint_id(name: str, blueprints: Mapping[str, BlueprintEntry]) -> str:
    """The id of a blueprint in the library, by its id or name.

    Raises:
        InputError: there is none, or several have this name.
    """
    if name in blueprints:
        return name
    found = [identity for identity, entry in blueprints.items() if entry.graph.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{len(found)} blueprints are called {name!r}; give an id: {', '.join(sorted(found))}"
        )
    near = nearest(name, [*blueprints, *(entry.graph.name for entry in blueprints.values())])
    hint = f"; nearest: {near!r}" if near else ""
    raise InputError(f"the library has no blueprint {name!r}{hint} (`esper library ls`)")
