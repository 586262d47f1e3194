"""The pass over the forge's workers: as many Jobs as the queues ask for, within the limits of the pools."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from esper_operator.kube import JOB, POD, AlreadyThereError, Kube, Object
from esper_operator.names import MADE, POOL_LABEL, controller_of
from esper_operator.objects import Objects
from esper_operator.office import Office
from esper_operator.settings import Settings
from esper_operator.trouble import Trouble
from esper_operator.worker_jobs import trouble_of_workers, worker_image, worker_job, worker_seen
from esper_runtime.planning import (
    TARGET,
    CreateWorker,
    DeleteWorker,
    JobEnd,
    PoolSeen,
    WorkerSeen,
    WorkforcePlan,
    WorkforceSeen,
    Workplaces,
    plan_workforce,
)

_log = logging.getLogger(__name__)


class Workers:
    """Keeps the forge's workers.

    Args:
        kube: the API.
        objects: what was seen last.
        office: the queues.
        settings: of the release.
        owner: an owner reference for what is made here.
        secrets: names of the Secrets of the roles that get on the bus.
        asked: whether somebody wants to know what the pools' nodes are.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        kube: Kube,
        objects: Objects,
        office: Office | None,
        settings: Settings,
        owner: Object | None,
        secrets: Mapping[str, str],
        asked: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube, self._objects, self._office = kube, objects, office
        self._settings, self._owner, self._secrets = settings, owner, secrets
        self._asked, self._clock = asked, clock
        self._pools = {pool.name: pool for pool in settings.pools}
        self._seen = [pool.seen(worker_image(pool, settings)) for pool in settings.pools]
        self._silent: set[str] = set()
        """Uids of Jobs whose pods were asked for what they told, and told nothing."""

    async def reconcile(self) -> float | None:
        """One pass.

        Returns:
            Seconds after which to look again though nothing happens.

        Raises:
            KubeError: the API server did not do something; the pass is to be made again.
        """
        if self._office is None:
            return None
        await self._ask_the_silent()
        plan = self._plan()
        if any(isinstance(action, CreateWorker) for action in plan.actions):
            await self._list()
            plan = self._plan()
        for action in plan.actions:
            match action:
                case CreateWorker():
                    await self._create(action)
                case DeleteWorker(name, uid):
                    _log.info("the Job %s has ended and is removed", name)
                    await self._delete(name, uid)
        made = any(isinstance(action, CreateWorker) for action in plan.actions)
        return 1.0 if made else plan.look_again

    def places(self) -> Workplaces:
        """Where kernels are made, as it is known."""
        plan = self._plan()
        trouble = self.trouble(plan)
        return Workplaces(
            sites=tuple((plan.sites or {}).values()),
            pools=tuple(pool.name for pool in self._seen if pool.works),
            inventing=tuple(pool.name for pool in self._seen if pool.invents),
            unserved=plan.unserved,
            trouble=None if trouble is None else (trouble.reason, trouble.message),
        )

    def trouble(self, plan: WorkforcePlan | None = None) -> Trouble | None:
        """What keeps workers from working."""
        failing = list(((plan or self._plan()).failing or {}).values())
        return trouble_of_workers(self._pods(), failing)

    def going(self) -> dict[tuple[str, str], int]:
        """Workers that go on, by role and pool."""
        found = {(role.value, pool.name): 0 for pool in self._seen for role in pool.limits}
        for worker in self._workers():
            if worker.ended is None and not worker.deleting:
                key = (worker.role, worker.pool)
                found[key] = found.get(key, 0) + 1
        return found

    def pools(self) -> list[PoolSeen]:
        """The pools as the planner sees them."""
        return list(self._seen)

    def _plan(self) -> WorkforcePlan:
        depths = None if self._office is None else self._office.depths()
        seen = WorkforceSeen(self._seen, self._workers(), depths, self._asked(), self._clock())
        return plan_workforce(seen)

    def _workers(self) -> list[WorkerSeen]:
        by_job: dict[str, list[Object]] = {}
        for pod in self._pods():
            by_job.setdefault(controller_of(pod) or "", []).append(pod)
        found = []
        for job in self._objects.all(JOB, self._settings.namespace):
            worker = worker_seen(job, by_job.get(job["metadata"]["uid"], []))
            if worker is None:
                worker = _strangers(job)
            if worker is not None:
                # One that ended well and told nothing is of no use: as if it had failed.
                mute = worker.uid in self._silent and worker.facts is None
                found.append(replace(worker, ended=JobEnd.FAILED) if mute else worker)
        return found

    def _pods(self) -> list[Object]:
        pods = self._objects.all(POD, self._settings.namespace)
        return [pod for pod in pods if POOL_LABEL in (pod["metadata"].get("labels") or {})]

    async def _list(self) -> None:
        """What is known may be old, and there must never be more workers than there may be."""
        namespace = self._settings.namespace
        for kind in (JOB, POD):
            listed = await self._kube.list(kind, namespace, f"{MADE},{POOL_LABEL}")
            self._objects.replace(kind, listed, namespace)

    async def _ask_the_silent(self) -> None:
        """A Job may be seen to have ended before its pod is seen to have told."""
        namespace = self._settings.namespace
        there = set()
        for worker in self._workers():
            there.add(worker.uid)
            ended = worker.ended is JobEnd.COMPLETE and not worker.deleting
            if worker.role == TARGET and ended and worker.facts is None and worker.uid not in self._silent:
                pods = await self._kube.list(
                    POD, namespace, f"{MADE},batch.kubernetes.io/job-name={worker.name}"
                )
                for pod in pods.items:
                    self._objects.put(POD, pod)
                self._silent.add(worker.uid)
        self._silent &= there

    async def _create(self, action: CreateWorker) -> None:
        pool = self._pools[action.pool]
        shape = next(seen.shape for seen in self._seen if seen.name == pool.name)
        secret = None if action.role == TARGET else self._secrets[action.role]
        body = worker_job(action, pool, shape, secret, self._settings, self._owner)
        _log.info("the Job %s is made", body["metadata"]["name"])
        try:
            made = await self._kube.create(JOB, body)
        except AlreadyThereError:
            found = await self._kube.get(JOB, self._settings.namespace, body["metadata"]["name"])
            if found is not None:
                self._objects.put(JOB, found)
            return
        self._objects.put(JOB, made)

    async def _delete(self, name: str, uid: str) -> None:
        namespace = self._settings.namespace
        left = await self._kube.delete(JOB, namespace, name, uid, "Background")
        if left is None:
            self._objects.remove(JOB, namespace, name, uid)
        else:
            self._objects.put(JOB, left)


def _strangers(job: Object) -> WorkerSeen | None:
    """A Job that has a worker's name and is none: its number is taken, and that is all."""
    head = job["metadata"]
    found = _NAME.fullmatch(head["name"])
    if found is None:
        return None
    role, pool, number = found.groups()
    return WorkerSeen(head["name"], head["uid"], role, pool, int(number), deleting=True)


_NAME = re.compile(r"esper-([a-z]+)-(.+)-([0-9]{1,9})")
