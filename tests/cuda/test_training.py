"""Whole runs on the GPU: where things lie, and that they repeat bit for bit, however they are interrupted."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from esper_runtime.contracts import Decided, RolledBack, SeedChanged, SeedStage, Started
from esper_runtime.tolaria import Trainer
from esper_runtime.tolaria.checkpoint import CheckpointStore
from tests.cuda.runs import DEVICE, on_gpu, replayed
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Recorder, Script, digits, train

STEPS = 120
ROOT = Path(__file__).resolve().parents[2]


def script() -> Script:
    return Script((10, IMMEDIATE), (30, ISOLATED), (66, IMMEDIATE), cull=("s1",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that nothing interrupts; dropout and batch norm in it."""
    folder = tmp_path_factory.mktemp("whole")
    recorder, trainer, result = train(on_gpu(STEPS), folder, script())
    return folder, recorder, trainer, result


def test_seeds_moments_and_statistics_lie_on_the_gpu(whole: Any) -> None:
    _, recorder, trainer, _ = whole
    parts = trainer._loop.parts
    tensors = [*parts.model.parameters(), *parts.model.buffers(), *parts.optimizer.state()[0].values()]
    assert len(list(parts.model.seeds)) == 2
    assert {tensor.device.type for tensor in tensors} == {DEVICE.type}
    environment = recorder.of(Started)[0].environment
    assert environment["device"] == "cuda"
    assert environment["gpu"] == torch.cuda.get_device_name()
    stages = {(event.seed, event.after) for event in recorder.of(SeedChanged)}
    assert {("s1", SeedStage.CULLED), ("s2", SeedStage.FOSSILIZED), ("s3", SeedStage.FOSSILIZED)} <= stages


def test_the_same_run_twice_is_bit_for_bit_the_same(whole: Any, tmp_path: Path) -> None:
    _, recorder, _, result = whole
    again, _, second = train(on_gpu(STEPS), tmp_path, script())
    assert again.losses == recorder.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert second.finished.ledger == result.finished.ledger


@pytest.mark.parametrize("moments", [(24,), (12, 36, 47), (61, 80, 119)])
def test_stopped_and_resumed_it_is_bit_for_bit_the_run_never_interrupted(
    whole: Any, tmp_path: Path, moments: tuple[int, ...]
) -> None:
    _, recorder, _, result = whole
    losses: dict[int, float] = {}
    for moment in moments:
        part, _, stopped = train(on_gpu(STEPS), tmp_path, script(), stop_at=moment)
        assert stopped.step == moment
        losses |= part.losses
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=1)
    assert "cuda.0" in store.load(store.saved()[-1].name).random
    part, _, finished = train(on_gpu(STEPS), tmp_path, script())
    assert losses | part.losses == recorder.losses
    assert finished.finished.weights_digest == result.finished.weights_digest


def test_killed_and_resumed_in_another_process_it_is_the_same(whole: Any, tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tests.cuda.test_training import *\n"
        "class Dies(Recorder):\n"
        "    def on_step(self, step, loss):\n"
        "        if step == int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "result = Trainer(on_gpu(STEPS), Path(sys.argv[1]), Dies(), controller=script()).run()\n"
        "print(result.finished.weights_digest)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}

    def run(die_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(tmp_path), str(die_at)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert run(57).returncode == -signal.SIGKILL
    last = run(-1)
    assert last.returncode == 0, last.stderr[-2000:]
    assert last.stdout.split()[-1] == whole[3].finished.weights_digest


def test_a_seed_that_learns_behind_the_host_changes_no_loss_of_it(tmp_path: Path) -> None:
    bare, _, _ = train(on_gpu(20), tmp_path / "bare", Script())
    behind, _, _ = train(on_gpu(20), tmp_path / "behind", Script((5, ISOLATED)))
    assert SeedStage.TRAINING in {event.after for event in behind.of(SeedChanged)}
    grafted = min((e.step for e in behind.entries if _grafts(e.event)), default=20)
    assert grafted > 15
    steps = range(1, grafted + 1)
    assert [behind.losses[step] for step in steps] == [bare.losses[step] for step in steps]


def _grafts(event: Any) -> bool:
    return isinstance(event, SeedChanged) and event.after is SeedStage.GRAFTING


def test_a_run_that_the_heuristic_grew_repeats_and_is_replayed(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        recorder = Recorder()
        result = Trainer(on_gpu(300), tmp_path / name, recorder).run()
        digests.append(result.finished.weights_digest if result.finished else None)
        assert any(event.directives for event in recorder.of(Decided))
    assert digests[0] == digests[1]
    outcome = replayed(tmp_path / "one")
    assert outcome.equal, (outcome.differences, outcome.first)


def test_a_replay_of_an_interrupted_run_is_bit_for_bit_the_same(whole: Any, tmp_path: Path) -> None:
    for stop in (33, 61, None):
        train(on_gpu(STEPS), tmp_path, script(), stop_at=stop)
    outcome = replayed(tmp_path)
    assert outcome.equal, (outcome.differences, outcome.first)
    assert outcome.recorded == whole[3].finished.weights_digest


@pytest.mark.parametrize("example", [3, 700])
def test_a_bad_batch_is_rolled_back_and_what_follows_is_that_of_a_run_without_it(
    tmp_path: Path, example: int
) -> None:
    def poison(losses: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        bad = bool((batch["number"] == example).any()) and len(losses) == 32
        return losses * math.nan if bad else losses

    recorder, _, result = train(on_gpu(STEPS), tmp_path, script(), Poisoned(digits(), poison))
    assert recorder.of(RolledBack)
    assert result.outcome == "Complete"
    outcome = replayed(tmp_path)  # never faulty: it skips the batch, and restores nothing
    assert outcome.equal, (outcome.differences, outcome.first)


class Explodes(Recorder):
    """Ruins the weights of a seed at a step, once."""

    def on_step(self, step: int, loss: float) -> None:
        super().on_step(step, loss)
        assert self.trainer is not None
        assert self.trainer._loop is not None
        if step == 33 and not self.of(RolledBack):
            for seed in self.trainer._loop.parts.model.seeds:
                with torch.no_grad():
                    for parameter in seed.body.parameters():
                        parameter.mul_(1e3).add_(1e4)


def test_a_seed_that_explodes_is_blamed_and_its_slot_locked(tmp_path: Path) -> None:
    recorder = Explodes()
    recorder.trainer = Trainer(
        on_gpu(STEPS), tmp_path, recorder, controller=Script((30, IMMEDIATE), (60, IMMEDIATE))
    )
    assert recorder.trainer.run().outcome == "Complete"
    assert [event.blame for event in recorder.of(RolledBack)] == ["seed"]
    assert replayed(tmp_path).equal


def test_the_command_line_trains_on_the_gpu_without_any_setting_from_outside(tmp_path: Path) -> None:
    described = on_gpu(60, host={"builtin": "mlp", "args": {"hidden": [8, 8]}})
    manifest = tmp_path / "run.yaml"
    manifest.write_text(json.dumps(described.model_dump(mode="json", by_alias=True)))
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path[1:]])
    command = [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), "--no-bus"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "runs" / described.metadata.name / "model" / "model.safetensors").exists()
