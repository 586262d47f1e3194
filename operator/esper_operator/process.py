"""One life of the operator: takes the Lease, lists, and works on what events ask for until it is to end."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from esper_operator.bus import BusCredentials, first_start, signing_key, trust_list
from esper_operator.credentials import Credentials, NoCredentials
from esper_operator.feed import Feed
from esper_operator.forge import KINDS, Forge, concerns
from esper_operator.forge_metrics import ForgeMetrics
from esper_operator.health import STUCK_SECONDS, Figures, HealthServer, PassMetrics
from esper_operator.kube import DEPLOYMENT, RUN, Kind, KubeApi, KubeError, Listed, Object, configured
from esper_operator.lease import DEADLINE, Leadership
from esper_operator.library import ForgeOffice
from esper_operator.library_metrics import LibraryMetrics
from esper_operator.live import Live
from esper_operator.names import HEARD, Key, RunKey, short_uid
from esper_operator.pump import WATCHED, pump
from esper_operator.queue import KeyQueue
from esper_operator.runs import Runs
from esper_operator.settings import Settings
from esper_operator.store import CHILD_KINDS, Store
from esper_operator.sweep import BusSweep, due
from esper_operator.writer import StatusWriter
from esper_runtime.artifact import Trust, sign_with
from esper_runtime.contracts import BusError, MorphogeneticRun, Role
from esper_runtime.oona import BusKeeper
from esper_runtime.planning import Verdict, served_runs

WORKERS = 16
"""Resources that are worked on at a time: most of a pass is waiting for the API server."""
RELIST_SECONDS = 300.0
"""Between two lists of everything, for events that were lost."""
LEASE = "esper-operator"
RUN_KINDS = (RUN, *CHILD_KINDS)

_log = logging.getLogger(__name__)


class Operator:
    """The parts, put together.

    Args:
        settings: of the release.
        kube: the API.
        credentials: of the pods.
        owner: an owner reference for what is made in the release's namespace.
    """

    def __init__(
        self, settings: Settings, kube: KubeApi, credentials: Credentials, owner: Object | None = None
    ) -> None:
        self.settings, self.kube = settings, kube
        self.store = Store()
        self.queue: KeyQueue[Key] = KeyQueue()
        self.writer = StatusWriter(kube, settings.status_writes, self._current, self._learn)
        self.runs = Runs(kube, self.store, self.writer, credentials, settings, served=self._served)
        self.passes = PassMetrics()
        self.feed: Feed | None = None
        self.bus: BusSweep | None = None
        self.office: ForgeOffice | None = None
        secrets: Mapping[str, str] = {}
        if isinstance(credentials, BusCredentials):
            secrets = credentials.worker_secrets
            self.feed = Feed(credentials.keeper.namespace, self._live, self.queue.add)
            self.bus = BusSweep(credentials.keeper, lambda: due(self.store), settings.watch)
            self.office = self._new_office(credentials.keeper, self.bus)
        self.forge = Forge(
            kube, self.writer, self.office, settings, owner, secrets, self.queue.add, self._blueprints_in_use
        )
        self._served_before = self._served(None)
        self.listed = False
        """Whether everything was listed once."""

    def hear(self, kind: Kind, what: str | None, body: Object) -> None:
        """Take in an event: what it concerns is looked at."""
        if kind in KINDS:
            self.forge.hear(kind, what, body)
        if not self._carries_out(body["metadata"]["namespace"]):
            return
        if kind not in RUN_KINDS:
            return
        if what == "DELETED":
            head = body["metadata"]
            key = self.store.remove(kind, head["namespace"], head["name"], head["uid"])
        else:
            key = self.store.put(kind, body)
        if key is not None:
            self.queue.add(key)

    async def relist(self) -> None:
        """List everything, and look at all of it again.

        Raises:
            KubeError: a list could not be had.
        """
        concerned: set[RunKey] = set()
        for kind, labels in WATCHED.items():
            for namespace in self.namespaces() or (None,):
                concerned |= await self._list(kind, namespace, labels)
        self.listed = True
        for key in concerned | set(self.store.runs()):
            self.queue.add(key)
        self.forge.look_at_all()

    async def _list(self, kind: Kind, namespace: str | None, labels: str) -> set[RunKey]:
        """Take in all objects of a kind; returns the runs that are concerned."""
        of_runs = kind in RUN_KINDS and (namespace is None or self._carries_out(namespace))
        concerned: set[RunKey | None] = set()
        there: set[str] = set()
        of_forge: list[Object] = []
        version = ""
        async for page in self.kube.pages(kind, namespace, labels):
            version = page.version
            there.update(body["metadata"]["uid"] for body in page.items)
            if kind in KINDS:
                of_forge += [body for body in page.items if concerns(kind, body)]
            if of_runs:
                concerned.update(self.store.put(kind, body) for body in page.items)
        if kind in KINDS:
            self.forge.replace(kind, Listed(of_forge, version), namespace)
        if of_runs:
            concerned |= self.store.remove_others(kind, there, version, namespace)
        return {key for key in concerned if key is not None}

    def namespaces(self) -> tuple[str, ...]:
        """Namespaces that are listed and watched: those with runs, and the release's own; none: all."""
        watch = self.settings.watch
        return tuple(dict.fromkeys((*watch, self.settings.namespace))) if watch else ()

    async def work(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run(self._pass, WORKERS))
            group.create_task(self.writer.run())
            group.create_task(self._relist_for_ever())

    def ailments(self) -> list[str]:
        """What is wrong with this process, in words."""
        oldest = self.queue.oldest()
        return [f"a run waits for {oldest:.0f} s"] if oldest > STUCK_SECONDS else []

    def phases(self) -> dict[str, int]:
        """Runs by phase."""
        counted: Counter[str] = Counter()
        for key in self.store.runs():
            run = self.store.run(key) or {}
            counted[str((run.get("status") or {}).get("phase") or "Pending")] += 1
        return dict(counted)

    async def _pass(self, key: Key) -> float | None:
        began = time.perf_counter()
        if not isinstance(key, RunKey):
            try:
                return await self.forge.reconcile(key)
            finally:
                self.passes.seconds.labels(key.label).observe(time.perf_counter() - began)
                self._tell_runs()
        try:
            return await self.runs.reconcile(key)
        finally:
            self.passes.seconds.labels(key.label).observe(time.perf_counter() - began)
            run = self.store.run(key)
            if self.feed is not None and run is not None and (run.get("status") or {}).get("attempt"):
                self.feed.hear(key.namespace)

    def _tell_runs(self) -> None:
        """Have the runs say it where pools serve other targets than before."""
        served = self._served(None)
        if served != self._served_before:
            self._served_before = served
            for run in self.store.runs():
                self.queue.add(run)

    def _served(self, manifest: MorphogeneticRun | None) -> Verdict | None:
        """Whether the pools make what a run wants; None for a release without a bus."""
        invents = manifest is not None and manifest.spec.innovation.enabled
        return None if self.office is None else served_runs(self.forge.places(), invents=invents)

    def _current(self, key: Key) -> Object | None:
        return self.store.run(key) if isinstance(key, RunKey) else self.forge.current(key)

    def _learn(self, key: Key, body: Object) -> None:
        if not isinstance(key, RunKey):
            self.forge.learn(key, body)
        elif self.store.put(RUN, body) is not None:
            self.queue.add(key)

    def _carries_out(self, namespace: str) -> bool:
        return not self.settings.watch or namespace in self.settings.watch

    def _blueprints_in_use(self) -> frozenset[str]:
        """Blueprints that runs which go on have planted lately, by what their statuses say."""
        found = set()
        for key in self.store.runs():
            status = (self.store.run(key) or {}).get("status") or {}
            if status.get("phase") not in ("Succeeded", "Failed"):
                found |= {
                    str(made["blueprint"])
                    for made in status.get("adaptations") or ()
                    if made.get("blueprint")
                }
        return frozenset(found)

    def _live(self, key: RunKey, uid: str) -> Live | None:
        run = self.store.run(key)
        if run is None or short_uid(run["metadata"]["uid"]) != uid:
            return None
        return self.runs.live(key)

    async def _relist_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RELIST_SECONDS)
            try:
                await self.relist()
                if self.bus is not None:
                    await self.bus.sweep()
            except (KubeError, BusError) as error:
                _log.warning("not everything could be listed or swept: %s", error)

    def _namespaces(self) -> set[str]:
        """Those in which a run was ever started."""
        return {
            key.namespace
            for key in self.store.runs()
            if ((self.store.run(key) or {}).get("status") or {}).get("attempt")
        }

    def _new_office(self, keeper: BusKeeper, bus: BusSweep) -> ForgeOffice:
        planner_key = signing_key(keeper.keys, Role.PLANNER)
        return ForgeOffice(
            keeper,
            Trust(trust_list(keeper.keys)),
            lambda ruling: sign_with(planner_key, ruling),
            self.settings.identity,
            self._namespaces,
            bus.restore,
        )


