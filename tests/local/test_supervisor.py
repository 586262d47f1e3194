"""`esper run` as a supervisor: real processes that are killed, started again, and ended in order."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from esper_runtime.contracts import Interrupted, Resumed
from esper_runtime.local import RunFolder
from esper_runtime.local.processes import (
    ProcessTable,
    read_table,
    record_of,
    start_time,
    write_table,
)
from esper_runtime.local.supervisor import Job, supervise
from esper_runtime.nissa import read_journal
from esper_runtime.planning import RestartPolicy
from tests.cli.manifests import write
from tests.local.supervised import SECONDS, Running

LONG = ("spec.training.steps", 200_000)
EVERY = ("spec.checkpoint.everySteps", 50)
OFF = ("spec.growth.controller.kind", "Off")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    begun: list[Running] = []

    def begin(*options: str, changes: tuple[tuple[str, object], ...] = (LONG, EVERY, OFF)) -> Running:
        begun.append(Running(write(tmp_path, *changes), *options))
        return begun[-1]

    yield begin
    for run in begun:
        run.role("trainer")
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        for record in run.left():
            os.kill(record.pid, signal.SIGKILL)


def kinds(run: Running) -> list[str]:
    return [entry.event.kind for entry in read_journal(run.folder.journal)]


def test_killed_trainer_and_bus_are_started_again_and_one_signal_ends_all_in_order(
    running: Callable[..., Running],
) -> None:
    run = running()
    run.trained()
    trainer = run.role("trainer")
    run.kill("bus")
    assert run.role("trainer") == trainer, "the training did not notice"
    run.kill("trainer")
    run.trained()
    assert "the trainer ended (killed by SIGKILL); it starts again in 0.5 s" in run.said.read_text()
    resumed = [e.event for e in read_journal(run.folder.journal) if isinstance(e.event, Resumed)]
    assert len(resumed) == 1
    assert resumed[0].checkpoint is not None, "it went on from a checkpoint"
    assert run.end(signal.SIGINT) == 75
    assert run.left() == []
    last = read_journal(run.folder.journal)[-1].event
    assert isinstance(last, Interrupted)
    assert last.reason == "Ctrl-C"
    assert kinds(run)[-2] == "Checkpointed"
    there = {path.name for path in run.folder.path.iterdir()}
    assert not there & {"processes.json", "bus.json"}
    assert "Traceback" not in run.said.read_text()


def test_a_second_signal_ends_everything_at_once(running: Callable[..., Running]) -> None:
    run = running()
    run.trained()
    trainer = run.role("trainer")
    assert trainer is not None
    os.kill(trainer.pid, signal.SIGSTOP)  # it cannot write a checkpoint
    run.until("it has stopped", lambda: psutil.Process(trainer.pid).status() == psutil.STATUS_STOPPED)
    run.process.send_signal(signal.SIGINT)
    run.until("the signal was handed on", lambda: _pending(trainer.pid))
    began = time.monotonic()
    assert run.end(signal.SIGINT) == 130
    assert time.monotonic() - began < 10
    assert run.left() == []


def _pending(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    pending = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending, 16) >> (signal.SIGINT - 1) & 1)


def test_what_a_killed_supervisor_left_is_ended_with_a_checkpoint_by_the_next_start(
    running: Callable[..., Running],
) -> None:
    first = running()
    first.trained()
    old = first.role("trainer")
    assert old is not None
    first.process.kill()
    first.process.wait()
    assert old.alive, "the training goes on without its supervisor"
    second = running()
    second.until("another trainer", lambda: (now := second.role("trainer")) is not None and now != old)
    second.trained()
    assert first.left() == []
    said = second.said.read_text()
    assert f"ended process {old.pid} (trainer), left by an earlier start that was killed" in said
    assert kinds(second).count("Interrupted") == 1
    assert kinds(second).count("Resumed") == 1
    assert second.end() == 75
    assert second.left() == []


def test_a_trainer_that_outlived_its_supervisor_leaves_nothing_running_when_it_is_done(
    running: Callable[..., Running],
) -> None:
    seldom = ("spec.checkpoint.everySteps", 250)
    run = running(changes=(("spec.training.steps", 2500), seldom, OFF))
    run.trained()
    run.process.kill()
    run.process.wait()
    run.until("the end of all", lambda: run.left() == [])
    assert kinds(run)[-1] == "Finished"


def job(tmp_path: Path, trainer: str, said: list[str], ranks: int = 1) -> Job:
    """A job whose trainers are a line of Python each."""
    return Job(
        folder=RunFolder(tmp_path / "runs" / "small"),
        command=(sys.executable, "-c", f"import os, signal, sys, time; {trainer}"),
        ranks=ranks,
        ranks_per_worker=ranks,
        grace_seconds=5.0,
        say=said.append,
        policy=RestartPolicy(most_attempts=3, first_seconds=0.01),
    )


def test_a_trainer_that_cannot_get_further_is_given_up_with_a_reason(tmp_path: Path) -> None:
    said: list[str] = []
    assert supervise(job(tmp_path, "os.kill(os.getpid(), 9)", said)) == 1
    assert [line for line in said if "it starts again" in line] == said[:2]
    assert "3 times in a row without a new checkpoint, last: killed by SIGKILL" in said[-1]
    assert not (tmp_path / "runs").exists(), "it left nothing, so nothing is left"


def test_a_lost_rank_ends_its_group_and_a_fresh_one_meets_at_another_port(tmp_path: Path) -> None:
    ports = tmp_path / "ports"
    trainer = (
        f"p = open({str(ports)!r}, 'a'); p.write(os.environ['MASTER_PORT'] + chr(10)); p.close(); "
        f"n = len(open({str(ports)!r}).readlines()); "
        "rank = os.environ['RANK']; "
        "os.kill(os.getpid(), 9) if rank == '1' and n <= 2 else time.sleep(0.5); "
        "sys.exit(76 if n <= 2 else 0)"
    )
    said: list[str] = []
    assert supervise(job(tmp_path, trainer, said, ranks=2)) == 0
    used = ports.read_text().split()
    assert len(used) == 4
    assert len(set(used)) == 2, "both ranks of a group meet at one port, each group at its own"
    assert "the trainer ended (killed by SIGKILL); it starts again in 0.01 s" in said


def test_ranks_that_do_not_notice_that_one_is_gone_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.local.ranks.PEER_SECONDS", 0.2)
    trainer = "sys.exit(1) if os.environ['RANK'] == '1' else time.sleep(600)"
    said: list[str] = []
    assert supervise(job(tmp_path, trainer, said, ranks=2)) == 1
    assert "rank 1 ended with 1" in said[0]


def test_the_first_rank_has_time_for_the_checkpoint_when_the_others_were_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.local.ranks.PEER_SECONDS", 0.1)
    written = tmp_path / "written"
    trainer = f"os.environ['RANK'] == '1' or (time.sleep(1.0), open({str(written)!r}, 'w')); sys.exit(75)"
    supervise(job(tmp_path, trainer, [], ranks=2))
    assert written.exists()


@pytest.mark.parametrize(("before", "code"), [(signal.SIG_DFL, 7), (signal.SIG_IGN, 0)])
def test_a_hang_up_stops_the_trainer_in_order_unless_it_is_ignored_as_under_nohup(
    tmp_path: Path, before: signal.Handlers, code: int
) -> None:
    trainer = (
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); "
        "os.kill(os.getppid(), signal.SIGHUP); time.sleep(1.0)"
    )
    restored = signal.signal(signal.SIGHUP, before)
    try:
        assert supervise(job(tmp_path, trainer, [])) == code
    finally:
        signal.signal(signal.SIGHUP, restored)


def test_without_a_bus_the_trainer_alone_is_started(
    running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_BUS", "nats://127.0.0.1:9")
    run = running("--no-bus", changes=(("spec.training.steps", 60),))
    assert run.process.wait(SECONDS) == 0
    assert not run.folder.bus_store.exists()
    assert kinds(run)[-1] == "Finished"


def test_a_run_with_a_bus_that_nobody_listens_on_is_trained_to_the_end(
    running: Callable[..., Running],
) -> None:
    run = running("--bus", "nats://127.0.0.1:9", changes=(("spec.training.steps", 60),))
    assert run.process.wait(SECONDS) == 0
    assert kinds(run)[-1] == "Finished"
    assert run.left() == []


def test_a_process_that_got_the_id_of_another_is_told_from_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        record = record_of("trainer", process.pid)
        assert record.alive
        assert not record.model_copy(update={"started": record.started + 1}).alive
        table = tmp_path / "processes.json"
        me = record_of("supervisor", os.getpid())
        written = ProcessTable(supervisor=me, children=(record,))
        write_table(table, written)
        assert read_table(table) == written
        process.kill()
    assert not record.alive
    assert start_time(process.pid) is None
    table.write_text(json.dumps({"supervisor": 3}))
    assert read_table(table) is None
