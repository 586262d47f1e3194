"""`esper run`: the whole way of a run in processes of its own, and what it prints."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esper_runtime.cli.app import invoke
from esper_runtime.contracts import Compared, Finished, Interrupted, Resumed, SeedChanged, SeedStage
from esper_runtime.nissa import read_journal
from tests.cli.manifests import trained, write

LONG = ("spec.training.steps", 20_000)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*arguments: str) -> subprocess.Popen[str]:
    """`esper` in a process of its own, its output line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "esper_runtime.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read lines until one holds ``words``; returns all read so far."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"never said {words!r}: {''.join(lines)}")


def kinds(path: Path = Path("runs/small/journal.jsonl")) -> list[str]:
    return [entry.event.kind for entry in read_journal(path)]


def test_a_run_leaves_journal_checkpoints_model_and_report_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert invoke(["run", str(path)]) == 0
    said = capsys.readouterr().out
    assert "Test accuracy" in said
    assert "report runs/small/report.html" in said
    folder = Path("runs/small")
    left = {item.name for item in folder.iterdir()}
    assert left == {"manifest.yaml", "journal.jsonl", "checkpoints", "model", "report.html", "lock", "bus"}
    assert "<html" in (folder / "report.html").read_text()
    assert invoke(["verify", "small"]) == 0
    before = (folder / "journal.jsonl").read_bytes()
    assert invoke(["run", str(path)]) == 0
    assert "is complete; --fresh begins it again" in capsys.readouterr().out
    assert (folder / "journal.jsonl").read_bytes() == before


def test_an_interrupted_run_exits_with_75_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, LONG, ("spec.budget.wallSeconds", 600))
    process = start("run", str(path))
    wait_for(process, "step     ")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "SIGTERM: stopping with a checkpoint" in out
    assert "the same command goes on from there" in out
    assert "Traceback" not in out + err
    assert kinds()[-1] == "Interrupted"
    assert Path("runs/small/report.html").exists()
    step = read_journal(Path("runs/small/journal.jsonl"))[-1].step
    process = start("run", str(path))
    said = wait_for(process, "resumed from checkpoint")
    assert "is unfinished; going on with it" in said
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    events = [entry.event for entry in read_journal(Path("runs/small/journal.jsonl"))]
    assert [event.from_step for event in events if isinstance(event, Resumed)] == [step]
    assert invoke(["runs", "--output", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["state"]) for run in listed] == [("small", "Interrupted")]


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from esper_runtime.local.stop import StopSignals\n"
        "with StopSignals(print, 60) as signals:\n"
        "    signals.forward(lambda reason: print('asked:', reason, flush=True))\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "asked: Ctrl-C" in done.stdout
    assert "still here" not in done.stdout