async def operate(settings: Settings) -> None:
    """Be the operator until cancelled.

    Raises:
        InputError: there is no way to the API server, or the bus's keys are none.
        LeaseLostError: another process may take over; this one must end at once.
        KubeError: the API server refuses what the operator cannot do without.
    """
    kube = KubeApi(await configured())
    lease = Leadership(kube, settings.namespace, LEASE, settings.identity)
    passes = PassMetrics()
    parts: list[Operator] = []
    ready = asyncio.Event()

    def ailments() -> list[str]:
        found = [line for part in parts for line in part.ailments()]
        if parts and lease.renewed_before() > 2 * DEADLINE:
            found.append(f"the lease was not renewed for {lease.renewed_before():.0f} s")
        return found

    server = HealthServer(settings.health_port, passes.registry, ailments, ready.is_set)
    await server.start()
    try:
        await anext(kube.pages(RUN, settings.watch[0] if settings.watch else settings.namespace))
        ready.set()
        lease.owner = owner = await _deployment(kube, settings)
        await lease.acquire()
        async with _credentials(kube, settings, owner) as credentials:
            operator = Operator(settings, kube, credentials, owner)
            operator.passes = passes
            parts.append(operator)
            passes.registry.register(_figures(operator, lease))
            passes.registry.register(ForgeMetrics(operator.forge))
            since, lease.notes = lease.noted(HEARD), lambda: {HEARD: operator.forge.mark()}
            began = time.monotonic()
            await operator.relist()
            _log.info("%d objects listed in %.1f s", len(operator.store), time.monotonic() - began)
            async with asyncio.TaskGroup() as group:
                group.create_task(lease.keep())
                group.create_task(operator.work())
                group.create_task(operator.forge.catch_up(since, operator.namespaces()))
                group.create_task(pump(operator.hear, operator.namespaces()))
                if operator.office is not None:
                    passes.registry.register(LibraryMetrics(operator.office))
                    group.create_task(operator.office.run())
    finally:
        if parts and parts[0].feed is not None:
            await parts[0].feed.stop()
        await lease.release()
        await server.stop()
        await kube.close()


