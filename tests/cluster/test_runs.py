"""Runs that nothing happens to: from apply to the model, live status, several workers, deletion."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from esper_runtime.artifact import HOME_VARIABLE
from tests.cluster.cluster import ROOT, RUNS, Cluster
from tests.cluster.outcome import Outcome, outcome_of, read_outcome, same
from tests.cluster.runs import growing

pytestmark = pytest.mark.cluster
EXAMPLE = ROOT / "examples" / "mnist1d.yaml"


def esper(*words: str, home: Path | None = None, seconds: float = 600) -> str:
    """What the command `esper` prints on its standard output."""
    environment = os.environ | ({HOME_VARIABLE: str(home)} if home is not None else {})
    done = subprocess.run(
        [sys.executable, "-m", "esper_runtime.cli", *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def example(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[int], float]:
    """The README's example on the cluster: its outcome, the steps that its status showed, and its seconds."""
    installed.deadline = time.monotonic() + 600
    folder = tmp_path_factory.mktemp("example")
    began = time.monotonic()
    installed.kubectl("apply", f"--filename={EXAMPLE}", f"--namespace={RUNS}")
    steps: list[int] = []

    def ended() -> bool:
        status = installed.status("mnist1d")
        phase, step = status.get("phase"), (status.get("progress") or {}).get("step")
        assert phase not in ("Failed", "Rejected"), status
        if phase == "Running" and step is not None and step not in steps:
            steps.append(step)
        return bool(phase == "Succeeded")

    installed.until(ended, "examples/mnist1d.yaml has succeeded", 600)
    took = time.monotonic() - began
    return outcome_of(installed, "mnist1d", folder / "run"), steps, took


def test_the_example_trains_to_the_end_grows_and_shows_it_live(
    cluster: Cluster, example: tuple[Outcome, list[int], float]
) -> None:
    outcome, steps, took = example
    cluster.note(
        "apply examples/mnist1d.yaml to Succeeded", f"{took:.0f} s, {len(steps)} steps seen on the way"
    )
    assert len(steps) >= 3, "the status advances while it trains"
    assert steps == sorted(steps)
    assert outcome.parameters[1] > outcome.parameters[0], "it has grown"
    status = cluster.status("mnist1d")
    assert status["result"]["weightsDigest"] == outcome.digest
    assert status["parameters"]["now"] == outcome.parameters[1]
    assert status["seeds"]["Fossilized"] >= 1
    assert status["usage"] | {"wallSeconds": 0, "deviceSeconds": 0} == {
        "attempts": 1,
        "retries": 0,
        "restarts": 0,
        "wallSeconds": 0,
        "deviceSeconds": 0,
    }
    table = cluster.kubectl("get", "mrun", "mnist1d", f"--namespace={RUNS}")
    assert "Succeeded" in table
    assert "2000/2000" in table
    described = cluster.kubectl("describe", "mrun", "mnist1d", f"--namespace={RUNS}")
    for word in ("Fossilized", "Checkpointed", "Complete"):
        assert word in described
    assert len(cluster.pods.seen(run="mnist1d", component="training")) == 1


def test_its_model_is_pulled_and_checked_against_the_status(
    cluster: Cluster, example: tuple[Outcome, list[int], float], tmp_path: Path
) -> None:
    context = cluster.access.context
    words = ("--namespace", RUNS, "--context", context, "--into", str(tmp_path / "model"), "--output", "json")
    found = json.loads(esper("pull", "mnist1d", *words))
    assert found["weightsDigest"] == example[0].digest
    assert found["matchesStatus"] is True
    assert (tmp_path / "model" / "architecture.json").exists()


@pytest.mark.deadline(900)
def test_the_same_manifest_gives_the_same_architecture_and_weights_as_on_one_machine(
    cluster: Cluster, example: tuple[Outcome, list[int], float], tmp_path: Path
) -> None:
    esper("run", str(EXAMPLE), "--runs-dir", str(tmp_path / "runs"), home=tmp_path / "home")
    here = read_outcome(tmp_path / "runs" / "mnist1d" / "journal.jsonl")
    there = example[0]
    assert len(here.life) > 0
    assert here.life == there.life
    assert here.parameters == there.parameters
    if here.environment == there.environment:
        same(here, there)
        cluster.note("as on one machine", f"same architecture, losses and weights: {here.digest}")
    else:  # another processor or another build of torch rounds otherwise
        differing = sorted(set(here.environment) ^ set(there.environment))
        cluster.note("as on one machine", f"same architecture; weights not comparable: {differing}")


@pytest.mark.deadline(600)
def test_two_workers_train_one_model_and_one_that_dies_costs_one_retry_at_most(cluster: Cluster) -> None:
    made = growing("pair", steps=1500)
    made["spec"]["training"]["workers"] = {"count": 2}
    cluster.apply(made)
    cluster.at_step("pair", 400)
    killed = cluster.kill(RUNS, "esper.dev/run=pair,batch.kubernetes.io/job-completion-index=1")
    status = cluster.reaches("pair", "Succeeded", 400)
    assert status["progress"]["step"] == 1500
    assert status["usage"]["attempts"] == 1
    assert status["usage"]["retries"] <= 1
    assert status["usage"]["restarts"] >= 1
    pods = cluster.pods.seen(run="pair")
    assert {pod.index for pod in pods} == {"0", "1"}
    assert len(pods) >= 3, "the first two, and one in place of each that ended early"
    assert killed in {pod.name for pod in pods}
    cluster.remove("pair")


@pytest.mark.deadline(300)
def test_a_run_that_is_deleted_leaves_nothing(cluster: Cluster) -> None:
    before = cluster.everything()
    cluster.apply(growing("deleted", steps=20000))
    cluster.at_step("deleted", 200)
    made = cluster.everything() - before
    kinds = {line.split()[0] for line in made if "deleted" in line}
    assert {
        "MorphogeneticRun",
        "Job",
        "Pod",
        "Service",
        "PersistentVolumeClaim",
        "Secret",
        "NetworkPolicy",
    } <= kinds
    claim = cluster.get("persistentvolumeclaim", "deleted-data")
    assert claim is not None
    names = ("deleted", claim["spec"]["volumeName"])
    cluster.kubectl("delete", "mrun", "deleted", f"--namespace={RUNS}")

    def left() -> set[str]:
        new = cluster.everything() - before
        return {line for line in new if any(name in line for name in names)}

    try:
        cluster.until(lambda: not left(), "a run that was deleted has left nothing", 120)
    except AssertionError as error:
        raise AssertionError(f"{error}: {sorted(left())}") from error


def test_the_example_is_the_one_that_esper_run_takes() -> None:
    assert yaml.safe_load(EXAMPLE.read_text())["metadata"]["name"] == "mnist1d"