def test_a_checkpoint_that_takes_longer_than_the_grace_is_not_waited_for() -> None:
    script = (
        "import os, signal\n"
        "from esper_runtime.local.stop import StopSignals\n"
        "with StopSignals(print, 0.2) as signals:\n"
        "    signals.forward(lambda reason: None)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while True:\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no checkpoint within 0.2 s; the last one before the signal is kept" in done.stderr


def test_who_ends_late_after_the_checkpoint_has_not_failed() -> None:
    script = (
        "import os, signal\n"
        "from esper_runtime.local.stop import StopSignals\n"
        "with StopSignals(print, 0.2) as signals:\n"
        "    signals.forward(lambda reason: signals.saved())\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while True:\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert "the checkpoint is written" in done.stderr


def test_a_dashboard_that_hangs_at_the_end_does_not_make_a_stopped_run_a_failed_one(tmp_path: Path) -> None:
    path = write(tmp_path, LONG, ("spec.checkpoint.graceSeconds", 3))
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from esper_runtime.contracts import load_run\n"
        "from esper_runtime.local import run\n"
        "class Hangs:\n"
        "    def on_step(self, step, loss):\n"
        "        if step == 20: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    def on_event(self, entry): pass\n"
        "    def close(self): time.sleep(600)\n"
        "run.open_logs = lambda *_: Hangs()\n"
        "path = Path(sys.argv[1])\n"
        "sys.exit(run.run_manifest(load_run(path), path, path.parent / 'runs'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 75, done.stderr
    last = read_journal(tmp_path / "runs" / "small" / "journal.jsonl")[-1].event
    assert isinstance(last, Interrupted)


@pytest.mark.parametrize("options", ["", "--no-bus", "--no-bus --output json 2>&1"])
def test_a_run_goes_on_when_who_read_its_lines_is_gone(tmp_path: Path, options: str) -> None:
    write(tmp_path, ("spec.training.steps", 300), ("spec.growth.controller.kind", "Off"))
    piped = (
        f"{sys.executable} -m esper_runtime.cli run run.yaml {options} | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", piped], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=55
    )
    last = read_journal(tmp_path / "runs" / "small" / "journal.jsonl")[-1].event
    assert isinstance(last, Finished), done.stderr
    assert "Traceback" not in done.stderr
    if "json" not in options:
        assert done.stdout.splitlines()[-1] == "0", done.stdout


def test_a_second_process_on_the_same_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, LONG)
    process = start("run", str(path))
    try:
        wait_for(process, "step     ")
        assert invoke(["run", str(path)]) == 2
        assert f"is being trained by process {process.pid}" in capsys.readouterr().err
        assert invoke(["run", str(path), "--fresh"]) == 2
        assert invoke(["runs"]) == 0
        assert f"Running (process {process.pid})" in capsys.readouterr().out
    finally:
        process.terminate()
        process.communicate()
    assert kinds()[0] == "Started"


def test_a_changed_manifest_is_refused_with_every_field_that_may_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ("spec.budget.wallSeconds", 0.001)
    assert trained(write(tmp_path, stop)) == 75
    before = Path("runs/small/journal.jsonl").read_bytes()
    changed = write(
        tmp_path,
        ("spec.host.args", {"hidden": [7]}),
        ("spec.training.randomSeed", 5),
        ("spec.training.batchSize", 20),
        ("spec.checkpoint.keep", 1),
    )
    capsys.readouterr()
    assert invoke(["run", str(changed)]) == 2
    message = capsys.readouterr().err
    assert "spec.host.args.hidden: [6, 6] -> [7]" in message
    assert "spec.training.randomSeed: 0 -> 5" in message
    assert "spec.training.batchSize: 50 -> 20" in message
    assert "spec.checkpoint.keep" not in message
    assert "--fresh" in message
    assert Path("runs/small/journal.jsonl").read_bytes() == before
    assert trained(write(tmp_path, ("spec.checkpoint.keep", 1))) == 0
    assert kinds()[-1] == "Finished"


def test_fresh_keeps_the_old_run_beside_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert trained(path) == 0
    old = Path("runs/small/journal.jsonl").read_bytes()
    bad = write(tmp_path, ("spec.host.builtin", "mpl"), name="bad.yaml")
    assert invoke(["run", str(bad), "--fresh"]) == 2
    assert Path("runs/small/journal.jsonl").read_bytes() == old
    changed = write(tmp_path, ("spec.training.randomSeed", 1))
    assert invoke(["run", str(changed), "--fresh"]) == 0
    aside = [folder for folder in Path("runs").iterdir() if folder.name.startswith("small.")]
    assert [(folder / "journal.jsonl").read_bytes() for folder in aside] == [old]
    assert kinds()[-1] == "Finished"


def test_fresh_does_not_mix_the_checkpoints_of_two_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ("spec.checkpoint.uri", str(tmp_path / "kept")))
    assert trained(path) == 0
    old = Path("runs/small/journal.jsonl").read_bytes()
    assert invoke(["run", str(path), "--fresh"]) == 2
    assert "holds the earlier run's checkpoints" in capsys.readouterr().err
    assert Path("runs/small/journal.jsonl").read_bytes() == old


