"""Writes statuses: the last value of each resource, at most so many a second in all; then their events."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from esper_operator.kube import (
    EVENT,
    AlreadyThereError,
    ConflictError,
    Kube,
    KubeError,
    NotThereError,
    Object,
    RefusedError,
)
from esper_operator.live import Notice
from esper_operator.names import Key, short_uid
from esper_operator.rate import Rate
from esper_runtime.planning import rfc3339

LIVE_SPACING = 2.0
"""Seconds between two writes of a run that say only how far it is."""

AT_ONCE = 8
"""Writes that wait for their answer at a time, and as many that post events after theirs."""

_log = logging.getLogger(__name__)


@dataclass
class Waiting:
    """A status that is to be written.

    Attributes:
        uid: of the resource that it is meant for.
        status: the whole of it; None where it is written already.
        urgent: whether it says more than how far the run is.
        notices: events to post once it is written.
        after: what to do once it is written.
        since: when the resource began to wait, by the clock of this process.
    """

    uid: str
    status: Object | None
    urgent: bool
    notices: list[Notice] = field(default_factory=list)
    after: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def follow(self, old: "Waiting") -> None:
        """Take the place of one that was not written, with what hangs on that."""
        self.urgent = self.urgent or old.urgent
        self.notices = old.notices + [item for item in self.notices if item not in old.notices]
        self.after = old.after + self.after
        self.since = old.since


class StatusWriter:
    """The last status of each resource that waits to be written.

    Args:
        kube: the API.
        per_second: writes in any second, at most.
        current: gives a resource as it was seen last.
        learn: called with a resource as the API server has it.
    """

    def __init__(
        self,
        kube: Kube,
        per_second: float,
        current: Callable[[Key], Object | None],
        learn: Callable[[Key, Object], None],
    ) -> None:
        self._kube, self._current, self._learn = kube, current, learn
        self._rate = Rate(per_second)
        self._written: asyncio.Queue[tuple[Key, Waiting]] = asyncio.Queue()
        self._waiting: dict[Key, Waiting] = {}
        self._writing: dict[Key, Waiting] = {}
        self._last: dict[Key, float] = {}
        self._wake = asyncio.Event()
        self._line = asyncio.Lock()
        self.written = 0
        """How many statuses were written."""

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(
        self,
        key: Key,
        uid: str,
        status: Object | None,
        *,
        urgent: bool,
        notices: Sequence[Notice] = (),
        after: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        """Have a status written; it takes the place of one of this resource that still waits."""
        new = Waiting(uid, status, urgent, list(notices), list(after))
        now = self._writing.get(key)
        if now is not None and (now.uid, now.status) == (uid, status):
            new.status = None
            new.notices = [notice for notice in new.notices if notice not in now.notices]
            if not new.notices and not new.after:
                return
        old = self._waiting.get(key)
        if old is not None and old.uid == uid:
            new.follow(old)
        self._waiting[key] = new
        self._wake.set()

    def is_waiting(self, key: Key) -> bool:
        """Whether something of a resource is still to be written or posted."""
        return key in self._waiting

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._waiting.pop(key, None)
        self._last.pop(key, None)

    async def run(self) -> None:
        """Write until cancelled: some at a time, so that a slow answer does not hold up the others."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work())
                group.create_task(self._work_after())

    async def drain(self) -> None:
        """Write all that waits.

        Raises:
            KubeError: the API server does not take one; the others still wait.
        """
        while self._waiting:
            await self._rate.take()
            try:
                key = next(iter(self._waiting))
                written = await self._write(key)
            finally:
                self._rate.give()
            if written is not None:
                await self._follow_up(key, written)

    async def _work(self) -> None:
        while True:
            key = await self._choose()
            writes = self._waiting[key].status is not None
            try:
                await self._write_safely(key)
            finally:
                self._rate.give(used=writes)

    async def _choose(self) -> Key:
        """The next one, once it may be written; until then something more urgent may come."""
        async with self._line:
            while True:
                await self._rate.take()
                key = self._next(time.monotonic())
                if key is not None:
                    return key
                self._rate.give(used=False)
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.25 if self._waiting else None):
                        await self._wake.wait()

    async def _work_after(self) -> None:
        """Post events beside the writing, so that the rate of statuses does not depend on it."""
        while True:
            key, written = await self._written.get()
            try:
                await self._follow_up(key, written)
            except Exception:  # what is told again where nobody said that it was heard
                _log.exception("%s: what follows its status failed", key)

    async def _write_safely(self, key: Key) -> None:
        try:
            written = await self._write(key)
        except RefusedError as error:
            self._waiting.pop(key, None)
            _log.error("%s: the API server refuses its status: %s", key, error)
        except KubeError as error:
            _log.warning("%s: its status is written later: %s", key, error)
            await asyncio.sleep(1.0)
        else:
            if written is not None:
                self._written.put_nowait((key, written))

    async def _write(self, key: Key) -> Waiting | None:
        """Write the status of a resource that waits.

        Returns:
            What was written; None where the resource is gone, or has changed: then its status waits again.

        Raises:
            KubeError: the API server does not take it; it waits again.
        """
        waiting = self._waiting.pop(key)
        self._writing[key] = waiting
        try:
            return waiting if waiting.status is None or await self._apply(key, waiting) else None
        except BaseException:
            self._put_back(key, waiting)
            raise
        finally:
            del self._writing[key]
            self._wake.set()  # what was said of it meanwhile may be written now

    async def _apply(self, key: Key, waiting: Waiting) -> bool:
        """Whether a status is written: not where the resource is gone, or another one has its name."""
        known, uid = self._current(key), waiting.uid
        if known is None or known["metadata"]["uid"] != uid:
            return False
        version = known["metadata"]["resourceVersion"]
        head = {"name": key.name, "namespace": key.namespace, "resourceVersion": version}
        try:
            answer = await self._kube.apply_status(key.kind, {"metadata": head, "status": waiting.status})
        except NotThereError:
            return False
        except ConflictError:
            now = await self._kube.get(key.kind, key.namespace, key.name)
            if now is not None:
                self._put_back(key, waiting)
                self._learn(key, now)
            return False
        self.written += 1
        self._last[key] = time.monotonic()
        self._learn(key, answer)
        return True

    def _put_back(self, key: Key, waiting: Waiting) -> None:
        """Have it wait again, or its successor with what hangs on it."""
        newer = self._waiting.setdefault(key, waiting)
        if newer is waiting or newer.uid != waiting.uid:
            return
        newer.follow(waiting)
        if newer.status is None:  # it said the same
            newer.status = waiting.status

    async def _follow_up(self, key: Key, written: Waiting) -> None:
        """Post the events of a status, and do what was to wait for it."""
        for notice in written.notices:
            await self._post(key, written.uid, notice)
        for step in written.after:
            await step()

    def _next(self, now: float) -> Key | None:
        """What is urgent comes first, then what has waited for longest."""
        best: tuple[bool, float] | None = None
        chosen = None
        for key, waiting in self._waiting.items():
            if key in self._writing:
                continue
            if not waiting.urgent and now - self._last.get(key, 0.0) < LIVE_SPACING:
                continue
            rank = (not waiting.urgent, waiting.since)
            if best is None or rank < best:
                best, chosen = rank, key
        return chosen

    async def _post(self, key: Key, uid: str, notice: Notice) -> None:
        digest = hashlib.sha256(f"{uid}/{notice.identity}/{notice.reason}".encode()).hexdigest()[:10]
        now = rfc3339(time.time())
        body: Object = {
            "metadata": {"name": f"{key.name}.{short_uid(uid)}-{digest}", "namespace": key.namespace},
            "involvedObject": {
                "apiVersion": key.kind.version,
                "kind": key.kind.name,
                "namespace": key.namespace,
                "name": key.name,
                "uid": uid,
            },
            "reason": notice.reason,
            "message": notice.message[:1000],
            "type": "Warning" if notice.warning else "Normal",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": "esper-operator"},
            "reportingComponent": "esper-operator",
        }
        try:
            await self._kube.create(EVENT, body)
        except AlreadyThereError:
            pass
        except KubeError as error:
            _log.warning("%s: an event could not be posted: %s", key, error)