@contextlib.asynccontextmanager
async def _credentials(kube: KubeApi, settings: Settings, owner: Object | None) -> AsyncIterator[Credentials]:
    """The release's bus, or none where the settings name none."""
    if not settings.nats_url:
        yield NoCredentials()
        return
    files = await first_start(kube, settings, owner)
    with tempfile.TemporaryDirectory() as folder:
        ca = Path(folder, "ca.crt")
        ca.write_text(files.ca)
        authority = str(ca) if files.ca else None
        async with BusKeeper(
            files.keys, settings.nats_url, authority, replicas=settings.nats_replicas
        ) as keeper:
            yield BusCredentials(keeper, files, settings)


async def _deployment(kube: KubeApi, settings: Settings) -> Object | None:
    """An owner reference to the operator's Deployment; None where it is not run by one."""
    found = await kube.get(DEPLOYMENT, settings.namespace, "esper-operator")
    if found is None:
        return None
    return {
        "apiVersion": DEPLOYMENT.version,
        "kind": DEPLOYMENT.name,
        "name": "esper-operator",
        "uid": found["metadata"]["uid"],
    }


def _figures(operator: Operator, lease: Leadership) -> Figures:
    queue, writer, store, feed = operator.queue, operator.writer, operator.store, operator.feed
    return Figures(
        gauges=[
            ("esper_operator_leader", "1 while this process holds the Lease.", lambda: float(lease.is_held)),
            ("esper_operator_queue_length", "Runs that wait or are worked on.", lambda: float(len(queue))),
            ("esper_operator_queue_oldest_seconds", "How long the oldest one has waited.", queue.oldest),
            ("esper_operator_status_waiting", "Statuses to be written.", lambda: float(len(writer))),
            ("esper_operator_objects", "Objects that are known.", lambda: float(len(store))),
        ],
        counters=[
            ("esper_operator_passes", "Passes that went well.", lambda: float(queue.done)),
            ("esper_operator_passes_failed", "Passes that did not.", lambda: float(queue.failed)),
            ("esper_operator_status_writes", "Statuses that were written.", lambda: float(writer.written)),
            (
                "esper_operator_bus_malformed",
                "Messages of runs that were passed over.",
                lambda: float(feed.malformed if feed is not None else 0),
            ),
        ],
        calls=lambda: operator.kube.calls,
        phases=operator.phases,
    )