def test_a_plan_shows_slots_cost_and_memory_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert invoke(["run", str(path), "--plan", "--output", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 60
    assert plan["parameters"] == 64 * 6 + 6 + 6 * 6 + 6 + 6 * 10 + 10
    assert plan["parametersLimit"] == 2 * plan["parameters"]
    assert plan["macsPerExample"] == 64 * 6 + 6 * 6 + 6 * 10
    assert plan["macs"] == plan["macsPerExample"] * 3 * 50 * 60
    assert plan["stateBytes"] == plan["parameters"] * 4 * 4
    assert plan["activationBytes"] > 0
    assert any(slot["fits"] for slot in plan["slots"])
    assert not Path("runs").exists()
    assert invoke(["run", str(path), "--plan"]) == 0
    assert "nothing is trained" in capsys.readouterr().out


def test_a_comparison_trains_the_host_and_plain_models_of_the_final_size_and_can_be_added_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ("spec.training.steps", 200))
    assert trained(path) == 0
    assert invoke(["run", str(path), "--compare"]) == 0
    said = capsys.readouterr().out
    events = [entry.event for entry in read_journal(Path("runs/small/journal.jsonl"))]
    finished = next(event for event in events if isinstance(event, Finished))
    arms = {event.arm: event for event in events if isinstance(event, Compared)}
    assert arms["host"].parameters == finished.parameters_start
    grew = finished.parameters > finished.parameters_start
    assert (set(arms) == {"host", "static wider", "static deeper"}) is grew
    for arm in arms.values():
        assert arm.learning_rate > 0
        assert 0 <= arm.test_metric <= 1
        assert arm.description in said
    assert invoke(["verify", "small"]) == 0
    assert invoke(["run", str(path), "--compare"]) == 0
    again = [entry.event for entry in read_journal(Path("runs/small/journal.jsonl"))]
    assert len(again) == len(events), "arms that are done are not trained again"
    kept = [e for e in events if isinstance(e, SeedChanged) and e.after is SeedStage.FOSSILIZED]
    assert bool(kept) is grew


def test_a_run_without_growth_is_compared_with_its_own_host_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ("spec.growth.controller.kind", "Off"))
    assert invoke(["run", str(path), "--compare"]) == 0
    events = [entry.event for entry in read_journal(Path("runs/small/journal.jsonl"))]
    assert [event.arm for event in events if isinstance(event, Compared)] == ["host"]
    assert "the run did not grow" in capsys.readouterr().out
    assert not any(isinstance(event, Interrupted) for event in events)


def test_fields_for_kubernetes_are_named_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ("spec.queueName", "gpus"), ("metadata.namespace", "team-a"))
    assert invoke(["run", str(path)]) == 0
    err = capsys.readouterr().err
    assert "notice: metadata.namespace: has a meaning only on Kubernetes" in err
    assert "notice: spec.queueName: has a meaning only on Kubernetes" in err


def test_an_unexpected_error_leaves_its_traceback_in_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setenv("RANK", "0")  # the trainer itself, in this process
    monkeypatch.setattr("esper_runtime.tolaria.trainer.save_model", broken)
    assert invoke(["run", str(write(tmp_path))]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: deep inside" in err
    assert "the traceback is in runs/small/error.log" in err
    assert "Traceback" not in err
    assert "deep inside" in Path("runs/small/error.log").read_text()


def test_a_run_whose_numbers_are_hopeless_fails_with_1_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hopeless.py").write_text(
        "import torch\n"
        "class Bad(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.linear(x.flatten(1)) * (float('nan') if self.training else 1.0)\n"
    )
    path = write(
        tmp_path, ("spec.host", {"entrypoint": "hopeless:Bad"}), ("spec.growth.controller.kind", "Off")
    )
    assert invoke(["run", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("esper: ")
    assert "Traceback" not in err
    events = [entry.event for entry in read_journal(Path("runs/small/journal.jsonl"))]
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "Failed"
