"""What the API itself says now of a run and what belongs to it, where what was seen last is not enough."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

from esper_operator.batch import Batch
from esper_operator.kube import EVENT, JOB, POD, RUN, Kind, Kube, Listed, Object
from esper_operator.names import UID_LABEL, RunKey

Place = tuple[Kind, str]
"""A kind of object in a namespace."""


NEWS_SECONDS = 2.0
"""What was said of Jobs is so old at most: for each list the API server reads all events of a namespace."""

LONGEST_TEXT = 1000


class Fresh:
    """Asks the API server; what passes over many runs ask at the same time becomes one list.

    Args:
        kube: the API.
        clock: seconds since the epoch.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.time) -> None:
        self._kube, self._clock = kube, clock
        self._own: dict[Place, Batch[str, Listed]] = {}
        self._warnings: dict[str, Batch[str, list[str]]] = {}
        self._said: dict[str, tuple[float, Mapping[str, list[str]]]] = {}

    async def run(self, key: RunKey, uid: str) -> tuple[Object | None, Listed, Listed]:
        """The resource of a run's name, and the Jobs and pods of the run with that uid.

        Raises:
            KubeError: one of the three could not be had.
        """
        run, jobs, pods = await asyncio.gather(
            self._kube.get(RUN, key.namespace, key.name),
            self._batch(JOB, key.namespace).ask(uid),
            self._batch(POD, key.namespace).ask(uid),
            return_exceptions=True,
        )
        for found in (run, jobs, pods):
            if isinstance(found, BaseException):
                raise found
        return run, jobs, pods  # type: ignore[return-value]

    async def warnings_of_job(self, namespace: str, uid: str) -> list[str]:
        """What was said of a Job that is no good news, oldest first.

        Raises:
            KubeError: the events could not be had.
        """
        if namespace not in self._warnings:
            self._warnings[namespace] = Batch(lambda uids: self._list_warnings(namespace, uids))
        return await self._warnings[namespace].ask(uid)

    def _batch(self, kind: Kind, namespace: str) -> Batch[str, Listed]:
        place = (kind, namespace)
        if place not in self._own:
            self._own[place] = Batch(lambda uids: self._list_own(kind, namespace, uids))
        return self._own[place]

    async def _list_own(self, kind: Kind, namespace: str, uids: Collection[str]) -> Mapping[str, Listed]:
        listed = await self._kube.list(kind, namespace, f"{UID_LABEL} in ({','.join(sorted(uids))})")
        found: dict[str, list[Object]] = {uid: [] for uid in uids}
        for body in listed.items:
            found[body["metadata"]["labels"][UID_LABEL]].append(body)
        return {uid: Listed(items, listed.version) for uid, items in found.items()}

    async def _list_warnings(self, namespace: str, uids: Collection[str]) -> Mapping[str, list[str]]:
        now = self._clock()
        listed_at, said = self._said.get(namespace, (0.0, {}))
        if now - listed_at >= NEWS_SECONDS:
            fields = f"involvedObject.kind={JOB.name},type=Warning"
            events = (await self._kube.list(EVENT, namespace, fields=fields)).items
            said = {}
            for event in sorted(events, key=lambda event: str(event.get("lastTimestamp") or "")):
                about = str((event.get("involvedObject") or {}).get("uid"))
                said.setdefault(about, []).append(str(event.get("message", ""))[:LONGEST_TEXT])
            self._said[namespace] = (now, said)
        return {uid: said.get(uid, []) for uid in uids}
