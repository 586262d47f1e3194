import json
import threading
import time

import pytest

from esper_runtime.contracts import InputError, LoggerKind
from esper_runtime.local import logs as logs_module
from esper_runtime.local.logs import Logs, check_loggers, open_logs
from esper_runtime.nissa import read_journal
from tests.tolaria.runs import IMMEDIATE, Recorder, Script, Trainer, manifest

STEPS = 60


def logged(folder, *kinds, say=print):
    """A run that grew, logged to ``kinds``; returns what it recorded."""
    run = manifest(STEPS, output={"logging": [{"kind": kind} for kind in kinds]})
    recorder, found = Recorder(), open_logs(run, folder, say)

    class Both:
        def on_step(self, step, loss):
            recorder.on_step(step, loss)
            found.on_step(step, loss)

        def on_preparing(self, text, done, total):
            found.on_preparing(text, done, total)

        def on_event(self, entry):
            recorder.on_event(entry)
            found.on_event(entry)

    Trainer(run, folder, Both(), controller=Script((10, IMMEDIATE))).run()
    found.close()
    return recorder


def validations(folder):
    return {
        entry.step: entry.event.loss
        for entry in read_journal(folder / "journal.jsonl")
        if entry.event.kind == "Validated"
    }


def test_tensorboard_holds_the_metrics_the_seeds_and_the_adaptations(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path, "TensorBoard")
    read = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    read.Reload()
    losses = {event.step: event.value for event in read.Scalars("validation/loss")}
    assert losses == pytest.approx(validations(tmp_path), rel=1e-5)
    assert [event.step for event in read.Scalars("train/loss")] == [10, 20, 30, 40, 50, 60]
    assert max(event.value for event in read.Scalars("seeds/Grafting")) == 1.0
    words = read.Tensors("adaptation/text_summary")
    assert any("Fossilized" in event.tensor_proto.string_val[0].decode() for event in words)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_metrics_and_the_adaptations(tmp_path):
    mlflow = pytest.importorskip("mlflow")

    said = []
    logged(tmp_path, "MLflow", say=said.append)
    assert said == []
    client = mlflow.MlflowClient(tracking_uri=logs_module._tracking(str(tmp_path / "logs" / "mlflow")))
    (experiment,) = [e for e in client.search_experiments() if e.name == "esper"]
    (kept,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(kept.info.run_id, "validation.loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(validations(tmp_path))
    assert kept.info.status == "FINISHED"


def wandb_records(blob):
    """Records of a .wandb file: a header of 7 bytes, then the log format of LevelDB in blocks of 32 KiB."""
    position, parts = 7, b""
    while position + 7 <= len(blob):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(blob[position + 4 : position + 6], "little"), blob[position + 6]
        parts += blob[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_holds_the_metrics_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    said = []
    logged(tmp_path, "WandB", say=said.append)
    assert said == []
    assert wandb.run is None
    (file,) = (tmp_path / "logs" / "wandb").glob("**/*.wandb")
    found = {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = record.history.item
        keys = [i.nested_key if isinstance(i.nested_key, str) else "/".join(i.nested_key) for i in items]
        row = {key: json.loads(i.value_json) for key, i in zip(keys, items, strict=True)}
        if "validation/loss" in row:
            found[row["step"]] = row["validation/loss"]
    assert found == pytest.approx(validations(tmp_path))


class Stuck:
    """A dashboard that answers only when it is let go."""

    def __init__(self, *_):
        self.go = Stuck.go
        self.go.wait()

    def numbers(self, *_):
        self.go.wait()

    text = numbers

    def close(self):
        pass


def test_a_dashboard_that_hangs_holds_up_nobody_and_what_it_misses_is_counted(tmp_path, monkeypatch):
    Stuck.go = threading.Event()
    monkeypatch.setattr(logs_module, "_TensorBoard", Stuck)
    monkeypatch.setattr(logs_module, "WAITING", 50)
    monkeypatch.setattr(logs_module, "CLOSING_SECONDS", 0.2)
    found = Logs(manifest(STEPS, output={"logging": [{"kind": "TensorBoard"}]}), tmp_path, print)
    began = time.monotonic()
    for step in range(10, 2000, 10):
        found.on_step(step, 0.5)
    assert time.monotonic() - began < 1.0
    assert found.dropped == 199 - 50
    said = []
    found._say = said.append
    found.close()
    assert any("left behind" in text or "behind" in text for text in said)
    Stuck.go.set()


class Broken(Stuck):
    def __init__(self, *_):
        pass

    def numbers(self, *_):
        raise OSError("the disk is full")


def test_a_dashboard_that_fails_is_reported_once_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(logs_module, "_TensorBoard", Broken)
    said = []
    recorder = logged(tmp_path, "TensorBoard", say=said.append)
    assert len(recorder.losses) == STEPS
    assert said == ["logging to TensorBoard failed and is off: OSError: the disk is full"]


def test_a_dashboard_that_is_not_installed_is_refused_with_the_command_that_helps(monkeypatch):
    monkeypatch.setitem(logs_module.MODULES, LoggerKind.MLFLOW, "no_such_package")
    run = manifest(STEPS, output={"logging": [{"kind": "MLflow"}]})
    with pytest.raises(InputError, match=r"pip install 'esper\[logging\]'"):
        check_loggers(run.spec.output.logging)
