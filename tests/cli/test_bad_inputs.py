"""Bad manifests and bad inputs: each is refused with a message to act on, and nothing is left behind."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esper_runtime.cli.app import invoke
from tests.cli.manifests import ABSENT, write

Case = tuple[str, Any, list[str]]

FIELDS: list[Case] = [
    # path, value given, what the message must name besides the path
    ("apiVersion", "v1", ['given "v1"', "allowed: esper.dev/v1alpha1"]),
    ("apiVersion", ABSENT, ["missing; needed: esper.dev/v1alpha1"]),
    ("kind", "Run", ['given "Run"', "allowed: MorphogeneticRun"]),
    ("metadata", ABSENT, ["missing; needed: a mapping with the fields name"]),
    ("metadata.name", ABSENT, ["missing; needed: 1 to 40 lower-case letters"]),
    ("metadata.name", "Big Name", ['given "Big Name"', "1 to 40 lower-case letters, digits and '-'"]),
    ("metadata.name", "../escape", ['given "../escape"', "1 to 40 lower-case letters"]),
    ("metadata.name", "a" * 41, ["allowed: 1 to 40 lower-case letters"]),
    ("metadata.name", "ends-", ['given "ends-"', "last no '-'"]),
    ("metadata.labels", ["a"], ['given ["a"]', "allowed: a mapping of text to text"]),
    ("spec", None, ["given null", "allowed: a mapping of fields"]),
    ("spec.hots", {}, ["unknown field, given {}", "nearest known name: 'host'"]),
    ("spec.host", ABSENT, ["missing; needed: a mapping with the fields builtin, entrypoint, args"]),
    ("spec.host", "mlp", ['given "mlp"', "allowed: a mapping of fields"]),
    ("spec.host.builtin", ABSENT, ["give exactly one of 'builtin' and 'entrypoint'"]),
    ("spec.host.entrypoint", "model:build", ["give exactly one of 'builtin' and 'entrypoint'"]),
    ("spec.host.entrypoint", "model.py", ['given "model.py"', "allowed: 'package.module:function'"]),
    ("spec.host.arguments", {}, ["unknown field", "nearest known name: 'args'"]),
    ("spec.host.args", [1], ["given [1]", "allowed: a mapping"]),
    ("spec.task", ABSENT, ["missing; needed: a mapping with the fields builtin, entrypoint, args"]),
    ("spec.training", ABSENT, ["missing; needed: a mapping with the fields steps, epochs, batchSize"]),
    ("spec.training.steps", ABSENT, ["give exactly one of 'steps' and 'epochs'"]),
    ("spec.training.epochs", 3, ["give exactly one of 'steps' and 'epochs'", '"epochs": 3']),
    ("spec.training.steps", 0, ["given 0", "allowed: a whole number from 1 to 100000000"]),
    ("spec.training.steps", -5, ["given -5", "allowed: a whole number from 1 to 100000000"]),
    ("spec.training.steps", 10.5, ["given 10.5", "allowed: a whole number"]),
    ("spec.training.steps", "100", ['given "100"', "allowed: a whole number"]),
    ("spec.training.steps", True, ["given true", "allowed: a whole number"]),
    ("spec.training.batchSize", 0, ["given 0", "allowed: a whole number from 1 to 1000000"]),
    ("spec.training.batch_size", 5, ["unknown field, given 5", "nearest known name: 'batchSize'"]),
    ("spec.training.accumulate", 51, ["'accumulate' must not be larger than 'batchSize'"]),
    ("spec.training.clipNorm", 0, ["given 0", "allowed: a number above 0"]),
    ("spec.training.precision", "fp16", ['given "fp16"', "allowed: one of Float32, BFloat16, Float16"]),
    ("spec.training.randomSeed", -1, ["given -1", "allowed: a whole number from 0 to 2147483647"]),
    ("spec.training.threads", 0, ["given 0", "allowed: a whole number from 1 to 1024"]),
    ("spec.training.deterministic", "yes", ['given "yes"', "allowed: true or false"]),
    ("spec.training.device", "gpu", ['given "gpu"', "allowed: one of auto, cpu, cuda"]),
    ("spec.training.initialWeights", "", ['given ""', "allowed: text of 1 to 1000 characters"]),
    ("spec.training.workers.count", 65, ["given 65", "allowed: a whole number from 1 to 64"]),
    ("spec.training.learningRate", 0.1, ["unknown field", "'spec.training.optimizer.learningRate'"]),
    ("spec.training.optimizer.name", "Adam", ['given "Adam"', "allowed: one of AdamW, SGD"]),
    ("spec.training.optimizer.learningRate", 0, ["given 0", "allowed: a number above 0 and at most 100"]),
    ("spec.training.optimizer.betas", [0.9, 1.0], ["betas[1]: given 1.0", "of at least 0 and below 1"]),
    ("spec.training.optimizer.betas", [0.9], ["given [0.9]", "allowed: a list of 2"]),
    ("spec.training.optimizer.momentum", 1, ["given 1", "of at least 0 and below 1"]),
    ("spec.training.schedule.name", "cosine", ['given "cosine"', "allowed: one of Constant, Cosine, Linear"]),
    ("spec.training.schedule.finalFactor", 2, ["given 2", "allowed: a number from 0 to 1"]),
    ("spec.training.validation.everySteps", 0, ["given 0", "allowed: a whole number of at least 1"]),
    ("spec.growth.controller.kind", "off", ['given "off"', "allowed: one of Heuristic, Off"]),
    ("spec.growth.controller.earliest", 0.9, ["'earliest' (0.9) must not be after 'latest' (0.5)"]),
    ("spec.growth.slots.include", [], ["given []", "allowed: a list of 1 to 64 entries"]),
    ("spec.growth.slots.include", "layers.*", ['given "layers.*"', "allowed: a list of 1 to 64 entries"]),
    ("spec.growth.lifecycle.plan", "Slow", ['given "Slow"', "allowed: one of Auto, Immediate, Isolated"]),
    ("spec.growth.gates.confidence", 95, ["given 95", "allowed: a number above 0.5 and below 1"]),
    (
        "spec.growth.budget.parameters",
        "double",
        ['given "double"', "a factor such as 2x or 1.5x, or a whole"],
    ),
    ("spec.growth.budget.parameters", 0, ["given 0", "or a whole number of at least 1"]),
    ("spec.growth.budget.concurrentSeeds", 0, ["given 0", "allowed: a whole number from 1 to 1000"]),
    ("spec.checkpoint.keep", 0, ["given 0", "allowed: a whole number from 1 to 1000"]),
    ("spec.checkpoint.graceSeconds", 0, ["given 0", "allowed: a number above 0 and at most 3600"]),
    ("spec.output.formats", ["onyx"], ['given "onyx"', "safetensors, torch, torch-export, onnx"]),
    ("spec.budget.wallSeconds", -1, ["given -1", "allowed: a number above 0"]),
    ("spec.budget.parameters", "2x", ["unknown field", "'spec.growth.budget.parameters'"]),
]

PARTS: list[tuple[list[tuple[str, Any]], list[str]]] = [
    # what only the data, the host or the machine can tell
    ([("spec.host.builtin", "mpl")], ["'mpl'", "did you mean 'mlp'?", "built in: mlp, cnn1d"]),
    ([("spec.task.builtin", "mnist")], ["'mnist'", "built in: mnist1d, digits"]),
    ([("spec.host.args", {"hiden": [3]})], ["args.hiden: unknown argument", "did you mean 'hidden'?"]),
    ([("spec.host.args", {"hidden": []})], ["args.hidden"]),
    ([("spec.host.args", {"hidden": [0]})], ["args.hidden.0", "got 0"]),
    (
        [("spec.host.builtin", "transformer"), ("spec.host.args", {})],
        ["takes tokens", "hosts for it: mlp, cnn2d"],
    ),
    ([("spec.task.args", {"validationFraction": 2})], ["args.validationFraction", "got 2"]),
    ([("spec.training.batchSize", 5000)], ["batchSize is 5000", "training examples"]),
    ([("spec.training.device", "cuda")], ["spec.training.device is 'cuda'", "use 'auto' or 'cpu'"]),
    (
        [("spec.training.initialWeights", "none.safetensors")],
        ["initialWeights 'none.safetensors'", "there is no"],
    ),
    ([("spec.training.initialWeights", "run.yaml")], ["initialWeights 'run.yaml'", "not a safetensors file"]),
    ([("spec.growth.slots.include", ["layer9*"])], ["'layer9*'", "the host's places: layers.0"]),
    ([("spec.growth.slots.exclude", ["*"])], ["excludes every place"]),
    ([("spec.task", {"builtin": "text", "args": {"path": "no.txt"}})], ["args.path", "no.txt"]),
    ([("spec.task", {"builtin": "text", "args": {}})], ["args.path: this argument is needed"]),
    (
        [("spec.task", {"builtin": "arrays", "args": {"path": "broken.npz", "task": "classification"}})],
        ["broken.npz"],
    ),
    (
        [("spec.task", {"builtin": "arrays", "args": {"path": "nan.npz", "task": "classification"}})],
        ["holds nan"],
    ),
    (
        [("spec.task", {"builtin": "fashion-mnist", "args": {"path": "nowhere"}})],
        ["nowhere", "dataset-fashion-mnist"],
    ),
    (
        [("spec.host", {"entrypoint": "no_such_module:build"})],
        ["there is no module 'no_such_module'", "looked in"],
    ),
    ([("spec.host", {"entrypoint": "own:no_function"})], ["has no 'no_function'", "did you mean"]),
    ([("spec.host", {"entrypoint": "own:raises"})], ["ZeroDivisionError", "own.py:"]),
    ([("spec.host", {"entrypoint": "own:build", "args": {"wide": 3}})], ["does not take args ['wide']"]),
    ([("spec.host", {"entrypoint": "own:text"})], ["returned a str; expected a torch.nn.Module"]),
    ([("spec.host", {"entrypoint": "own:wrong_shape"})], ["mat1 and mat2 shapes cannot be multiplied"]),
    ([("spec.host", {"entrypoint": "syntax:build"})], ["SyntaxError", "syntax.py"]),
    ([("spec.task", {"entrypoint": "own:text"})], ["returned a str without 'name'"]),
    ([("spec.checkpoint.uri", "nosuchscheme://x")], ["checkpoint.uri 'nosuchscheme://x' cannot be opened"]),
]

OWN = """
import torch

