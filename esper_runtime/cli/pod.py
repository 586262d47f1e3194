"""`esper pod`: what the containers of a cluster run; the operator writes their environment and mounts."""

import os
from pathlib import Path

import click

from esper_runtime.cli.worker import work_off
from esper_runtime.contracts import InputError, Role
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
Examples:
  esper pod train                     as the operator has it: /etc/esper and /var/esper are mounted
  esper pod train --config secret --data data

\b
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


_EPILOG = """\b
Examples:
  esper pod {0}
  esper pod {0} --config secret --idle 5"""


@pod.command(epilog=_EPILOG.format("tezzeret"))
@_config
@_idle
def tezzeret(config: Path, idle: float) -> int:
    """Make kernels of blueprints until there is no more work."""
    _settle(Role.TEZZERET, config)
    return work_off(Role.TEZZERET, None, idle_seconds=idle, listen=os.environ.get(LISTEN_VARIABLE))


@pod.command(epilog=_EPILOG.format("urabrask"))
@_config
@_idle
def urabrask(config: Path, idle: float) -> int:
    """Test kernels in a sandbox until there is no more work."""
    _settle(Role.URABRASK, config)
    return work_off(Role.URABRASK, None, idle_seconds=idle, listen=os.environ.get(LISTEN_VARIABLE))


@pod.command(epilog=_EPILOG.format("karn"))
@_config
@_idle
def karn(config: Path, idle: float) -> int:
    """Invent blueprints until there is no more work."""
    _settle(Role.KARN, config)
    return work_off(Role.KARN, None, idle_seconds=idle, listen=os.environ.get(LISTEN_VARIABLE))


@pod.command(
    epilog="""\b
Examples:
  esper pod target
  esper pod target --to /dev/stdout"""
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default="/dev/termination-log",
    show_default=True,
    metavar="FILE",
    help="Kubernetes keeps what stands there as the container's last words.",
)
def target(to: Path) -> int:
    """Tell what kernels are made for on this node, and with what, as JSON."""
    from esper_runtime.kasmina.kernels import worker_facts

    try:
        to.write_text(worker_facts().model_dump_json(by_alias=True) + "\n")
    except OSError as error:
        raise InputError(
            f"{to}: cannot be written ({error.strerror}); name another file with --to"
        ) from error
    return 0


def _settle(role: Role, config: Path) -> None:
    from esper_runtime.local.pod import worker_settled

    worker_settled(role, config)
