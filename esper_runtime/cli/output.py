"""What people and programs see: tables on standard output, notices and errors on standard error."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

output_option = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people or JSON for programs.",
)


def console() -> Console:
    """Standard output; when it is no terminal, lines are not cut to its width."""
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()
) -> None:
    """Print a table; columns named in ``numbers`` are set to the right."""
    shown = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in columns:
        shown.add_column(
            column, justify="right" if column in numbers else "left", overflow="fold", header_style="bold"
        )
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console().print(shown)


def print_json(data: Any) -> None:
    """Print JSON for a program."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def notice(text: str) -> None:
    """Tell a person something on standard error."""
    click.echo(text, err=True)


@contextmanager
def bar(what: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal; it goes away at the end.

    Yields:
        What is to be called with how much is done and how much there is.
    """
    shown = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn() if in_bytes else MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=shown, transient=True, disable=not shown.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
