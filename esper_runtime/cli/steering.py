"""Looking at a run and steering it: `esper status`, `stop`, `pause-growth`, `pin`, `veto` and their likes."""

from pathlib import Path

import click

from esper_runtime.cli.output import output_option, print_json, table
from esper_runtime.cli.records import run_data, runs_dir_option
from esper_runtime.contracts import WITH_SLOT, Steer
from esper_runtime.local import find_run
from esper_runtime.nissa import count, duration

wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the run to take the command up.",
)


@click.command(
    epilog="""\b
Examples:
  esper status mnist1d
  esper status mnist1d --output json"""
)
@click.argument("run")
@runs_dir_option
@output_option
def status(run: str, runs_dir: Path, output: str) -> None:
    """Say how a RUN stands, whether it is being trained now or not."""
    from esper_runtime.local import status_data, status_of

    folder = find_run(run, runs_dir)
    found = status_of(folder)
    summary, told = found.summary, found.progress
    data = run_data(folder, summary) | status_data(found)
    if found.live and told is not None and told.step >= summary.step:
        data["step"] = told.step
    if output == "json":
        print_json(data)
        return
    metric = summary.metric
    measured = summary.test_metric if summary.test_metric is not None else summary.validation_metric
    kind = "test" if summary.test_metric is not None else "validation"
    eta = data["etaSeconds"]
    rows = [
        ("state", data["state"] + (f": {summary.reason}" if summary.reason and not found.live else "")),
        ("step", f"{count(data['step'])} of {count(summary.total_steps)}"),
        ("to go", duration(eta) if eta is not None else "-"),
        ("metric", f"{kind} {metric.name} {metric.text(measured)}" if measured is not None else "-"),
        ("parameters", f"{count(summary.parameters)} (started with {count(summary.parameters_start)})"),
        ("seeds", summary.seeds_text),
        ("commanded", _commanded(data) or "nothing"),
        ("processes", ", ".join(f"{p.role} {p.pid}" for p in found.processes) or "none"),
        ("bus", found.error or found.bus or "none"),
    ]
    table("", ("", ""), rows)


def _commanded(data: dict[str, object]) -> str:
    vetoed = data["vetoed"]
    parts = [word for word in ("paused", "pinned") if data[word]]
    parts += [f"vetoed: {', '.join(vetoed)}"] if isinstance(vetoed, list) and vetoed else []
    return "; ".join(parts)


def _command(what: Steer, name: str, text: str, example: str) -> click.Command:
    """The command that hands ``what`` to a run."""

    def act(run: str, runs_dir: Path, wait: float, slot: str | None = None) -> None:
        from esper_runtime.local import steer

        click.echo(steer(find_run(run, runs_dir), what, slot, wait))

    decorated = click.argument("run")(runs_dir_option(wait_option(act)))
    if what in WITH_SLOT:
        decorated = click.argument("slot")(decorated)
    return click.command(name, help=text, epilog=f"\b\nExamples:\n  esper {name} {example}")(decorated)


stop = _command(Steer.STOP, "stop", "Stop a RUN with a checkpoint; `esper run` goes on with it.", "mnist1d")
pause_growth = _command(
    Steer.PAUSE_GROWTH, "pause-growth", "Plant nothing new in a RUN; living seeds go on.", "mnist1d"
)
resume_growth = _command(
    Steer.RESUME_GROWTH, "resume-growth", "Let a RUN grow again, after pause-growth or pin.", "mnist1d"
)
pin = _command(
    Steer.PIN,
    "pin",
    "Keep the structure of a RUN as it is: the controller is not asked any more, seeds behind the host are "
    "cancelled, and those that contribute are kept, measured and fossilized at the end.",
    "mnist1d",
)
veto = _command(
    Steer.VETO,
    "veto",
    "End the seeds in SLOT of a RUN that are not fossilized, and lock it (`esper slots` lists the slots).",
    "layers.1.output mnist1d",
)
unlock = _command(
    Steer.UNLOCK,
    "unlock",
    "Unlock SLOT of a RUN, so that it may be planted in again.",
    "layers.1.output mnist1d",
)
