"""Progress of a run: a live display where there is a terminal, plain lines where there is none."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper_runtime.contracts import JournalEntry, Validated
from esper_runtime.local.reader import outliving_the_reader
from esper_runtime.local.view import RunView
from esper_runtime.nissa import count, duration

REFRESH_SECONDS = 0.1
PREPARING_SECONDS = 5.0
PLAIN_SECONDS = 30.0
"""Without a terminal, a line for a stretch of steps without news comes no more often than this."""


class Display(Console):
    """A console that leaves a reader who is gone to `outliving_the_reader`.

    Args:
        stderr: whether to write to standard error.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise what was raised; rich would end the process."""
        raise


class Progress:
    """Tells a person how the run goes.

    Call it with journal entries and steps; both are cheap when nothing is due to be shown.

    Args:
        console: where to; its `is_terminal` decides between the live display and lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.view = RunView()
        self._console = console or Display()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._first_step: int | None = None
        self._shown = self._began
        self._arm = ""
        self._preparing: tuple[str, int, int] | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the display inside; it disappears at the end."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        with self._outliving_the_terminal():
            self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def on_event(self, entry: JournalEntry) -> None:
        """A journal entry was written."""
        line = self.view.note(entry)
        if line is not None:
            self.say(f"step {count(entry.step):>7}  {line}")
        if isinstance(entry.event, Validated) and self._live is None:
            self._plain()
        self._refresh(force=line is not None)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Before the first step something is made ready: a bar, or a line when it is new and now and then."""
        new = self._preparing is None or self._preparing[0] != text
        self._preparing = (text, done, total)
        if self._live is not None:
            self._refresh()
        elif new or time.monotonic() - self._shown >= PREPARING_SECONDS or done == total:
            self._shown = time.monotonic()
            self.say(f"{text}: {count(done)} of {count(total)}")

    def on_step(self, step: int, loss: float) -> None:
        """An optimizer step was done; ``loss`` is its batch's."""
        self._preparing = None
        if self._first_step is None:
            self._first_step, self._began = step - 1, time.monotonic()
        self.view.step, self.view.loss = step, loss
        if self._live is None:
            if time.monotonic() - self._shown >= PLAIN_SECONDS:
                self._plain()
        else:
            self._refresh()

    def on_arm(self, text: str, step: int, loss: float) -> None:
        """A step of an arm of the comparison was done."""
        if text != self._arm:
            self._arm = text
            self._first_step, self._began = step - 1, time.monotonic()
            if self._live is None:
                self.say(f"comparing: {text}")
        self.view.step, self.view.loss = step, loss
        self._refresh()

    def remaining(self) -> float | None:
        """Seconds to go at the pace so far, None while there is no pace."""
        if self._first_step is None or self.view.step <= self._first_step:
            return None
        pace = (time.monotonic() - self._began) / (self.view.step - self._first_step)
        return pace * (self.view.total_steps - self.view.step)

    def _plain(self) -> None:
        self._shown = time.monotonic()
        self.say(
            "  ".join([f"step {count(self.view.step):>7}/{count(self.view.total_steps)}", *self._figures()])
        )

    def _figures(self) -> list[str]:
        view = self.view
        figures = [f"loss {view.loss:.4f}"] if view.loss is not None else []
        if not self._arm and view.validated is not None:
            metric = view.metric
            figures.append(f"validation loss {view.validated.loss:.4f}")
            figures.append(f"{metric.name} {metric.text(view.validated.metric)}")
            figures.append(f"{count(view.parameters)} parameters")
        remaining = self.remaining()
        if remaining is not None:
            figures.append(f"{duration(remaining)} to go")
        return figures

    def _refresh(self, force: bool = False) -> None:
        if self._live is None:
            return
        now = time.monotonic()
        if force or now - self._shown >= REFRESH_SECONDS:
            self._shown = now
            with self._outliving_the_terminal():
                self._live.update(self._render(), refresh=True)

    @contextlib.contextmanager
    def _outliving_the_terminal(self) -> Iterator[None]:
        """Nobody who looks away costs the training: what is said from then on goes nowhere."""
        with outliving_the_reader(self._console.file):
            yield

    def _render(self) -> RenderableType:
        view = self.view
        head = Table.grid(padding=(0, 2))
        if self._preparing is not None:
            text, done, total = self._preparing
            bar = ProgressBar(total=max(1, total), completed=done, width=30)
            head.add_row(Text(text, style="bold"), bar, f"{count(done)}/{count(total)}")
            return head
        title = f"comparing: {self._arm}" if self._arm else (view.started.run if view.started else "")
        bar = ProgressBar(total=max(1, view.total_steps), completed=view.step, width=30)
        head.add_row(Text(title, style="bold"), bar, f"{count(view.step)}/{count(view.total_steps)}")
        parts: list[RenderableType] = [head, Text("  ".join(self._figures()), style="cyan")]
        if view.seeds and not self._arm:
            seeds = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for column in ("seed", "blueprint", "slot", "stage", "for steps", "parameters"):
                seeds.add_column(column, justify="right" if column in ("for steps", "parameters") else "left")
            for seed in view.seeds.values():
                age = count(max(0, view.step - seed.since))
                seeds.add_row(
                    seed.seed, seed.name, seed.slot, str(seed.stage), age, f"+{count(seed.parameters)}"
                )
            parts.append(seeds)
        return Group(*parts)
