"""The forge's side of the operator: blueprints, kernels and workers, woken by events and by the library."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from esper_operator.blueprints import Blueprints
from esper_operator.deletions import Deletions
from esper_operator.kube import (
    BLUEPRINT,
    JOB,
    KERNEL,
    POD,
    ExpiredError,
    Kind,
    Kube,
    KubeError,
    Listed,
    Object,
)
from esper_operator.mirror import Mirror
from esper_operator.names import POOL_LABEL, BlueprintKey, ForgeKey, Key, shows_library
from esper_operator.objects import Objects
from esper_operator.office import Office
from esper_operator.settings import Settings
from esper_operator.workers import Workers
from esper_operator.writer import StatusWriter
from esper_runtime.planning import Workplaces

KINDS = (BLUEPRINT, KERNEL, JOB, POD)
AGAIN = 5.0
"""Seconds before the API server is asked again for what it could not say."""
GATHER_SECONDS = 0.3
"""What comes within such a time is looked at together."""
SHOW_SECONDS = 2.0
"""Between two looks at what of the library is shown."""

_log = logging.getLogger(__name__)


class Forge:
    """Blueprints, kernels and workers.

    Args:
        kube: the API.
        writer: of statuses.
        office: the library and its queues; None for a release without a bus.
        settings: of the release.
        owner: an owner reference for what is made in the release's namespace.
        secrets: names of the workers' Secrets by role.
        add: has a key looked at, at once or so many seconds later.
        in_use: ids of blueprints that runs which go on have planted.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        kube: Kube,
        writer: StatusWriter,
        office: Office | None,
        settings: Settings,
        owner: Object | None,
        secrets: Mapping[str, str],
        add: Callable[[Key, float], None],
        in_use: Callable[[], frozenset[str]] = frozenset,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.objects = Objects()
        self.deletions = Deletions()
        self._kube, self._add, self._office = kube, add, office
        self._work = ForgeKey(settings.namespace, "workers")
        self._show = ForgeKey(settings.namespace, "mirror")
        self.workers = Workers(
            kube,
            self.objects,
            office,
            settings,
            owner,
            secrets,
            lambda: self.blueprints.asks_for_sites(),
            clock,
        )
        self.blueprints = Blueprints(
            kube, self.objects, writer, office, self.workers.places, settings.watch, clock
        )
        self._mirror = None
        if office is not None:
            self._mirror = Mirror(
                kube,
                self.objects,
                writer,
                office,
                self.blueprints.facts,
                self.workers.places,
                in_use,
                settings,
                owner,
                clock,
            )
            office.changed = self.wake

    def wake(self) -> None:
        """The library, its queues or the workers are not as they were."""
        self._add(self._work, GATHER_SECONDS)
        self._add(self._show, SHOW_SECONDS)

    def hear(self, kind: Kind, what: str | None, body: Object) -> None:
        """Take in an event of what concerns the forge."""
        if not concerns(kind, body):
            return
        head = body["metadata"]
        key = BlueprintKey(head["namespace"], head["name"])
        if kind is BLUEPRINT:
            self.deletions.hear(head.get("resourceVersion"))
        if what == "DELETED":
            known = self.objects.remove(kind, head["namespace"], head["name"], head["uid"])
            if known is None:
                return
            if kind is BLUEPRINT:
                self.blueprints.depart(key, known)
        elif not self.objects.put(kind, body):
            return
        if kind is BLUEPRINT and not shows_library(body):
            self._add(key, 0.0)
        self.wake()

    def replace(self, kind: Kind, listed: Listed, namespace: str | None) -> None:
        """Take in a complete list; of what is missing in it nothing is concluded."""
        items = [body for body in listed.items if concerns(kind, body)]
        if kind is BLUEPRINT:
            self.deletions.hear(listed.version)
        for place in self.objects.replace(kind, Listed(items, listed.version), namespace):
            if kind is BLUEPRINT:
                self._add(BlueprintKey(*place), 0.0)

    def mark(self) -> str:
        """The version of the blueprints from which another process goes on with deletions."""
        return self.deletions.mark(not self.blueprints.is_departing)

    async def catch_up(self, since: str, namespaces: Collection[str] = ()) -> None:
        """Carry out deletions that a process before this one has not carried out: the API server tells them.

        What it does not tell any more orders nothing.

        Args:
            since: the mark that the process before has left; empty where there is none.
            namespaces: that are watched; none: all.
        """
        for namespace in namespaces or (None,):
            if since:
                await self._catch_up(since, namespace)
        self.deletions.begin()

    async def _catch_up(self, since: str, namespace: str | None) -> None:
        while True:
            try:
                gone = await self._kube.deleted(BLUEPRINT, namespace, since)
                break
            except ExpiredError as error:
                _log.info("deletions of blueprints since version %s are not known any more: %s", since, error)
                return
            except KubeError as error:
                _log.warning("deletions of blueprints cannot be asked for yet: %s", error)
                await asyncio.sleep(AGAIN)
        for body in gone:
            head = body["metadata"]
            key = BlueprintKey(head["namespace"], head["name"])
            self.objects.remove(BLUEPRINT, head["namespace"], head["name"], head["uid"])
            self.blueprints.depart(key, body)
            self._add(key, 0.0)

    def look_at_all(self) -> None:
        """Have everything looked at again."""
        for body in self.objects.all(BLUEPRINT):
            if self.blueprints.is_peoples(body):
                self._add(BlueprintKey(body["metadata"]["namespace"], body["metadata"]["name"]), 0.0)
        self.wake()

    def current(self, key: Key) -> Object | None:
        """A resource as it was seen last."""
        return self.objects.get(key.kind, key.namespace, key.name)

    def learn(self, key: Key, body: Object) -> None:
        """Take in a resource as the API server has it."""
        if self.objects.put(key.kind, body) and isinstance(key, BlueprintKey) and not shows_library(body):
            self._add(key, 0.0)

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a blueprint, the workers or what is shown; returns seconds until the next one.

        Raises:
            KubeError: the API server did not do something; the pass is to be made again.
            BusError: the bus did not.
        """
        if isinstance(key, BlueprintKey):
            return await self.blueprints.reconcile(key)
        if key == self._show:
            if self._mirror is not None:
                await self._mirror.reconcile()
            return None
        after = await self.workers.reconcile()
        for stale in self.blueprints.stale():
            self._add(stale, 0.0)
        return after

    def places(self) -> Workplaces:
        """Where kernels are made, as it is known."""
        return self.workers.places()


def concerns(kind: Kind, body: Object) -> bool:
    """Whether an object is of the forge's side: a resource of it, or one of its workers."""
    return kind in (BLUEPRINT, KERNEL) or (
        kind in (JOB, POD) and POOL_LABEL in (body["metadata"].get("labels") or {})
    )
