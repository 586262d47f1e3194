"""Telling the bus how a training goes: an `Observer` that hands steps and progress to a bridge."""

import math
import time
from collections import Counter
from collections.abc import Sequence

from esper_runtime.contracts import (
    GONE,
    Finished,
    Interrupted,
    JournalEntry,
    KernelReported,
    Progress,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    Started,
    Validated,
)
from esper_runtime.nissa import effective
from esper_runtime.oona import Bridge
from esper_runtime.tolaria.library import LibraryLink

PROGRESS_SECONDS = 1.0
"""Progress without news is sent no more often than this."""


class BusObserver:
    """Sends a sample for each step and the run's progress; the bridge copies the journal by itself.

    Nothing in it waits: each call is a few operations on the bridge's queues.

    Args:
        bridge: of the run.
        earlier: the journal's entries from before this process; a resumed run needs them.
        library: which is told what kernels have done, too.
    """

    def __init__(
        self,
        bridge: Bridge,
        earlier: Sequence[JournalEntry] = (),
        library: LibraryLink | None = None,
    ) -> None:
        self._bridge, self._library = bridge, library
        self._entries = list(earlier)
        self._started: Started | None = None
        self._validated: Validated | None = None
        self._seeds: dict[str, SeedStage] = {}
        self._outcome: str | None = None
        self._incarnation = 0
        self._step = 0
        self._first: tuple[int, float] | None = None
        self._last_step = self._last_progress = time.perf_counter()
        for entry in self._entries:
            self._report(entry)
        self._replay()

    def on_step(self, step: int, loss: float) -> None:
        """An optimizer step is done."""
        now = time.perf_counter()
        if self._first is None or step < self._step:
            self._first = (step, now)
        self._step = step
        sample = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "seconds": now - self._last_step,
        }
        self._last_step = now
        self._bridge.telemetry(sample)
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._send(now)

    def on_event(self, entry: JournalEntry) -> None:
        """An entry was added to the journal."""
        self._entries.append(entry)
        self._step, self._incarnation = entry.step, entry.incarnation
        self._report(entry)
        if isinstance(entry.event, Resumed | RolledBack):
            self._replay()
        else:
            self._apply(entry)
        self._send(time.perf_counter())

    def _report(self, entry: JournalEntry) -> None:
        if isinstance(entry.event, KernelReported):
            self._bridge.report(entry.digest, entry.event.report)
            if self._library is not None:
                self._library.report(entry.digest, entry.event.report)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing is sent before the run begins."""

    def _replay(self) -> None:
        """Rollbacks and resumptions undo entries: count anew from those that still hold."""
        self._seeds, self._validated, self._outcome = {}, None, None
        for entry in effective(self._entries):
            self._apply(entry)
            self._step, self._incarnation = entry.step, entry.incarnation

    def _apply(self, entry: JournalEntry) -> None:
        event = entry.event
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Validated):
            self._validated = event
        elif isinstance(event, SeedChanged) and event.after in GONE:
            self._seeds.pop(event.seed, None)
        elif isinstance(event, SeedChanged):
            self._seeds[event.seed] = event.after
        elif isinstance(event, Finished):
            self._outcome = event.outcome
        elif isinstance(event, Interrupted):
            self._outcome = "Interrupted"

    def _send(self, now: float) -> None:
        self._last_progress = now
        started, validated = self._started, self._validated
        if started is None:
            return
        self._bridge.progress(
            Progress(
                step=self._step,
                total_steps=started.total_steps,
                incarnation=self._incarnation,
                metric_name=started.metric_name,
                metric=validated.metric if validated else None,
                validation_loss=validated.loss if validated else None,
                train_loss=validated.train_loss if validated else None,
                parameters_start=started.parameters,
                parameters=validated.parameters if validated else started.parameters,
                seeds=dict(Counter(stage.value for stage in self._seeds.values())),
                eta_seconds=self._seconds_left(now, started.total_steps),
                outcome=self._outcome,
            )
        )

    def _seconds_left(self, now: float, total_steps: int) -> float | None:
        if self._outcome is not None or self._first is None:
            return None
        step, began = self._first
        done = self._step - step
        return (now - began) / done * max(0, total_steps - self._step) if done > 0 else None
