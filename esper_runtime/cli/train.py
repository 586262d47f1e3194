"""`esper run`: train what a manifest describes, or show what it would be."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper_runtime.cli.forge import workers_option
from esper_runtime.cli.models import print_slots, slots_data
from esper_runtime.cli.output import notice, output_option, print_json, table
from esper_runtime.cli.records import run_data, runs_dir_option
from esper_runtime.contracts import InputError, load_run, notices
from esper_runtime.local import SUPERVISED, find_run
from esper_runtime.nissa import count, duration, listen_address, macs, read_journal, summarise

if TYPE_CHECKING:
    from esper_runtime.local import Plan


@click.command(
    epilog="""\b
Examples:
  esper run examples/mnist1d.yaml              train; again: go on with what is unfinished
  esper run examples/mnist1d.yaml --compare    and train plain models of the same size beside it
  esper run examples/mnist1d.yaml --plan       only show slots, cost and memory
  esper run examples/mnist1d.yaml --fresh      begin again; the old run is kept beside the new one

Exit codes: 0 done, 1 the run failed, 2 wrong input, 75 interrupted with a checkpoint."""
)
@click.argument("manifest", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--plan", is_flag=True, help="Show slots, what fits, memory and cost; train nothing.")
@click.option(
    "--compare",
    is_flag=True,
    help="Afterwards train the ungrown host and plain models of the final size, learning rates tuned.",
)
@click.option("--fresh", is_flag=True, help="Begin again; what an earlier run left is moved aside.")
@click.option(
    "--bus",
    envvar="ESPER_BUS",
    metavar="URL|FILE",
    help="Use this message bus instead of starting one: a URL, or a file with the address and what it needs.",
)
@click.option("--no-bus", is_flag=True, help="No message bus: nothing is sent, and nothing can be commanded.")
@workers_option
@click.option("--listen", metavar="HOST:PORT", help="The trainer serves GET /healthz and GET /metrics here.")
@runs_dir_option
@output_option
def run(
    manifest: Path,
    plan: bool,
    compare: bool,
    fresh: bool,
    bus: str | None,
    no_bus: bool,
    workers: int | None,
    listen: str | None,
    runs_dir: Path,
    output: str,
) -> int:
    """Train what the manifest FILE describes, and let it grow.

    The same command again resumes a run that was interrupted. The run's folder, runs/NAME, holds its journal,
    checkpoints, model and report. With --output json progress goes to standard error and the result to
    standard output.

    It starts the trainer and a message bus of its own as processes, and starts them again when they die; one
    Ctrl-C ends them in order. Where RANK is set (torchrun) it is one of the trainers itself.
    """
    if plan and (compare or fresh):
        raise InputError("--plan trains nothing, so --compare and --fresh do not go with it")
    address_to_listen_at = None if listen is None else listen_address(listen)
    described = load_run(manifest)
    if SUPERVISED not in os.environ:
        for line in notices(described):
            notice(f"notice: {line}")
    directory = manifest.resolve().parent
    if plan:
        from esper_runtime.local import plan_run

        found = plan_run(described, directory)
        if output == "json":
            print_json(_plan_data(found))
        else:
            _print_plan(found)
        return 0
    if "RANK" not in os.environ:
        from esper_runtime.local import supervise_manifest

        return supervise_manifest(
            described,
            manifest,
            runs_dir,
            fresh=fresh,
            options=(
                *(("--compare",) if compare else ()),
                *(("--listen", listen) if listen else ()),
                "--output",
                output,
            ),
            bus=None if no_bus else bus or "",
            forge_workers=workers,
            say=partial(_say, err=output == "json"),
        )
    from esper_runtime.local import EXIT_PEER_LOST, Display, run_manifest
    from esper_runtime.oona import BusAddress

    leads = os.environ["RANK"] == "0"
    address = BusAddress.named(bus, "--bus") if bus and leads and not no_bus else None
    console = Display(stderr=True) if output == "json" else None
    code = run_manifest(
        described,
        manifest,
        runs_dir,
        fresh=fresh,
        compare=compare,
        bus=address,
        listen=address_to_listen_at,
        console=console,
    )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # The exit code says it all now; torchrun ends by SIGTERM who leaves later than the first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if output == "json" and leads and code != EXIT_PEER_LOST:  # lost: it is started again
        folder = find_run(described.metadata.name, runs_dir)
        print_json(run_data(folder, summarise(read_journal(folder.journal))))
    return code


def _say(text: str, err: bool) -> None:
    """Print a line of the supervisor's; where nobody reads any more, the run goes on."""
    from esper_runtime.local import outliving_the_reader

    with outliving_the_reader(sys.stderr if err else sys.stdout):
        click.echo(text, err=err)


def _plan_data(plan: "Plan") -> dict[str, object]:
    return {
        "steps": plan.total_steps,
        "batchSize": plan.batch_size,
        "parameters": plan.parameters,
        "parametersLimit": plan.parameters_limit,
        "macsPerExample": plan.macs_per_example,
        "macs": plan.macs,
        "stateBytes": plan.state_bytes,
        "activationBytes": plan.activation_bytes,
        "dataBytes": plan.data_bytes,
        "seconds": plan.seconds,
        "slots": slots_data(plan.look),
    }


def _print_plan(plan: "Plan") -> None:
    task = plan.look.task
    growth = plan.parameters_limit / plan.parameters
    rows = [
        (
            "task",
            f"{task.name}: {', '.join(f'{count(n)} {split}' for split, n in plan.examples.items())} examples",
        ),
        ("steps", f"{count(plan.total_steps)} of {count(plan.batch_size)} examples"),
        (
            "parameters",
            f"{count(plan.parameters)} now, at most {count(plan.parameters_limit)} ({growth:.3g}x)",
        ),
        ("forward pass", f"{macs(plan.macs_per_example)} an example"),
        ("training", f"{macs(plan.macs)} for the ungrown host, about {duration(plan.seconds)} here"),
        ("memory", f"{_bytes(plan.state_bytes)} parameters, gradients and optimizer state"),
        ("", f"{_bytes(plan.activation_bytes)} activations of a micro-batch"),
        ("", f"{_bytes(plan.data_bytes)} data"),
    ]
    table("Plan of the ungrown host; nothing is trained", ("", ""), rows)
    print_slots(plan.look)


def _bytes(number: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"
