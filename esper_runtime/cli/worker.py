"""`esper worker`: a process that makes kernels, tests them or invents blueprints, until it is told to end."""

import asyncio
import contextlib
import logging
import signal
from dataclasses import asdict

import click

from esper_runtime.cli.output import print_json
from esper_runtime.contracts import Role


@click.group()
def worker() -> None:
    """A worker of the forge: takes work from the library's queue until SIGTERM.

    `esper forge serve` starts and ends workers; start one by hand to help it. ESPER_BUS names the file with
    the address of the worker's role.
    """


@worker.command(
    epilog="""\b
Examples:
  esper worker targets                what `esper forge serve` asks before it plans"""
)
def targets() -> int:
    """Print what kernels are made for on this machine, as JSON."""
    from esper_runtime.kasmina.kernels import current_target

    print_json([current_target().name])
    return 0


_EPILOG = """\b
Examples:
  ESPER_BUS=~/.local/share/esper/bus/bus-{0}.json esper worker {0}
  esper worker {0} --bus nats://10.0.0.7:4222

It may be stopped, killed and started again at any time; what it had in hand comes again."""

_bus = click.option(
    "--bus",
    metavar="FILE|URL",
    help="The library's bus: a file with the address for this role, or a URL; default: what ESPER_BUS names.",
)
_listen = click.option("--listen", metavar="HOST:PORT", help="Serve GET /healthz and GET /metrics here.")


@worker.command(epilog=_EPILOG.format("tezzeret"))
@_bus
@_listen
def tezzeret(bus: str | None, listen: str | None) -> int:
    """Make kernels of blueprints, for this machine's target."""
    return work_off(Role.TEZZERET, bus, listen=listen)


@worker.command(epilog=_EPILOG.format("urabrask"))
@_bus
@_listen
def urabrask(bus: str | None, listen: str | None) -> int:
    """Test kernels in a sandbox, and validate or reject them."""
    return work_off(Role.URABRASK, bus, listen=listen)


@worker.command(epilog=_EPILOG.format("karn"))
@_bus
@_listen
def karn(bus: str | None, listen: str | None) -> int:
    """Invent blueprints for trainings whose manifest asks for it (spec.innovation)."""
    return work_off(Role.KARN, bus, listen=listen)


def work_off(
    role: Role,
    bus: str | None,
    *,
    idle_seconds: float | None = None,
    listen: str | None = None,
) -> int:
    """Run a worker in this process until it is told to end, or has been idle for ``idle_seconds``."""
    import torch

    from esper_runtime import karn, tezzeret, urabrask
    from esper_runtime.artifact import KeyRing, esper_home
    from esper_runtime.cli.tamiyo import bus_address
    from esper_runtime.kasmina.kernels import current_target
    from esper_runtime.local.parent import end_with_parent
    from esper_runtime.nissa import Exposition, StatusServer, WorkerMetrics, listen_address

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    end_with_parent()
    torch.set_num_threads(1)
    address, keyring, target = bus_address(bus), KeyRing(esper_home()), current_target()
    counts: tezzeret.Made | urabrask.Judged | karn.Proposed
    match role:
        case Role.TEZZERET:
            counts = tezzeret.Made()
        case Role.URABRASK:
            counts = urabrask.Judged()
        case _:
            counts = karn.Proposed()

    async def work() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if isinstance(counts, tezzeret.Made):
            await tezzeret.serve(address, keyring, target, stop=stop, idle_seconds=idle_seconds, done=counts)
        elif isinstance(counts, urabrask.Judged):
            await urabrask.serve(
                address, keyring, target, stop=stop, idle_seconds=idle_seconds, judged=counts
            )
        else:
            await karn.serve(address, keyring, target.name, stop=stop, idle_seconds=idle_seconds, done=counts)

    click.echo(f"works for {target.name}", err=True)
    with contextlib.ExitStack() as stack:
        if listen is not None:
            metrics = Exposition(WorkerMetrics(role.value, lambda: asdict(counts)))
            status = StatusServer(*listen_address(listen), lambda: None, metrics.text)
            stack.enter_context(status)
            click.echo(f"listens at http://{status.host}:{status.port}", err=True)
        asyncio.run(work())
    click.echo(str(counts), err=True)
    return 0
