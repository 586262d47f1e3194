"""`esper worker`: a process that makes kernels, or tests them, until it is told to end."""

import logging

import click

from esper_runtime.cli.output import print_json


@click.group()
def worker() -> None:
    """A worker of the forge: takes work from the library's queue until SIGTERM.

    `esper forge serve` starts and ends workers; start one by hand to help it. ESPER_BUS names the file with
    the address of the worker's role.
    """


@worker.command()
def targets() -> int:
    """Print what kernels are made for on this machine, as JSON."""
    import torch

    from esper_runtime.kasmina.kernels import current_target

    devices = ["cpu", *(("cuda",) if torch.cuda.is_available() else ())]
    print_json([current_target(device).name for device in devices])
    return 0


def _prepare() -> None:
    """What every worker does first."""
    from esper_runtime.local.parent import end_with_parent

    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.CRITICAL)
