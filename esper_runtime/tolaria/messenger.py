"""Telling the bus how a training goes: an `Observer` that hands steps and progress to a bridge."""

import math
import time
from collections.abc import Sequence

from esper_runtime.contracts import JournalEntry, KernelReported, OvertakenError, Progress
from esper_runtime.nissa import Tally
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
        self._tally = Tally(earlier)
        self._step = self._tally.step
        self._first: tuple[int, float] | None = None
        self._last_step = self._last_progress = time.perf_counter()
        for entry in earlier:
            self._report(entry)

    def on_step(self, step: int, loss: float) -> None:
        """An optimizer step is done.

        Raises:
            OvertakenError: another attempt of the run has gone on.
        """
        if self._bridge.overtaken:
            raise OvertakenError(
                f"another attempt of this run has gone on: this one ends at step {step} without a checkpoint"
            )
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
        self._tally.add(entry)
        self._step = self._tally.step
        self._report(entry)
        self._send(time.perf_counter())

    def _report(self, entry: JournalEntry) -> None:
        if isinstance(entry.event, KernelReported):
            self._bridge.report(entry.digest, entry.event.report)
            if self._library is not None:
                self._library.report(entry.digest, entry.event.report)

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing is sent before the run begins."""

    def _send(self, now: float) -> None:
        self._last_progress = now
        tally = self._tally
        started, validated = tally.started, tally.validated
        if started is None:
            return
        self._bridge.progress(
            Progress(
                step=self._step,
                total_steps=started.total_steps,
                incarnation=tally.incarnation,
                metric_name=started.metric_name,
                metric=validated.metric if validated else None,
                validation_loss=validated.loss if validated else None,
                train_loss=validated.train_loss if validated else None,
                parameters_start=started.parameters,
                parameters=validated.parameters if validated else started.parameters,
                seeds={stage.value: number for stage, number in tally.seeds.items()},
                eta_seconds=self._seconds_left(now, started.total_steps),
                outcome=tally.outcome,
            )
        )

    def _seconds_left(self, now: float, total_steps: int) -> float | None:
        if self._tally.outcome is not None or self._first is None:
            return None
        step, began = self._first
        done = self._step - step
        return (now - began) / done * max(0, total_steps - self._step) if done > 0 else None
