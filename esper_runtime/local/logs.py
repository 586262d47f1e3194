"""Logs for other programs' dashboards: TensorBoard, MLflow, Weights & Biases, each where it is installed.

What is to be logged goes through a bounded queue to a thread of its own: training never waits for a
dashboard, and a dashboard that fails is reported once and left alone.
"""

import importlib.util
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from esper_runtime.contracts import (
    GONE,
    Decided,
    Finished,
    InputError,
    JournalEntry,
    LoggerKind,
    Logging,
    MorphogeneticRun,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    Validated,
)

log = logging.getLogger(__name__)

WAITING = 4096
"""Entries that may wait; what comes beyond is dropped and counted."""
STEPS_BETWEEN_LOSSES = 10
CLOSING_SECONDS = 20.0
MODULES = {LoggerKind.TENSORBOARD: "tensorboard", LoggerKind.MLFLOW: "mlflow", LoggerKind.WANDB: "wandb"}
_PIP = {LoggerKind.TENSORBOARD: "tensorboard", LoggerKind.MLFLOW: "mlflow-skinny", LoggerKind.WANDB: "wandb"}


class Sink(Protocol):
    """One dashboard. Calls come from the logging thread."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Metrics at a step."""

    def text(self, step: int, name: str, words: str) -> None:
        """Something that happened."""

    def close(self) -> None:
        """Nothing more comes."""


def check_loggers(loggers: tuple[Logging, ...]) -> None:
    """Raise `InputError` with the command that helps where a dashboard's package is missing."""
    for item in loggers:
        if importlib.util.find_spec(MODULES[item.kind]) is None:
            raise InputError(
                f"spec.output.logging asks for {item.kind}, which is not installed here: pip install "
                f"'esper[logging]', or pip install {_PIP[item.kind]}; or leave it out"
            )


def open_logs(run: MorphogeneticRun, folder: Path, say: Callable[[str], None]) -> "Logs | None":
    """Logs as the manifest wants them, None where it wants none.

    Raises:
        InputError: a dashboard's package is missing.
    """
    check_loggers(run.spec.output.logging)
    return Logs(run, folder, say) if run.spec.output.logging else None


