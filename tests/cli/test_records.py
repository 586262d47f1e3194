"""What is done with a finished run: list, report, explain, verify, export; and tampering is found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper_runtime import load
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import Finished, load_run
from esper_runtime.nissa import read_journal
from esper_runtime.tolaria import load_task
from tests.cli.manifests import trained, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and a complete run that grew."""
    folder = tmp_path_factory.mktemp("finished")
    formats = ("spec.output.formats", ["safetensors", "torch-export"])
    manifest = write(folder, ("spec.training.steps", 200), formats)
    assert trained(manifest, folder / "runs") == 0
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small"


def test_runs_are_listed_with_their_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["runs"]) == 0
    said = capsys.readouterr().out
    assert "small" in said
    assert "Complete" in said
    assert "test accuracy" in said
    assert invoke(["runs", "--output", "json"]) == 0
    [run] = json.loads(capsys.readouterr().out)
    events = [entry.event for entry in read_journal(here / "journal.jsonl")]
    last = next(event for event in events if isinstance(event, Finished))
    assert run["testMetric"] == last.test_metric
    assert run["parameters"] == last.parameters


def test_an_empty_folder_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["runs", "--runs-dir", str(tmp_path)]) == 0
    assert "`esper run FILE` starts one" in capsys.readouterr().out


def test_a_report_is_one_file_that_can_be_put_anywhere(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "report.html").unlink()
    assert invoke(["report", "small"]) == 0
    assert (here / "report.html").exists()
    assert invoke(["report", "small", "--to", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (here / "report.html").read_text()
    capsys.readouterr()
    assert invoke(["report", "small", "--to", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_explanation_names_every_seed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["explain", "small"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("small: Grew from")
    assert "s1 " in said


def test_a_whole_run_verifies_and_each_kind_of_damage_is_found(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["verify", "small"]) == 0
    capsys.readouterr()
    checkpoint = sorted((here / "checkpoints").iterdir())[-1] / "model.safetensors"
    for path, what in (
        (here / "model" / "model.safetensors", "model"),
        (checkpoint, f"checkpoint {checkpoint.parent.name}"),
        (here / "journal.jsonl", "journal"),
    ):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert invoke(["verify", "small", "--output", "json"]) == 1
        bad = [check["what"] for check in json.loads(capsys.readouterr().out) if check["passed"] is False]
        assert what in bad
        path.write_bytes(whole)
    assert invoke(["verify", "small"]) == 0


def test_a_broken_journal_is_said_so_and_not_listed_as_a_result(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (here / "journal.jsonl").read_text().splitlines(keepends=True)
    (here / "journal.jsonl").write_text("".join(lines[:2] + lines[3:]))
    assert invoke(["runs"]) == 0
    assert "Broken journal" in capsys.readouterr().out
    for command in ("report", "explain", "export"):
        assert invoke([command, "small"]) == 1
        err = capsys.readouterr().err
        assert "journal.jsonl, line 3" in err
        assert "Traceback" not in err


def test_an_exported_folder_loads_and_computes_what_the_run_tested(
    here: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["export", "small", "--format", "safetensors", "--to", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"model.safetensors", "architecture.json"}
    model = load("out")
    run = load_run(finished / "run.yaml")
    task = load_task(run.spec.task, run.spec.training.random_seed)
    args, kwargs = task.inputs(task.test)
    with torch.no_grad():
        metric = task.scores(model(*args, **kwargs), task.test).mean().item()
    events = [entry.event for entry in read_journal(here / "journal.jsonl")]
    last = next(event for event in events if isinstance(event, Finished))
    assert metric == pytest.approx(last.test_metric)


def test_an_exported_program_computes_the_same_at_any_batch_size(here: Path, finished: Path) -> None:
    assert invoke(["export", "small", "--format", "torch-export"]) == 0
    assert (here / "model" / "model.pt2").exists(), "the manifest asked for it"
    program = torch.export.load(here / "export" / "model.pt2").module()
    model = load(here / "model")
    for examples in (1, 7, 64):
        x = torch.randn(examples, 1, 8, 8)
        assert torch.allclose(program(x), model(x), atol=1e-5)


def test_a_plain_export_needs_no_esper_and_computes_the_same(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["export", "small", "--to", "plain"]) == 0
    assert "largest difference to the model's outputs" in capsys.readouterr().err
    assert {path.name for path in Path("plain").iterdir()} == {"model.py", "weights.safetensors"}
    x = torch.randn(7, 1, 8, 8)
    torch.save(x, "x.pt")
    script = (
        "import sys; sys.modules['esper_runtime'] = None; sys.path.insert(0, 'plain')\n"
        "import model, torch\n"
        "with torch.no_grad(): torch.save(model.load()(torch.load('x.pt')), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert torch.allclose(torch.load("y.pt"), load(here / "model")(x), atol=1e-5)


def test_an_onnx_export_computes_the_same_at_any_batch_size(here: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert invoke(["export", "small", "--format", "onnx"]) == 0
    session = runtime.InferenceSession(str(here / "export" / "model.onnx"))
    for examples in (1, 7):
        x = torch.randn(examples, 1, 8, 8)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.as_tensor(y), load(here / "model")(x), atol=1e-5)


def test_onnx_without_its_packages_is_refused_with_the_command_that_helps(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.local.onnx_program.NEEDED", ("no_such_package",))
    assert invoke(["export", "small", "--format", "onnx"]) == 2
    assert "pip install 'esper[onnx]'" in capsys.readouterr().err


def test_a_replay_says_that_it_is_equal_or_where_it_differs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["replay", "small"]) == 0
    assert "equal: at step 200" in capsys.readouterr().out
    assert invoke(["replay", "small", "--into", str(here)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_program_goes_where_the_model_goes_and_is_made_again_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = {"uri": str(tmp_path / "out"), "formats": ["safetensors", "torch-export"]}
    path = write(tmp_path, ("spec.output", output), ("spec.training.steps", 5))
    program = tmp_path / "out" / "model.pt2"
    assert trained(path) == 0
    assert program.exists()
    program.unlink()
    assert trained(path) == 0
    assert {file.name for file in program.parent.iterdir()} == {
        "architecture.json",
        "model.pt2",
        "model.safetensors",
    }


def test_only_a_complete_run_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trained(write(tmp_path, ("spec.budget.wallSeconds", 0.001))) == 75
    capsys.readouterr()
    assert invoke(["export", "small"]) == 2
    assert "is Interrupted at step" in capsys.readouterr().err


def test_a_model_of_ones_own_is_found_again_from_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own_model.py", "own_model.yaml"):
        text = (ROOT / "examples" / name).read_text()
        (tmp_path / name).write_text(text.replace("steps: 1500", "steps: 100"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert invoke(["run", str(tmp_path / "own_model.yaml"), "--compare"]) == 0
    assert "of an entrypoint's host no larger one is known" in capsys.readouterr().out
    assert invoke(["export", "own-model"]) == 0
    script = (
        "from esper_runtime.cli import main; "
        "main(['export', 'own-model', '--format', 'safetensors', '--to', 'again'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        Path("again/model.safetensors").read_bytes()
        == Path("runs/own-model/model/model.safetensors").read_bytes()
    )
