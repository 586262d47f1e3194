"""`esper runs`, `report`, `verify`, `explain`, `export`: what runs left behind."""

import webbrowser
from pathlib import Path
from typing import Any

import click

from esper_runtime.cli.output import notice, output_option, print_json, table
from esper_runtime.contracts import InputError, JournalError, OutputFormat
from esper_runtime.local import DEFAULT_RUNS, RunFolder, find_run, list_runs
from esper_runtime.nissa import (
    RunState,
    RunSummary,
    duration,
    read_journal,
    render_report,
    summarise,
)
from esper_runtime.nissa import (
    explain as explanation,
)

runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUNS,
    show_default=True,
    help="Folder that holds the runs' folders.",
)


@click.command(
    epilog="""\b
Examples:
  esper runs
  esper runs --runs-dir /data/runs --output json"""
)
@runs_dir_option
@output_option
def runs(runs_dir: Path, output: str) -> None:
    """List the runs: state, progress, result."""
    found: list[tuple[RunFolder, RunSummary | str]] = []
    for folder in list_runs(runs_dir):
        try:
            found.append((folder, summarise(read_journal(folder.journal))))
        except JournalError as error:
            found.append((folder, str(error)))
    if output == "json":
        print_json([run_data(folder, summary) for folder, summary in found])
        return
    if not found:
        click.echo(f"no runs in {runs_dir}; `esper run FILE` starts one")
        return
    columns = ("name", "state", "step", "metric", "parameters", "seeds", "time")
    table(
        "",
        columns,
        [_run_row(folder, summary) for folder, summary in found],
        ("step", "metric", "parameters"),
    )


def _state(folder: RunFolder, summary: RunSummary) -> str:
    holder = folder.holder()
    return f"Running (process {holder})" if holder is not None else str(summary.state)


def _run_row(folder: RunFolder, summary: RunSummary | str) -> tuple[str, ...]:
    if isinstance(summary, str):
        return (folder.name, "Broken journal", "", "", "", f"`esper verify {folder.name}` says where", "")
    measured = summary.test_metric if summary.test_metric is not None else summary.validation_metric
    kind = "test" if summary.test_metric is not None else "validation"
    metric = f"{kind} {summary.metric.name} {summary.metric.text(measured)}" if measured is not None else "-"
    grown = f"{summary.parameters_start:,} -> {summary.parameters:,}"
    if summary.parameters == summary.parameters_start:
        grown = f"{summary.parameters:,}"
    step = f"{summary.step:,}/{summary.total_steps:,}"
    return (
        folder.name,
        _state(folder, summary),
        step,
        metric,
        grown,
        summary.seeds_text,
        duration(summary.wall_seconds),
    )


def run_data(folder: RunFolder, summary: RunSummary | str) -> dict[str, Any]:
    """A run as JSON; ``summary`` is the reason where the journal cannot be read."""
    if isinstance(summary, str):
        return {"name": folder.name, "folder": str(folder.path), "state": "BrokenJournal", "reason": summary}
    holder = folder.holder()
    return {
        "name": folder.name,
        "folder": str(folder.path),
        "state": "Running" if holder is not None else str(summary.state),
        "process": holder,
        "reason": summary.reason,
        "step": summary.step,
        "totalSteps": summary.total_steps,
        "metric": summary.metric.name,
        "validationMetric": summary.validation_metric,
        "validationLoss": summary.validation_loss,
        "testMetric": summary.test_metric,
        "testLoss": summary.test_loss,
        "parametersStart": summary.parameters_start,
        "parameters": summary.parameters,
        "seeds": {str(stage): amount for stage, amount in summary.seeds.items()},
        "macs": summary.macs,
        "wallSeconds": summary.wall_seconds,
        "comparisons": [arm.model_dump(mode="json", by_alias=True) for arm in summary.comparisons],
    }


@click.command(
    epilog="""\b
Examples:
  esper report mnist1d
  esper report mnist1d --open
  esper report runs/mnist1d --to /tmp/mnist1d.html"""
)
@click.argument("run")
@click.option(
    "--to", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: in the run]"
)
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
@runs_dir_option
def report(run: str, to: Path | None, open_it: bool, runs_dir: Path) -> None:
    """Write the report of a RUN, finished or not, and say where it is."""
    folder = find_run(run, runs_dir)
    path = to or folder.report
    page = render_report(read_journal(folder.journal))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    click.echo(path)
    if open_it and not webbrowser.open(path.resolve().as_uri()):
        notice("there is no browser here; open the file yourself")


@click.command(
    epilog="""\b
Examples:
  esper explain mnist1d
  esper explain runs/mnist1d"""
)
@click.argument("run")
@runs_dir_option
def explain(run: str, runs_dir: Path) -> None:
    """Say why a RUN grew, or why it did not."""
    click.echo(explanation(read_journal(find_run(run, runs_dir).journal)))


@click.command(
    epilog="""\b
Examples:
  esper verify mnist1d
  esper verify mnist1d --output json"""
)
@click.argument("run")
@runs_dir_option
@output_option
def verify(run: str, runs_dir: Path, output: str) -> int:
    """Check journal, checkpoints and model of a RUN.

    The journal is checked link by link, all else against the digests in it. Exit code 1 when something does
    not match.
    """
    from esper_runtime.local import verify_run

    checks = verify_run(find_run(run, runs_dir))
    if output == "json":
        print_json([{"what": check.what, "passed": check.passed, "says": check.says} for check in checks])
    else:
        words = {True: "ok", False: "BAD", None: "-"}
        table(
            "", ("", "what", "finding"), [(words[check.passed], check.what, check.says) for check in checks]
        )
    return int(any(check.passed is False for check in checks))


@click.command(
    epilog="""\b
Examples:
  esper export mnist1d
  esper export mnist1d --format onnx --to /tmp/model"""
)
@click.argument("run")
@click.option(
    "--format",
    "kind",
    type=click.Choice([kind.value for kind in OutputFormat]),
    default=OutputFormat.TORCH.value,
    show_default=True,
    help="torch: a Python module and weights that need no Esper; safetensors: what esper_runtime.load reads; "
    "torch-export: a .pt2 program; onnx: an .onnx file.",
)
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: export/ in the run]")
@click.option("--absorb", is_flag=True, help="First merge seeds into the host's layers where that is exact.")
@runs_dir_option
def export(run: str, kind: str, to: Path | None, absorb: bool, runs_dir: Path) -> None:
    """Write the model of a complete RUN for other programs.

    What is written was loaded again and gave the model's outputs, at two batch sizes.
    """
    from esper_runtime.local import export_run

    folder = find_run(run, runs_dir)
    summary = summarise(read_journal(folder.journal))
    if summary.state is not RunState.COMPLETE:
        raise InputError(
            f"run {run!r} is {summary.state} at step {summary.step} of {summary.total_steps}; "
            f"only a complete run has a model to export (`esper run {folder.manifest}` goes on with it)"
        )
    exported = export_run(folder, OutputFormat(kind), str(to or folder.path / "export"), absorb)
    for path in exported.files:
        click.echo(path)
    for seed, reason in exported.not_absorbed.items():
        notice(f"seed {seed} stays beside the host: {reason}")
    if exported.difference is not None:
        notice(f"largest difference to the model's outputs: {exported.difference:.2e}")