def build(width=3): return torch.nn.Linear(width, 10)
def raises(): return 1 / 0
def text(): return "model"
def wrong_shape(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10))
def no_functions(): return None
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("own", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `esper` with what it must refuse; returns the message."""
    before = sorted(Path.cwd().rglob("*"))
    assert invoke(list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    left = [path for path in sorted(Path.cwd().rglob("*")) if "__pycache__" not in path.parts]
    assert left == before, "something was left behind"
    return captured.err


@pytest.mark.parametrize("case", FIELDS, ids=[f"{path}={value!r:.20}" for path, value, _ in FIELDS])
def test_a_wrong_field_is_refused_with_its_path_what_was_given_and_what_is_allowed(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, value, words = case
    message = refused(capsys, "run", str(write(tmp_path, (path, value))))
    where = path if value is not ABSENT or "missing" in words[0] else path.rpartition(".")[0]
    assert where.rpartition(".")[0] in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("case", PARTS, ids=[str(changes)[:60] for changes, _ in PARTS])
def test_what_only_data_host_or_machine_can_tell_is_refused_before_anything_is_written(
    case: tuple[list[tuple[str, Any]], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")  # the trainer itself, in this process
    changes, words = case
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "syntax.py").write_text("def build(:\n")
    (tmp_path / "broken.npz").write_bytes(b"not an archive")
    np.savez(tmp_path / "nan.npz", x=np.full((100, 4), np.nan), y=np.arange(100) % 2)
    message = refused(capsys, "run", str(write(tmp_path, *changes)))
    for word in words:
        assert word in message


ARGUMENTS: list[tuple[list[str], list[str]]] = [
    (["run", "absent.yaml"], ["absent.yaml: no such file"]),
    (["run", "."], ["is a folder; a YAML file is expected"]),
    (["run"], ["Missing argument 'FILE'"]),
    (["run", "run.yaml", "--plan", "--fresh"], ["--plan trains nothing"]),
    (["run", "run.yaml", "--speed"], ["No such option", "--speed"]),
    (["run", "run.yaml", "--runs-dir", "run.yaml"], ["cannot be written to"]),
    (["train"], ["No such command 'train'"]),
    (["slots", "absent.yaml"], ["absent.yaml: no such file"]),
    (["report", "nothing"], ["no run 'nothing' in runs", "there are none"]),
    (["verify", "nothing"], ["no run 'nothing' in runs"]),
    (["explain", "nothing"], ["no run 'nothing' in runs"]),
    (["export", "nothing"], ["no run 'nothing' in runs"]),
    (["export", "nothing", "--format", "onyx"], ["'onyx'", "'torch', 'torch-export', 'onnx'"]),
    (["blueprint", "show", "bottelneck"], ["no blueprint 'bottelneck'", "nearest known name: 'bottleneck'"]),
    (["blueprint", "show", "absent.yaml"], ["absent.yaml"]),
    (["blueprint", "list", "--interface", "video"], ["'video'", "'features'"]),
    (["blueprint", "validate"], ["Missing argument 'FILE...'"]),
    (["blueprint", "validate", "absent.yaml"], ["absent.yaml"]),
    (["blueprint", "validate", "deep.yaml"], ["deep.yaml"]),
    (["blueprint", "validate", "list.yaml"], ["list.yaml", "mapping"]),
    (["blueprint", "validate", "broken.yaml"], ["broken.yaml", "node 'tail'", "rule: "]),
    (["bench", "grwth"], ["no benchmark 'grwth'"]),
]


@pytest.mark.parametrize("case", ARGUMENTS, ids=[" ".join(arguments) for arguments, _ in ARGUMENTS])
def test_wrong_arguments_are_refused(
    case: tuple[list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = case
    write(tmp_path)
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    (tmp_path / "list.yaml").write_text("- a\n")
    graph = {
        "name": "broken",
        "interface": "features",
        "nodes": [{"id": "tail", "op": "linear", "inputs": ["nowhere"], "attributes": {"width": "Cout"}}],
        "output": "tail",
    }
    (tmp_path / "broken.yaml").write_text(json.dumps(graph))
    message = refused(capsys, *arguments)
    for word in words:
        assert word in message


def test_there_are_more_than_sixty_cases() -> None:
    assert len(FIELDS) + len(PARTS) + len(ARGUMENTS) > 100
