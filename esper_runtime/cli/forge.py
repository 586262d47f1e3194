"""`esper forge`: the process that plans and keeps workers, how it stands, and what a person decides."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from esper_runtime.cli.at_library import bus_option
from esper_runtime.cli.output import bar, notice, output_option, print_json, table
from esper_runtime.contracts import InputError, Pipeline, load_run
from esper_runtime.nissa import duration

if TYPE_CHECKING:
    from esper_runtime.forge import Desk, ForgeStatus
    from esper_runtime.local import Ready
    from esper_runtime.local.processes import ProcessTable

T = TypeVar("T")

EXIT_INTERRUPTED = 75

workers_option = click.option(
    "--workers",
    type=click.IntRange(0, 64),
    help="How many workers of the forge may work at a time, each on a core of its own away from the "
    "training's; 0: none, so that a run makes what it lacks itself before its first step. Default: all cores "
    "but one, at most 4.",
)


@click.group()
def forge() -> None:
    """The forge: blueprints become signed, tested kernels beside the trainings."""


@forge.command(
    epilog="""\b
Examples:
  esper forge serve                   for the library of this machine, while anybody uses it
  esper forge serve --bus FILE        for a library on another bus, until SIGTERM

`esper run` starts it. Of several for one library one works; the others wait to take its place."""
)
@workers_option
@bus_option
def serve(workers: int | None, bus: str | None) -> int:
    """Plan what is to be made and tested, and keep workers for it.

    What it knows lies on the bus: it may be stopped, killed and started again at any time.
    """
    from esper_runtime.artifact import esper_home
    from esper_runtime.local.forge import default_workers, place_of, roles, serve_forge
    from esper_runtime.local.home import FORGE, HomeBus
    from esper_runtime.oona import BusRole

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    number = default_workers() if workers is None else workers
    home = esper_home()
    if bus is not None:
        serve_forge(place_of(roles(_address_file(bus, home)), home, None), number, notice)
        return 0
    with HomeBus(FORGE, home) as own:
        files = {role: own.file_of(role) for role in BusRole}
        serve_forge(place_of(files, home, own), number, notice)
    return 0


@forge.command(
    epilog="""\b
Examples:
  esper forge prepare run.yaml                        what `esper run run.yaml` would make first
  esper forge prepare run.yaml --pipeline standard    compiled twins too; tens of seconds each

Exit codes: 0 done, 1 no kernel may be used, 2 wrong input, 75 interrupted; what is made stays."""
)
@click.argument("manifests", type=click.Path(path_type=Path), metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--pipeline",
    type=click.Choice([Pipeline.FAST.value, Pipeline.STANDARD.value]),
    default=Pipeline.FAST.value,
    show_default=True,
    help="fast: what seeds are planted with. standard: these, and native code for the twins of kept seeds.",
)
@output_option
def prepare(manifests: tuple[Path, ...], pipeline: str, output: str) -> int:
    """Make and test the kernels that the hosts of manifests could use, before they are run.

    They lie on this machine's shelf then: `esper run` begins at once, and needs no forge to begin. What is
    there already is verified and kept.
    """
    from esper_runtime.local import prepare_kernels
    from esper_runtime.local.signals import SignalQueue
    from esper_runtime.tolaria import ForgingStoppedError

    runs = [(load_run(path), path.resolve().parent) for path in manifests]
    begun = time.monotonic()
    pipelines = [Pipeline.FAST, *([Pipeline.STANDARD] if pipeline == Pipeline.STANDARD else [])]
    found: dict[Pipeline, Ready] = {}
    with SignalQueue() as signals:
        arrived: list[object] = []

        def stopping() -> bool:
            arrived.extend(signals.take())
            return bool(arrived)

        for each in pipelines:
            with bar(f"{each.value} kernels") as progress:
                try:
                    found[each] = prepare_kernels(
                        runs, each, lambda _, done, total: progress(done, total), stopping
                    )
                except ForgingStoppedError:
                    notice("stopped; what is made stays, and the same command goes on from there")
                    return EXIT_INTERRUPTED
    seconds = time.monotonic() - begun
    if output == "json":
        print_json(_ready_data(found, seconds))
    else:
        _print_ready(found, seconds)
    return 0


@forge.command(
    epilog="""\b
Examples:
  esper forge status                  tables for people
  esper forge status --output json    for programs"""
)
@bus_option
@output_option
def status(bus: str | None, output: str) -> int:
    """Show kernels by state, queues, workers, and the dead letters with their reasons."""
    from esper_runtime.artifact import esper_home
    from esper_runtime.local.forge import forge_at_work

    found = _at_desk(bus, lambda desk: desk.status())
    at_work = forge_at_work(esper_home())
    if output == "json":
        print_json(_data(found, at_work))
    else:
        _print(found, at_work)
    return 0


@forge.command(
    epilog="""\b
Examples:
  esper forge retry ck-0123456789ab   a kernel that was given up or quarantined
  esper forge retry --all             every dead letter that can be read"""
)
@click.argument("names", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every dead letter that can be read.")
@bus_option
def retry(names: tuple[str, ...], everything: bool, bus: str | None) -> int:
    """Have kernels tried again that were given up, dropped or quarantined.

    ID is a kernel (ck-...) or the number of a dead letter, as `esper forge status` shows them.
    """
    if bool(names) is everything:
        raise InputError("give the ids of kernels or the numbers of dead letters, or --all")

    async def work(desk: "Desk") -> list[str]:
        return await desk.retry_all() if everything else [await desk.retry(name) for name in names]

    for line in _at_desk(bus, work) or ["there are no dead letters that can be tried again"]:
        click.echo(line)
    return 0


@forge.command(
    epilog="""\b
