"""The release's library: planned for, filled with what runs wish for, and asked by the rest of the operator.

The bus may be away, and may come back empty; nothing here ends because of it, and nothing is deleted.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import nats.errors
from nats.aio.client import Client

from esper_runtime.artifact import Trust
from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    BusError,
    EsperError,
    FieldReport,
    KernelRecord,
    KernelSpec,
    KernelWish,
    Ruling,
    Signed,
    Target,
    Work,
)
from esper_runtime.forge import LOOK_SECONDS, Lease, News, Planner
from esper_runtime.oona import BusKeeper
from esper_runtime.planning import ForgeState
from esper_runtime.urza import Carrier, Fault, Library

AGAIN = 1.0
"""Seconds before a bus that does not answer is asked again."""
CARRY_SECONDS = 1.0
"""Between two looks at what the runs of a namespace say for the library."""
HOST = "kubernetes"
"""Where a holder of the planner's lease is that holds the release's Lease as well."""

_log = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody is told."""


class ForgeOffice:
    """One planner for the release's library, and what the rest of the operator asks of the library.

    What is asked is answered at once from what was seen last; what is said to the library raises `BusError`
    while it is away.

    Args:
        keeper: the operator's hand on the bus.
        trust: whose words count.
        sign: signs the planner's rulings.
        identity: of this process.
        namespaces: those that have runs with credentials.
        restore: makes on the bus what runs must find there; called whenever the bus comes back.
    """

    def __init__(
        self,
        keeper: BusKeeper,
        trust: Trust,
        sign: Callable[[Ruling], Signed],
        identity: str,
        namespaces: Callable[[], Collection[str]],
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        self.changed: Callable[[], None] = _nothing
        """Called after something that can be asked here has become another."""
        self.ignored_of_runs: Counter[str] = Counter()
        """Wishes and reports of runs that were passed over, by reason."""
        self._keeper, self._trust, self._sign, self._identity = keeper, trust, sign, identity
        self._namespaces, self._restore = namespaces, restore
        self._news = News()
        self._planner: Planner | None = None
        self._state = ForgeState(now=0.0)
        self._depths: Mapping[tuple[Work, str], int] | None = None
        self._incarnation: str | None = None
        self._ignored_before: Counter[Fault] = Counter()
        self._away: set[str] = set()

    # What the others ask

    @property
    def ready(self) -> bool:
        """Whether the library is there, and what is answered is what it holds."""
        return self._planner is not None and self._planner.client.is_connected and self._depths is not None

    @property
    def incarnation(self) -> str | None:
        """That of the library as last seen: another one than before means that its storage was lost."""
        return self._incarnation

    def blueprints(self) -> Mapping[str, BlueprintEntry]:
        """All blueprints as last seen, by id; archived ones among them."""
        return self._state.blueprints

    def records(self) -> Mapping[str, KernelRecord]:
        """All kernels as last seen, by id."""
        return self._state.records

    def wishes(self) -> Mapping[str, KernelWish]:
        """What was wished for as last seen, by kernel."""
        return self._state.wishes

    def reports(self) -> Sequence[FieldReport]:
        """What trainings have reported, as last seen."""
        return self._state.reports

    def depths(self) -> Mapping[tuple[Work, str], int] | None:
        """Items that wait or are worked on, by work and name of the target; None where that is not known."""
        return self._depths if self.ready else None

    def refused_proposals(self) -> Mapping[str, int]:
        """Proposals of blueprints that were not entered, by reason, of those that the bus still holds."""
        return self._planner.refused if self._planner is not None else {}

    def targets(self) -> Mapping[str, Target]:
        """What kernels are made or wished for, by name."""
        known = [record.spec.target for record in self._state.records.values()]
        known += [wish.spec.target for wish in self._state.wishes.values()]
        return {target.name: target for target in known}

    @property
    def ignored(self) -> Counter[Fault]:
        """Words in the library that do not count, by reason."""
        now = self._planner.library.ignored if self._planner is not None else Counter[Fault]()
        return self._ignored_before + now

    # What the others say

    async def enter(self, graph: Blueprint, origin: str, *, reinstate: bool = False) -> str:
        """Enter a blueprint after the static check; one that is known stays as it is.

        Args:
            graph: the blueprint.
            origin: where it comes from: ``namespace/name`` of a resource.
            reinstate: take it out of the archive, where it is there.

        Returns:
            Its id.

        Raises:
            BlueprintError: the check refuses it.
            BusError: the library is away.
        """
        identity = await self._library().enter(graph, origin, reinstate=reinstate)
        self._news.ring()
        return identity

    async def archive(self, blueprint: str, reason: str) -> None:
        """Offer a blueprint and its kernels no more.

        Raises:
            InputError: there is no such blueprint, or the reason has more than 500 characters.
            BusError: the library is away.
        """
        await self._library().archive(blueprint, reason)
        self._news.ring()

    async def wish(self, spec: KernelSpec, *, urgent: bool = False) -> bool:
        """Have a kernel made and tested.

        Returns:
            False where that was wished for before.

        Raises:
            BusError: the library is away.
        """
        return await self._library().wish(KernelWish(spec=spec, urgent=urgent))

    def _library(self) -> Library:
        if self._planner is None:
            raise BusError("the library cannot be reached; the bus is away, or was not there yet")
        return self._planner.library

    # The task

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self._prepare()
                await self._serve()
            except (EsperError, nats.errors.Error, OSError) as error:
                _log.warning("the library is away: %s", error)
            await asyncio.sleep(AGAIN)

    async def _prepare(self) -> None:
        made = await self._keeper.prepare_core()
        _log.info("the bus is there; streams that were made: %s", ", ".join(made) or "none")

    async def _serve(self) -> None:
        """Plan over one connection for one incarnation of the library."""
        client = await self._keeper.core()
        planner = Planner(client, self._trust, self._sign, self._news, replicas=self._keeper.replicas)
        lease = Lease(client, HOST, self._identity, lambda holder: holder.host == HOST)
        tasks: list[asyncio.Task[None]] = []
        try:
            await planner.begin()
            mine = planner.library.incarnation
            self._begin(planner)
            tasks += [asyncio.create_task(self._restore_runs()), asyncio.create_task(self._carry(planner))]
            entered, connections = False, client.stats["reconnects"]
            while not client.is_closed and planner.library.incarnation == mine:
                if client.stats["reconnects"] != connections:
                    connections = client.stats["reconnects"]
                    await self._prepare()
                    tasks.append(asyncio.create_task(self._restore_runs()))
                try:
                    wakes_in: float | None = None
                    if not await lease.hold():
                        await planner.look()
                    else:
                        if not entered:
                            await planner.enter_catalogue()
                            entered = True
                        wakes_in = (await planner.turn()).wakes_in
                    depths = await planner.observer.items()
                    if planner.library.incarnation == mine:  # else what was seen is of two libraries
                        self._learn(planner.state, depths, mine)
                except BusError as error:
                    self._lose(error)
                await self._news.wait(min(LOOK_SECONDS, wakes_in or LOOK_SECONDS))
        finally:
            for task in tasks:
                task.cancel()
            self._end(planner)
            await planner.end()

    def _begin(self, planner: Planner) -> None:
        incarnation = planner.library.incarnation
        if self._incarnation not in (None, incarnation):
            _log.warning("the bus had lost its storage: the library is a new one (%s)", incarnation)
        self._planner = planner

    def _end(self, planner: Planner) -> None:
        self._ignored_before += planner.library.ignored
        self._planner, self._depths = None, None
        self.changed()

    def _learn(
        self, state: ForgeState, depths: Mapping[tuple[Work, str], int], incarnation: str | None
    ) -> None:
        before, was = self._state, (self._depths, self._incarnation)
        self._state, self._depths, self._incarnation = state, depths, incarnation
        same = was == (depths, incarnation) and before.blueprints == state.blueprints
        if not same or before.records != state.records or before.wishes != state.wishes:
            self.changed()

    def _lose(self, error: BusError) -> None:
        """The bus does not answer: what was seen last stays, and how deep the queues are is not known."""
        if self._depths is not None:
            _log.warning("the library is away: %s", error)
            self._depths = None
            self.changed()

    async def _restore_runs(self) -> None:
        while True:
            try:
                await self._restore()
                return
            except (BusError, nats.errors.Error, OSError) as error:
                _log.warning("not every run is let in again yet: %s", error)
            await asyncio.sleep(AGAIN)

    async def _carry(self, planner: Planner) -> None:
        """Carry what runs say for the library, namespace by namespace."""
        carriers: dict[str, tuple[Client, Carrier]] = {}
        while True:
            await asyncio.gather(*(self._carry_of(each, carriers, planner) for each in self._namespaces()))
            await asyncio.sleep(CARRY_SECONDS)

    async def _carry_of(
        self, namespace: str, carriers: dict[str, tuple[Client, Carrier]], planner: Planner
    ) -> None:
        try:
            if namespace not in carriers or carriers[namespace][0].is_closed:
                client = await self._keeper.namespace(namespace)
                carriers[namespace] = client, Carrier(client, planner.library, self.ignored_of_runs)
            await carriers[namespace][1].carry()
            self._away.discard(namespace)
        except (BusError, nats.errors.Error, OSError) as error:
            if namespace not in self._away:
                self._away.add(namespace)
                _log.warning("namespace %s: what its runs say for the library waits: %s", namespace, error)
