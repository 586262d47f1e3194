"""`esper pod`: what the containers of a cluster run; the operator writes their environment and mounts."""

import os
from pathlib import Path

import click

from esper_runtime.cli.worker import work_off
from esper_runtime.contracts import Role
from esper_runtime.local.children import LISTEN_VARIABLE
from esper_runtime.planning import IDLE_SECONDS

_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="/etc/esper",
    show_default=True,
    metavar="DIR",
    help="The mounted Secret.",
)


@click.group()
def pod() -> None:
    """What runs inside a pod on Kubernetes; the operator starts it.

    Everything is written below /tmp and /var/esper: the root file system may be read-only, and the user any.
    """


@pod.command(
    epilog="""\b
Exit codes: 0 complete, 75 resume me, 76 a peer died, 77 spec.budget is used up, 2 wrong input,
137 a rank was killed (most likely for memory), else 1."""
)
@_config
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default="/var/esper",
    show_default=True,
    metavar="DIR",
    help="The run's claim; the run is in DIR/runs/NAME.",
)
def train(config: Path, data: Path) -> int:
    """Train as one pod of a run: manifest.yaml in the Secret says which.

    JOB_COMPLETION_INDEX says which pod this is, ESPER_MASTER where the first one is to be found. SIGTERM
    leaves a checkpoint. A run that is complete ends at once.
    """
    from esper_runtime.local import pod as inside

    return inside.train(config, data, click.echo)


_idle = click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=IDLE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="End after so long without work.",
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="To work for; auto: cuda where there is one.",
)


@pod.command()
@_config
@_idle
@_device
def tezzeret(config: Path, idle: float, device: str) -> int:
    """Make kernels of blueprints until there is no more work."""
    _settle(Role.TEZZERET, config)
    return work_off(
        Role.TEZZERET, None, _chosen(device), idle_seconds=idle, listen=os.environ.get(LISTEN_VARIABLE)
    )


@pod.command()
@_config
@_idle
@_device
def urabrask(config: Path, idle: float, device: str) -> int:
    """Test kernels in a sandbox until there is no more work."""
    _settle(Role.URABRASK, config)
    return work_off(
        Role.URABRASK, None, _chosen(device), idle_seconds=idle, listen=os.environ.get(LISTEN_VARIABLE)
    )


def _settle(role: Role, config: Path) -> None:
    from esper_runtime.local.pod import worker_settled

    worker_settled(role, config)


def _chosen(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
