"""`esper forge serve`: looks, decides, acts, and keeps workers, until nobody needs the library any more."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nats.errors

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.contracts import BusError, EsperError, Role
from esper_runtime.forge import LOOK_SECONDS, Lease, News, Planner
from esper_runtime.local.children import esper_command
from esper_runtime.local.cores import forge_cores
from esper_runtime.local.forge.lease import lease_of_process
from esper_runtime.local.forge.targets import local_targets
from esper_runtime.local.forge.workers import WorkerPool
from esper_runtime.local.home import HomeBus, forge_table
from esper_runtime.local.parent import PARENT, Parent
from esper_runtime.local.processes import ProcessTable, end_in_order, read_table, record_of, write_table
from esper_runtime.oona import BUS_VARIABLE, BusAddress, BusRole, connect, disconnect
from esper_runtime.planning import WORK, WORKERS, Depth, workers_wanted

BUS_SECONDS = 0.5
"""Between two looks at whether the home bus lives."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a forge works.

    Attributes:
        home: the machine's folder.
        files: for each role, the file with its address on the bus of the library.
        bus: the home bus, where the library is on it; kept running from here.
    """

    home: Path
    files: Mapping[BusRole, Path]
    bus: HomeBus | None

    @property
    def table(self) -> Path:
        """The file that says which forge plans and which workers it has."""
        return forge_table(self.home)

    @property
    def logs(self) -> Path:
        """Folder of the workers' logs."""
        return self.home / "logs"


def serve_forge(place: Place, workers: int, say: Callable[[str], None]) -> None:
    """Plan for the library and keep workers until SIGTERM, or until nobody needs the bus any more.

    Where another process plans already, this one waits to take its place.

    Args:
        place: where.
        workers: how many may work at a time; 0: none.
        say: prints a line.

    Raises:
        EsperError: the bus or a key cannot be used.
    """
    asyncio.run(_Forge(place, workers, say).run())


class _Forge:
    def __init__(self, place: Place, workers: int, say: Callable[[str], None]) -> None:
        self._place, self._limit, self._say = place, workers, say
        self._news = News()
        self._ending = False
        self._parent = Parent.from_environment()
        self._idle_since: dict[Role, float] = {}
        self._targets: asyncio.Task[tuple[str, ...]] | None = None
        cores = forge_cores(workers)
        if workers:  # planning may take a moment, and a training has the other cores
            os.sched_setaffinity(0, cores)
        self._pool = WorkerPool(
            lambda role: [*esper_command(), "worker", role.value], self._environment, cores, place.logs, say
        )

    async def run(self) -> None:
        with self._signals():
            keeping = asyncio.create_task(self._keep_bus())
            try:
                while not self._over():
                    try:
                        await self._connected()
                    except BusError as error:
                        _log.info("the library is away: %s", error)
                        await self._news.wait(BUS_SECONDS)
            finally:
                keeping.cancel()
                if self._targets is not None:
                    self._targets.cancel()
                self._pool.end()
                self._forget_table()

    def _over(self) -> bool:
        gone = self._parent is not None and not self._parent.alive
        bus = self._place.bus
        return self._ending or gone or (bus is not None and not bus.needed)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def end() -> None:
            self._ending = True
            self._news.ring()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _keep_bus(self) -> None:
        """Start the home bus again when it has died; our connections find it where it was."""
        bus = self._place.bus
        while bus is not None:
            await asyncio.sleep(BUS_SECONDS)
            if not bus.alive and not self._over():
                try:
                    await asyncio.to_thread(bus.revive)
                except EsperError as error:
                    self._say(f"the bus of the library cannot be started again: {error}")

    async def _connected(self) -> None:
        """Work over one connection, for as long as it holds."""
        address = BusAddress.load(self._place.files[BusRole.PLANNER])
        client = await connect(address, "forge", patience=5.0)
        try:
            keyring = KeyRing(self._place.home)
            for role in Role:
                keyring.ensure(role)
            planner = Planner(
                client, keyring.trust, lambda ruling: keyring.sign(Role.PLANNER, ruling), self._news
            )
            await planner.begin()
            await self._hold(planner, lease_of_process(client))
        except (OSError, nats.errors.Error) as error:
            raise BusError(f"{address.url}: {error}") from error
        finally:
            await disconnect(client)

    async def _hold(self, planner: Planner, lease: Lease) -> None:
        """Wait for the lease, then plan while it is held."""
        try:
            while not self._over():
                if await lease.hold():
                    await self._plan(planner, lease)
                else:
                    self._pool.look(dict.fromkeys(WORKERS, 0))
                    await self._news.wait(LOOK_SECONDS)
        finally:
            await lease.release()

    async def _plan(self, planner: Planner, lease: Lease) -> None:
        self._end_orphans()
        await planner.enter_catalogue()
        while not self._over() and await lease.hold():
            plan = await planner.turn()
            if self._limit:
                await self._keep_workers(planner)
            await self._news.wait(min(LOOK_SECONDS, plan.wakes_in or LOOK_SECONDS))

    async def _keep_workers(self, planner: Planner) -> None:
        waiting = await planner.observer.items()
        if self._targets is None:
            if not waiting:
                return
            self._targets = asyncio.create_task(local_targets())
        here = self._targets.result() if self._targets.done() else None
        depths, now = {}, time.monotonic()
        for role, work in WORK.items():
            items = sum(
                number
                for (kind, target), number in waiting.items()
                if kind == work and (here is None or target in here)
            )
            if items:
                self._idle_since[role] = now
            depths[role] = Depth(items, now - self._idle_since.setdefault(role, now))
        if self._pool.look(workers_wanted(depths, self._pool.running, self._limit)):
            me = record_of("forge", os.getpid())
            write_table(self._place.table, ProcessTable(supervisor=me, children=self._pool.records))

    def _environment(self, role: Role) -> Mapping[str, str]:
        return {
            HOME_VARIABLE: str(self._place.home),
            BUS_VARIABLE: str(self._place.files[BusRole(role.value)]),
            PARENT: Parent.me().text,
        }

    def _end_orphans(self) -> None:
        """End the workers of a forge that was killed."""
        table = read_table(self._place.table)
        if table is not None and not table.supervisor.alive:
            end_in_order(table.children, 5.0)

    def _forget_table(self) -> None:
        table = read_table(self._place.table)
        if table is not None and table.supervisor == record_of("forge", os.getpid()):
            self._place.table.unlink(missing_ok=True)


def place_of(files: Mapping[BusRole, Path], home: Path, bus: HomeBus | None) -> Place:
    """A place with the folder for logs made."""
    place = Place(home, files, bus)
    place.logs.mkdir(mode=0o700, exist_ok=True)
    return place


def roles(one: Path) -> dict[BusRole, Path]:
    """The same address for every role: a bus that somebody else runs has its own users."""
    return dict.fromkeys(BusRole, one)
