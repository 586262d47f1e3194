"""`esper replay`: do a recorded run again and compare."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from esper_runtime.cli.output import console, notice, output_option, print_json
from esper_runtime.cli.records import runs_dir_option
from esper_runtime.contracts import RunFailedError
from esper_runtime.local import find_run

if TYPE_CHECKING:
    from esper_runtime.local import Replayed

EXIT_STOPPED = 130


@click.command(
    epilog="""\b
Examples:
  esper replay mnist1d
  esper replay mnist1d --into /tmp/again --output json"""
)
@click.argument("run")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="Empty folder to train in.  [default: replay/ in the run]",
)
@runs_dir_option
@output_option
def replay(run: str, into: Path | None, runs_dir: Path, output: str) -> int:
    """Train a RUN anew from its journal, and compare.

    The journal is obeyed where a controller was asked, so that also runs with rollbacks, kills, commands of
    people or a remote controller are repeated. A run that is not complete is replayed to its last
    checkpoint. Exit code 1 when architecture or weights differ.
    """
    from esper_runtime.local import Progress, StopSignals, replay_run

    progress = Progress(console())
    trainer, comparison = replay_run(find_run(run, runs_dir), into, None if output == "json" else progress)
    say = notice if output == "json" else progress.say
    with StopSignals(say, grace_seconds=60) as signals, progress.shown():
        signals.forward(trainer.request_stop)
        try:
            trainer.run()
            found = (
                comparison.stopped(signals.received) if signals.received is not None else comparison.outcome()
            )
        except RunFailedError as error:
            found = comparison.failed(error)
    if output == "json":
        print_json(_data(found))
    else:
        _tell(run, found)
    return EXIT_STOPPED if found.stopped is not None else int(not found.equal)


def _data(found: "Replayed") -> dict[str, object]:
    return {
        "folder": str(found.folder),
        "step": found.step,
        "equal": found.equal,
        "stopped": found.stopped,
        "recordedWeights": found.recorded,
        "replayedWeights": found.replayed,
        "differences": list(found.differences),
        "first": found.first,
        "notices": list(found.notices),
    }


def _tell(run: str, found: "Replayed") -> None:
    if found.stopped is not None:
        click.echo(f"{found.stopped}: the replay was not finished; the same command begins it anew")
        return
    if found.equal:
        click.echo(
            f"equal: at step {found.step:,} the replay of {run} has the same architecture and weights "
            f"({found.recorded[:12]})"
        )
    else:
        click.echo(f"the replay of {run} differs:")
        for text in found.differences:
            click.echo(f"  {text}")
        click.echo(f"first difference: {found.first}")
    for text in found.notices:
        click.echo(f"notice: {text}")
    click.echo(f"the replay is in {found.folder}")
