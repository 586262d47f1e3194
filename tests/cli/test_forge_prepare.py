"""`esper forge prepare`: kernels that lie on the shelf before the run that uses them begins."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import KernelsArrived, load_run
from esper_runtime.tolaria import Trainer
from esper_runtime.urza import Shelf
from tests.cli.manifests import write
from tests.oona.bus import eventually
from tests.tolaria.runs import Recorder

FEW = ("spec.growth.blueprints", {"include": ["mlp", "low-rank"]})


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was ever made."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def prepared(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert invoke(["forge", "prepare", *arguments, "--output", "json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_what_was_prepared_is_all_that_a_run_needs_where_nothing_can_be_made(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = write(tmp_path, FEW), Shelf(home).artifacts()
    kernels = prepared(capsys, str(path))["kernels"]
    assert isinstance(kernels, list)
    assert {kernel["name"] for kernel in kernels} == {"mlp", "low-rank"}
    for kernel in kernels:
        assert kernel["pipeline"] == "fast"
        assert kernel["made"] is (f"{kernel['kernel']}-{kernel['digest'][:16]}" not in before)
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert prepared(capsys, str(path))["kernels"] == [kernel | {"made": False} for kernel in kernels]
    recorder = Recorder()
    Trainer(load_run(path), tmp_path / "run", recorder).run()
    (arrived,) = recorder.of(KernelsArrived)
    assert {kernel.kernel for kernel in arrived.kernels} == {kernel["kernel"] for kernel in kernels}


def test_a_manifest_that_grows_nothing_needs_no_kernels(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ("spec.growth.controller.kind", "Off"))
    assert prepared(capsys, str(path))["kernels"] == []


def test_a_wrong_manifest_is_refused_before_anything_is_made(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path, FEW), write(tmp_path, ("spec.host.builtin", "mpl"), name="bad.yaml")
    assert invoke(["forge", "prepare", str(good), str(bad)]) == 2
    assert "mpl" in capsys.readouterr().err
    assert not fresh.exists()


def test_an_interrupted_preparation_keeps_what_is_made(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)

    def interrupt() -> None:
        eventually(lambda: list(fresh.glob("kernels/*.json")), 50)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert invoke(["forge", "prepare", str(path)]) == 75
    thread.join()
    assert "stopped; what is made stays" in capsys.readouterr().err
    shelf, trust = Shelf(fresh), KeyRing(fresh).trust
    kept = {name[:-17] for name in shelf.artifacts()}
    assert kept
    assert not shelf.usable(kept, trust)[1]