Examples:
  esper forge drop 3                  dead letter 3, as `esper forge status` shows it"""
)
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@bus_option
def drop(names: tuple[str, ...], bus: str | None) -> int:
    """Take dead letters off the list, and leave their kernels alone.

    ID is a kernel (ck-...) or the number of a dead letter, as `esper forge status` shows them.
    """

    async def work(desk: "Desk") -> list[str]:
        return [await desk.drop(name) for name in names]

    for line in _at_desk(bus, work):
        click.echo(line)
    return 0


def _at_desk(bus: str | None, work: Callable[["Desk"], Awaitable[T]]) -> T:
    """Do something at the desk of the library that is named, starting the machine's own bus if need be."""
    from esper_runtime.artifact import esper_home
    from esper_runtime.local.forge import desk_at
    from esper_runtime.local.home import HomeBus
    from esper_runtime.oona import BusAddress, BusRole

    home = esper_home()

    async def at(address: BusAddress) -> T:
        async with desk_at(address, home) as desk:
            return await work(desk)

    if bus is not None:
        return asyncio.run(at(BusAddress.named(bus, "--bus")))
    with HomeBus("command", home) as own:
        return asyncio.run(at(own.address_of(BusRole.PLANNER)))


def _address_file(bus: str, home: Path) -> Path:
    """A file with the address that is named, for child processes."""
    from esper_runtime.oona import BusAddress

    if "://" not in bus:
        BusAddress.named(bus, "--bus")
        return Path(bus).resolve()
    path = home / "library-bus.json"
    BusAddress.named(bus, "--bus").store(path)
    return path


def _data(found: "ForgeStatus", at_work: "ProcessTable | None") -> dict[str, object]:
    workers = at_work.children if at_work is not None else ()
    return {
        "kernels": found.states,
        "queues": [{"work": q.work, "target": q.target, "items": q.items} for q in found.queues],
        "forge": at_work.supervisor.pid if at_work is not None else None,
        "workers": [{"role": worker.role, "pid": worker.pid} for worker in workers],
        "deadLetters": [
            {
                "id": letter.number,
                "kernel": letter.kernel,
                **letter.dead.model_dump(mode="json", by_alias=True),
            }
            for letter in found.letters
        ],
        "ignoredWords": found.ignored,
        "invented": found.invented,
        "refusedProposals": found.refused,
    }


def _print(found: "ForgeStatus", at_work: "ProcessTable | None") -> None:
    table("Kernels", ("state", "kernels"), [(k, str(n)) for k, n in found.states.items()], ("kernels",))
    table(
        "Queues",
        ("work", "target", "items"),
        [(q.work, q.target, str(q.items)) for q in found.queues],
        ("items",),
    )
    if at_work is None:
        click.echo("No forge runs on this machine; `esper run` and `esper forge serve` start one.")
    else:
        processes = [at_work.supervisor, *at_work.children]
        table("Processes", ("part", "pid"), [(p.role, str(p.pid)) for p in processes], ("pid",))
    if found.letters:
        rows = [
            (str(each.number), dead.work, each.kernel or "-", str(dead.deliveries), dead.reason)
            for each in found.letters
            for dead in (each.dead,)
        ]
        columns = ("id", "work", "kernel", "deliveries", "reason")
        table("Dead letters", columns, rows, ("id", "deliveries"))
    if found.invented or found.refused:
        counts = [(f"entered, {origin}", str(number)) for origin, number in found.invented.items()]
        counts += [(f"refused, {reason}", str(number)) for reason, number in found.refused.items()]
        table("Invented blueprints", ("what", "blueprints"), counts, ("blueprints",))
    for reason, number in found.ignored.items():
        click.echo(f"{number} {reason} words in the library do not count; see `esper library verify`")


def _ready_data(found: "dict[Pipeline, Ready]", seconds: float) -> dict[str, object]:
    return {
        "kernels": [
            {
                "kernel": kernel.kernel,
                "digest": kernel.digest,
                "blueprint": kernel.blueprint,
                "name": kernel.name,
                "pipeline": kernel.pipeline.value,
                "tags": list(kernel.tags),
                "risk": kernel.risk,
                "made": kernel.kernel in ready.made,
            }
            for ready in found.values()
            for kernel in ready.kernels.values()
        ],
        "refused": {kernel: why for ready in found.values() for kernel, why in ready.refused.items()},
        "seconds": round(seconds, 3),
    }


def _print_ready(found: "dict[Pipeline, Ready]", seconds: float) -> None:
    rows = [
        (each.value, str(len(ready.kernels)), str(len(ready.made)), str(len(ready.refused)))
        for each, ready in found.items()
    ]
    columns = ("pipeline", "ready", "made now", "refused")
    table(f"Kernels on the shelf, after {duration(seconds)}", columns, rows, columns[1:])
    for ready in found.values():
        for kernel, why in ready.refused.items():
            click.echo(f"{kernel} may not be used: {why}")