class Logs:
    """An observer that hands what it sees to dashboards, off the training thread.

    Args:
        run: the manifest; its ``output.logging`` says where to.
        folder: of the run; logs lie in ``logs/`` there unless a place is given.
        say: told once of each dashboard that fails.
    """

    def __init__(self, run: MorphogeneticRun, folder: Path, say: Callable[[str], None]) -> None:
        self._run, self._folder, self._say = run, folder, say
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(WAITING)
        self._stages: dict[str, SeedStage] = {}
        self.dropped = 0
        """Entries that found the queue full."""
        self._thread = threading.Thread(target=self._serve, name="esper-logs", daemon=True)
        self._thread.start()

    # The training thread

    def on_step(self, step: int, loss: float) -> None:
        """The training loss, every few steps."""
        if step % STEPS_BETWEEN_LOSSES == 0:
            self._numbers(step, {"train/loss": loss})

    def on_preparing(self, text: str, done: int, total: int) -> None:
        """Nothing is logged before the run begins."""

    def on_event(self, entry: JournalEntry) -> None:
        """Metrics of validations, seeds by stage, and what was changed and why."""
        step, event = entry.step, entry.event
        match event:
            case Validated():
                values = {
                    "validation/loss": event.loss,
                    "validation/metric": event.metric,
                    "model/parameters": float(event.parameters),
                    "train/learning_rate": event.learning_rate,
                    "train/macs": float(event.macs),
                }
                self._numbers(step, values)
            case SeedChanged():
                before = dict(Counter(self._stages.values()))
                self._stages[event.seed] = event.after
                if event.after in GONE:
                    del self._stages[event.seed]
                now = Counter(self._stages.values())
                self._numbers(step, {f"seeds/{stage}": float(now[stage]) for stage in before.keys() | now})
                words = f"{event.seed} ({event.name}) at {event.slot}: {event.after}; {event.reason}"
                self._text(step, "adaptation", words)
            case SlotChanged():
                self._text(step, "slot", f"{event.slot}: {event.before} -> {event.after}; {event.reason}")
            case Decided() if event.directives:
                self._text(step, "decision", event.explanation)
            case RolledBack():
                self._text(step, "rollback", f"to step {event.to_step}: {event.fault}")
            case Finished() if event.test_metric is not None and event.test_loss is not None:
                self._numbers(step, {"test/metric": event.test_metric, "test/loss": event.test_loss})

    def _numbers(self, step: int, values: dict[str, float]) -> None:
        self._put(lambda sink: sink.numbers(step, values))

    def _text(self, step: int, name: str, words: str) -> None:
        self._put(lambda sink: sink.text(step, name, words))

    def _put(self, call: Callable[[Sink], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Wait a bounded time until what was queued is written."""
        try:
            self._queue.put(None, timeout=CLOSING_SECONDS)
        except queue.Full:
            self._say("logging is far behind; what waits is lost")
            return
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._say(f"a dashboard took longer than {CLOSING_SECONDS:g} s to close; it was left behind")
        if self.dropped:
            self._say(f"{self.dropped} log entries were dropped: the dashboards were too slow")

    # The logging thread

    def _serve(self) -> None:
        sinks: dict[LoggerKind, Sink] = {}
        for item in self._run.spec.output.logging:
            self._guarded(sinks, item.kind, lambda item=item: sinks.__setitem__(item.kind, self._open(item)))  # type: ignore[misc]
        while (call := self._queue.get()) is not None:
            for kind in list(sinks):
                self._guarded(sinks, kind, lambda call=call, kind=kind: call(sinks[kind]))  # type: ignore[misc]
        for kind in list(sinks):
            self._guarded(sinks, kind, sinks[kind].close)

    def _guarded(self, sinks: dict[LoggerKind, Sink], kind: LoggerKind, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a dashboard raises must not end the run
            sinks.pop(kind, None)
            log.warning("logging to %s failed", kind, exc_info=True)
            self._say(f"logging to {kind} failed and is off: {type(error).__name__}: {error}")

    def _open(self, item: Logging) -> Sink:
        place = item.uri or str(self._folder / "logs" / item.kind.lower())
        name = self._run.metadata.name
        settings = self._run.model_dump(mode="json", by_alias=True)["spec"]
        kinds: dict[LoggerKind, type[_TensorBoard | _MLflow | _WandB]] = {
            LoggerKind.TENSORBOARD: _TensorBoard,
            LoggerKind.MLFLOW: _MLflow,
            LoggerKind.WANDB: _WandB,
        }
        return kinds[item.kind](place, name, settings)


class _TensorBoard:
    def __init__(self, place: str, name: str, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(place)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, words: str) -> None:
        self._writer.add_text(name, words, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """``place`` is a tracking URI, or a folder."""

    def __init__(self, place: str, name: str, settings: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=_tracking(place))
        found = self._client.get_experiment_by_name("esper")
        experiment = found.experiment_id if found is not None else self._client.create_experiment("esper")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        self._words: list[str] = []
        for key in ("host", "task", "training"):
            self._client.log_param(self._run, key, str(settings[key])[:500])

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name.replace("/", "."), value, step=step)

    def text(self, step: int, name: str, words: str) -> None:
        self._words.append(f"{step}\t{name}\t{words}")

    def close(self) -> None:
        self._client.log_text(self._run, "\n".join(self._words) + "\n", "adaptations.tsv")
        self._client.set_terminated(self._run)


def _tracking(place: str) -> str:
    if "://" in place:
        return place
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    Path(place).mkdir(parents=True, exist_ok=True)
    return Path(place).resolve().as_uri()


class _WandB:
    """Offline always: files below ``place`` that `wandb sync` uploads."""

    def __init__(self, place: str, name: str, settings: dict[str, Any]) -> None:
        import wandb

        Path(place).mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project="esper",
            name=name,
            dir=place,
            mode="offline",
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def text(self, step: int, name: str, words: str) -> None:
        self._run.log({"step": step, f"events/{name}": words})

    def close(self) -> None:
        self._run.finish()
