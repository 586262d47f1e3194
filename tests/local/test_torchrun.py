"""Ranks that torchrun starts, on a bus that is there already."""

import subprocess
import sys
from pathlib import Path

import pytest

from esper_runtime.cli.app import invoke
from esper_runtime.contracts import EventType, Interrupted, Steer, Steered
from esper_runtime.local import RunFolder
from esper_runtime.nissa import read_journal
from esper_runtime.oona import BundledServer
from tests.cli.manifests import write
from tests.oona.bus import eventually, free_port, messages

SECONDS = 50.0
CHANGES = (
    ("spec.training.steps", 500_000),
    ("spec.training.workers", {"count": 2, "timeoutSeconds": 30}),
    ("spec.growth.controller.kind", "Off"),
)


def test_ranks_of_torchrun_are_on_the_bus_as_one_run_that_can_be_commanded_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = write(tmp_path, *CHANGES), RunFolder(tmp_path / "runs" / "small")
    where = ["--runs-dir", str(tmp_path / "runs")]

    def say(*command: str) -> str:
        code = invoke([*command, *where])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    with BundledServer(tmp_path / "bus") as server:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        esper = ["-m", "esper_runtime.cli", "run", str(path), *where, "--bus", str(server.address_file)]
        with subprocess.Popen(
            [sys.executable, *torchrun, *esper],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as process:
            try:
                eventually(lambda: folder.started or process.poll() is not None, SECONDS)
                assert process.poll() is None
                assert "applied at step" in say("pin", "small")
                assert server.address.url in say("status", "small")
                assert "has stopped at step" in say("stop", "small")
                _, said = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
        events = messages(server.address, "TELEMETRY")
        copy = [event["id"] for event in messages(server.address, "EVENTS", "esper.run.local.small.journal")]
    assert process.returncode == 1, "torchrun's own word for ranks that did not end with 0"
    assert "exitcode  : 75" in said
    assert "exitcode  : -" not in said, said
    assert not folder.bus_address.exists()
    entries = read_journal(folder.journal)
    steered = [entry.event.command for entry in entries if isinstance(entry.event, Steered)]
    assert steered == [Steer.PIN, Steer.STOP]
    assert isinstance(entries[-1].event, Interrupted)
    assert (entries[-1].event.reason or "").startswith("esper stop by")
    parts = [event["data"] for event in events if event["type"] == EventType.TELEMETRY]
    numbers = [part["first"] + index for part in parts for index in range(len(part["samples"]))]
    assert numbers == list(range(len(numbers)))
    steps = [sample["step"] for part in parts for sample in part["samples"] if "loss" in sample]
    assert steps == list(range(1, entries[-1].step + 1)), "one sample for each step, though two ranks did it"
    assert len({event["id"] for event in events}) == len(events)
    assert len(copy) == len(set(copy)) == len(entries)
