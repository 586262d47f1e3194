"""`esper tamiyo`: the controller as a service of its own.

A supervisor starts ``python -m esper_runtime.cli tamiyo serve`` with the path of the bus address file in the
environment variable ``ESPER_BUS`` (a URL would do as well), needs no other argument, and ends it with SIGTERM
(exit code 0). It may be started before the bus, and started again at any time.
"""

import logging
from typing import TYPE_CHECKING

import click

from esper_runtime.cli.output import notice
from esper_runtime.contracts import InputError

if TYPE_CHECKING:
    from esper_runtime.oona import BusAddress


@click.group()
def tamiyo() -> None:
    """The controller as a service: decides for runs that ask over the bus."""


@tamiyo.command(
    epilog="""\b
Examples:
  esper tamiyo serve --bus runs/mnist1d/bus.json
  esper tamiyo serve --bus nats://10.0.0.7:4222 --listen 0.0.0.0:9464

A run asks the service where its manifest sets growth.controller.placement to Service. Any number of services
may be started: they share the runs. SIGTERM ends one in order."""
)
@click.option(
    "--bus",
    metavar="FILE|URL",
    help="The bus: a file with its address, or a URL; default: what ESPER_BUS names.",
)
@click.option("--listen", metavar="HOST:PORT", help="Serve GET /healthz and GET /metrics here.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Questions worked on at the same time.",
)
def serve(bus: str | None, listen: str | None, concurrency: int) -> int:
    """Decide for every run that asks over the bus, until SIGTERM.

    Nothing of a run is kept here. A run that gets no answer decides by itself and comes back later, so that
    this process may be stopped, killed and started again at any time.
    """
    from esper_runtime.nissa import listen_address
    from esper_runtime.tamiyo.service import serve

    address = bus_address(bus)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.ERROR)
    where = listen_address(listen) if listen else None
    serve(address, where, concurrency, lambda url: notice(f"status: {url}/healthz {url}/metrics"))
    return 0


def bus_address(given: str | None) -> "BusAddress":
    """The bus that is named on the command line, or in the environment.

    Raises:
        InputError: none is named, or what is named makes no sense.
    """
    from esper_runtime.oona import BUS_VARIABLE, BusAddress

    if given is None:
        found = BusAddress.from_environment()
        if found is None:
            raise InputError(
                f"no bus is named: give --bus FILE or --bus nats://HOST:4222, or set {BUS_VARIABLE}; "
                f"`esper run` leaves the address of its bus in runs/NAME/bus.json"
            )
        return found
    return BusAddress.named(given, "--bus")
