"""Who carries out runs: one process, by a Lease that it renews and that it gives back at its end."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from esper_operator.kube import LEASE, AlreadyThereError, ConflictError, Kube, KubeError, Object
from esper_runtime.contracts import EsperError

DURATION = 15
"""Seconds after its last renewal at which others may take the Lease."""
DEADLINE = 10.0
"""Seconds without a renewal after which its holder stops: well before others may take it."""
EVERY = 3.0
"""Seconds between two renewals, and two looks at another's Lease."""

_log = logging.getLogger(__name__)


class LeaseLostError(EsperError):
    """The Lease was not renewed in time or is another's: this process must stop at once."""


class Leadership:
    """The Lease of a release.

    Whether another one's Lease has run out is told by this process's own clock: since when it has not
    changed. Clocks of different nodes are never compared.

    Args:
        kube: the API.
        namespace: of the release.
        name: of the Lease.
        identity: of this process.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._namespace, self._name, self._identity = kube, namespace, name, identity
        self.notes: Callable[[], Mapping[str, str]] = lambda: {}
        """Annotations that each renewal writes, for the next holder."""
        self.owner: Object | None = None
        """An owner reference for a Lease that has to be made, so that it goes with the release."""
        self._clock = clock
        self._lease: Object | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed: float | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process may act: its last renewal is not too long ago."""
        return self._renewed is not None and self._clock() - self._renewed < DEADLINE

    def renewed_before(self) -> float:
        """Seconds since the last renewal; infinite before the first one."""
        return float("inf") if self._renewed is None else self._clock() - self._renewed

    def noted(self, name: str) -> str:
        """What the holders so far have noted under a name; empty where nothing was."""
        notes = ((self._lease or {}).get("metadata") or {}).get("annotations") or {}
        return str(notes.get(name, ""))

    async def acquire(self) -> None:
        """Return when the Lease is this process's."""
        while not await self._try("taken"):
            await asyncio.sleep(EVERY)
        _log.info("lease %s/%s is held by %s", self._namespace, self._name, self._identity)

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLostError: it was not renewed in time, or is another's.
        """
        while True:
            await asyncio.sleep(EVERY)
            if not await self._try("renewed") and not self.is_held:
                raise LeaseLostError(
                    f"lease {self._namespace}/{self._name}: not renewed for {DEADLINE:g} s; another process "
                    "may take over, so this one stops"
                )

    async def release(self) -> None:
        """Give it back, so that the next one need not wait; where that fails it runs out."""
        if self._lease is None or not self.is_held:
            return
        self._renewed = None
        spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(EVERY):
                await self._kube.replace(LEASE, self._with_notes(self._lease) | {"spec": spec})
        except (TimeoutError, KubeError) as error:
            _log.warning("the lease could not be given back: %s", error)

    async def _try(self, deed: str) -> bool:
        """One try to have the Lease; whether that went well. Never longer than a call may take."""
        before = self._clock()
        try:
            async with asyncio.timeout(EVERY):
                self._lease = await self._write(before)
        except (TimeoutError, AlreadyThereError, ConflictError):
            return False
        except KubeError as error:
            _log.warning("the lease could not be %s: %s", deed, error)
            return False
        if self._lease is None:
            return False
        self._renewed = before
        return True

    async def _write(self, now: float) -> Object | None:
        found = await self._kube.get(LEASE, self._namespace, self._name)
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: Object = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION,
            "renewTime": moment,
        }
        if found is None:
            head: Object = {"name": self._name, "namespace": self._namespace}
            if self.owner is not None:
                head["ownerReferences"] = [self.owner]
            first = spec | {"acquireTime": moment, "leaseTransitions": 0}
            return await self._kube.create(LEASE, {"metadata": head, "spec": first})
        held = found.get("spec") or {}
        holder = held.get("holderIdentity") or ""
        if holder != self._identity:
            version = str(found["metadata"]["resourceVersion"])
            if self._seen[0] != version:
                self._seen = (version, now)
            lasts = float(held.get("leaseDurationSeconds") or DURATION)
            if holder and now - self._seen[1] < lasts:
                self._renewed = None
                return None
            spec |= {
                "acquireTime": moment,
                "leaseTransitions": int(held.get("leaseTransitions") or 0) + 1,
            }
        return await self._kube.replace(LEASE, self._with_notes(found) | {"spec": held | spec})

    def _with_notes(self, lease: Object) -> Object:
        notes = {name: text for name, text in self.notes().items() if text}
        if not notes:
            return lease
        head = lease["metadata"]
        return lease | {"metadata": head | {"annotations": (head.get("annotations") or {}) | notes}}
