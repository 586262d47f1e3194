"""Workers as processes: as many as wanted, modest, replaced when they die."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper_runtime.contracts import Role
from esper_runtime.local.cores import forge_cores
from esper_runtime.local.forge import WorkerPool, default_workers
from esper_runtime.local.parent import PARENT, Parent
from esper_runtime.local.processes import start_time
from esper_runtime.planning import RestartPolicy

T, U = Role.TEZZERET, Role.URABRASK
QUICK = RestartPolicy(first_seconds=0.05, longest_seconds=0.1)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pool(tmp_path: Path, said: list[str]) -> Iterator[WorkerPool]:
    pool = WorkerPool(
        lambda role: ["sh", "-c", 'echo "$ROLE $OMP_NUM_THREADS"; exec sleep 600'],
        lambda role: {"ROLE": role.value},
        forge_cores(1),
        tmp_path / "logs",
        said.append,
        QUICK,
    )
    yield pool
    pool.end()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_there_are_as_many_as_wanted_and_they_stand_back(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.look({T: 2, U: 1})
    assert pool.running == {T: 2, U: 1, Role.KARN: 0}
    for record in pool.records:
        assert os.getpriority(os.PRIO_PROCESS, record.pid) >= 10
        cores = os.sched_getaffinity(record.pid)
        assert cores == forge_cores(1)
        assert len(os.sched_getaffinity(0)) == 1 or cores < os.sched_getaffinity(0)
    until(lambda: (tmp_path / "logs" / "urabrask.log").read_text() == "urabrask 1\n")
    assert not pool.look({T: 2, U: 1})
    until(lambda: not pool.look({T: 0, U: 1}) and len(pool.records) == 1)
    assert [record.role for record in pool.records] == ["urabrask"]


def test_one_that_was_killed_is_replaced(pool: WorkerPool, said: list[str]) -> None:
    pool.look({T: 1})
    [first] = pool.records
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: pool.look({T: 1}) and pool.records and pool.records[0] != first)
    assert "killed by SIGKILL" in said[0]


def test_the_end_leaves_nobody(pool: WorkerPool) -> None:
    pool.look({T: 2, U: 2})
    records = pool.records
    pool.end()
    assert len(records) == 4
    assert not any(record.alive for record in records)


def test_the_default_leaves_a_core_to_the_training() -> None:
    cores = len(os.sched_getaffinity(0))
    assert 1 <= default_workers() <= max(1, cores - 1)
    assert len(forge_cores(64)) == max(1, cores - 1)


def test_a_parent_is_known_by_its_start_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, Parent.me().text)
    parent = Parent.from_environment()
    assert parent is not None
    assert parent.alive
    monkeypatch.setenv(PARENT, f"{os.getpid()}-{(start_time(os.getpid()) or 0) + 1}")
    other = Parent.from_environment()
    assert other is not None
    assert not other.alive
    monkeypatch.setenv(PARENT, "nonsense")
    assert Parent.from_environment() is None
