"""The machine's home bus: shared, started on demand, ended by the last user, whoever is killed meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper_runtime.contracts import ArtifactError, BusError
from esper_runtime.local.home import FORGE, HomeBus
from esper_runtime.local.processes import ProcessRecord, record_of
from esper_runtime.oona import BusRole
from esper_runtime.oona.greeting import greet

USER = """
import sys, time
from pathlib import Path
from esper_runtime.local.home import HomeBus
bus = HomeBus(sys.argv[2], Path(sys.argv[1]))
with bus:
    print(bus.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class User:
    """Another process that uses the bus until it is told to go."""

    def __init__(self, home: Path, part: str = "run") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home), part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.server = record_of("bus", int(self.process.stdout.readline()))

    def go(self) -> None:
        self.process.communicate("\n", timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def user(home: Path) -> Iterator[Callable[..., User]]:
    begun: list[User] = []

    def begin(part: str = "run") -> User:
        begun.append(User(home, part))
        return begun[-1]

    yield begin
    for each in begun:
        each.kill()
        if each.server.alive:
            os.kill(each.server.pid, signal.SIGKILL)


def gone(record: ProcessRecord) -> bool:
    deadline = time.monotonic() + 10
    while record.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    return not record.alive


def test_it_starts_on_demand_with_an_address_for_each_role_and_the_last_user_ends_it(home: Path) -> None:
    with HomeBus("run", home) as bus:
        server = record_of("bus", bus.pid or 0)
        assert server.alive
        for role in BusRole:
            greeting = greet(bus.address_of(role))
            assert greeting is not None
            assert greeting.accepted
            assert bus.file_of(role).stat().st_mode & 0o077 == 0
    assert gone(server)
    assert home.stat().st_mode & 0o077 == 0


def test_two_processes_share_it(user: Callable[..., User]) -> None:
    first, second = user(), user()
    assert first.server == second.server
    first.go()
    assert second.server.alive
    second.go()
    assert gone(second.server)


def test_a_user_that_was_killed_does_not_keep_it(user: Callable[..., User]) -> None:
    first, second = user(), user()
    first.kill()
    assert second.server.alive
    second.go()
    assert gone(second.server)


def test_a_bus_whose_only_user_was_killed_is_taken_over_by_the_next(
    home: Path, user: Callable[..., User]
) -> None:
    first = user()
    first.kill()
    assert first.server.alive
    with HomeBus("run", home) as bus:
        assert bus.pid == first.server.pid
    assert gone(first.server)


def test_a_bus_that_was_killed_comes_back_where_it_was(home: Path, user: Callable[..., User]) -> None:
    other = user()
    with HomeBus("run", home) as bus:
        before = bus.address_of(BusRole.READER)
        assert not bus.revive()
        os.kill(other.server.pid, signal.SIGKILL)
        assert gone(other.server)
        assert bus.revive()
        assert bus.address_of(BusRole.READER) == before
        assert not bus.revive()
        other.go()
        assert record_of("bus", bus.pid or 0).alive


def test_the_forge_alone_is_no_reason_to_stay(home: Path, user: Callable[..., User]) -> None:
    with HomeBus(FORGE, home) as bus:
        assert not bus.needed
        other = user()
        assert bus.needed
        other.kill()
        assert not bus.needed


def test_leaving_twice_is_as_good_as_once(home: Path, user: Callable[..., User]) -> None:
    other = user()
    bus = HomeBus("run", home).join()
    bus.leave()
    bus.leave()
    assert other.server.alive


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises((ArtifactError, BusError), match=str(tmp_path)):
        HomeBus("run", tmp_path / "home")


def test_a_home_that_is_a_file_or_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file"):
        HomeBus("run", tmp_path / "file")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ArtifactError, match="chmod go-w"):
        HomeBus("run", tmp_path / "open")


FULL = """
import resource, sys
from pathlib import Path
from esper_runtime.contracts import EsperError
from esper_runtime.local.home import HomeBus
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
bus = HomeBus("run", Path(sys.argv[1]))
try:
    bus.join()
except EsperError as error:
    print(error)
"""


def test_a_place_that_takes_no_more_bytes_is_named_and_works_again_later(home: Path) -> None:
    said = subprocess.run([sys.executable, "-c", FULL, str(home)], capture_output=True, text=True, check=True)
    assert str(home) in said.stdout
    assert "File too large" in said.stdout
    assert not list((home / "bus-users").iterdir())
    with HomeBus("run", home) as bus:
        assert bus.pid


def test_the_last_one_ends_a_bus_that_another_one_has_started_again(home: Path) -> None:
    last, other = HomeBus("run", home).join(), HomeBus("command", home).join()
    os.kill(last.pid or 0, signal.SIGKILL)
    while other.alive:
        time.sleep(0.01)
    assert other.revive()
    revived = record_of("bus", other.pid or 0)
    other.leave()
    assert revived.alive
    last.leave()
    assert not revived.alive
