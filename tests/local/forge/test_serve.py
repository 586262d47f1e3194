"""`esper forge serve` as a process: it outlives what dies around it, and goes when nobody needs it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nats.errors
import pytest

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import BusError, KernelWish
from esper_runtime.local.home import HomeBus
from esper_runtime.oona import AccessRefusedError, BusAddress, BusRole, connect, disconnect
from esper_runtime.urza import Library
from tests.urza.sayings import kernel_spec

SECONDS = 40.0


class Forges:
    """Processes that serve one home's library."""

    def __init__(self, home: Path, log: Path) -> None:
        self.home, self.log = home, log
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "esper_runtime.cli", "forge", "serve", "--workers", "0", *options]
        with self.log.open("ab") as log:
            environment = {**os.environ, HOME_VARIABLE: str(self.home)}
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return self.processes[-1]

    def until(self, what: str, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"never: {what}\n{self.log.read_text()}"
            time.sleep(0.05)


@pytest.fixture
def forges(home: Path, tmp_path: Path) -> Iterator[Forges]:
    forges = Forges(home, tmp_path / "said.txt")
    yield forges
    for process in forges.processes:
        process.terminate()
        process.wait(SECONDS)
    HomeBus("test", home).join().leave()  # ends a bus whose users were all killed


@pytest.fixture
def run(home: Path) -> Iterator[HomeBus]:
    """The home bus, as a run uses it."""
    with HomeBus("run", home) as bus:
        yield bus


def wish(address: BusAddress, home: Path, number: int) -> None:
    async def work() -> None:
        async with await Library.connect(address, KeyRing(home).trust) as library:
            await library.wish(KernelWish(spec=kernel_spec(flags=(str(number),))))

    asyncio.run(work())


def wished(address: BusAddress, home: Path, number: int) -> bool:
    """Whether it is let in: a bus that has just started refuses whoever comes while it takes its users up."""
    try:
        wish(address, home, number)
    except AccessRefusedError:
        return False
    return True


def queued(bus: BusAddress) -> int | None:
    async def work() -> int | None:
        try:
            client = await connect(bus, "test")
        except BusError:
            return None
        try:
            return int((await client.jetstream().stream_info("FORGE")).state.messages)
        except nats.errors.Error:  # there is no stream yet
            return None
        finally:
            await disconnect(client)

    return asyncio.run(work())


def catalogue_is_there(address: BusAddress, home: Path) -> bool:
    async def work() -> bool:
        async with await Library.connect(address, KeyRing(home).trust) as library:
            return len(await library.blueprints()) == len(catalogue())

    try:
        return asyncio.run(work())
    except BusError:
        return False


def test_it_enters_the_catalogue_and_turns_wishes_into_work(forges: Forges, run: HomeBus, home: Path) -> None:
    forges.begin()
    planner = run.address_of(BusRole.PLANNER)
    forges.until("the catalogue", lambda: catalogue_is_there(planner, home))
    wish(run.address_of(BusRole.TRAINING), home, 1)
    forges.until("work", lambda: queued(planner) == 1)


def test_another_one_takes_over_when_it_is_killed_and_nothing_is_done_twice(
    forges: Forges, run: HomeBus, home: Path
) -> None:
    first = forges.begin()
    planner = run.address_of(BusRole.PLANNER)
    forges.until("the catalogue", lambda: catalogue_is_there(planner, home))
    wish(run.address_of(BusRole.TRAINING), home, 1)
    forges.until("work", lambda: queued(planner) == 1)
    forges.begin()
    first.kill()
    wish(run.address_of(BusRole.TRAINING), home, 2)
    forges.until("work by the second", lambda: queued(planner) == 2)


def test_it_brings_back_a_bus_that_was_killed(forges: Forges, run: HomeBus, home: Path) -> None:
    forges.begin()
    planner = run.address_of(BusRole.PLANNER)
    forges.until("the catalogue", lambda: catalogue_is_there(planner, home))
    wish(run.address_of(BusRole.TRAINING), home, 1)
    forges.until("work", lambda: queued(planner) == 1)
    os.kill(run.pid or 0, signal.SIGKILL)
    forges.until("the bus", lambda: not run.alive)
    forges.until("another bus", lambda: queued(planner) is not None)
    forges.until("a wish", lambda: wished(run.address_of(BusRole.TRAINING), home, 2))
    forges.until("more work", lambda: queued(planner) == 2)


def test_it_ends_when_nobody_needs_the_library_and_takes_the_bus_along(forges: Forges, home: Path) -> None:
    bus = HomeBus("run", home).join()
    forge = forges.begin()
    planner = bus.address_of(BusRole.PLANNER)
    forges.until("the catalogue", lambda: catalogue_is_there(planner, home))
    bus.leave()
    assert forge.wait(SECONDS) == 0
    forges.until("the end of the bus", lambda: not bus.alive)


def test_a_signal_ends_it_in_order(forges: Forges, run: HomeBus, home: Path) -> None:
    forge = forges.begin()
    planner = run.address_of(BusRole.PLANNER)
    forges.until("the catalogue", lambda: catalogue_is_there(planner, home))
    forge.send_signal(signal.SIGTERM)
    assert forge.wait(SECONDS) == 0
    assert run.alive
