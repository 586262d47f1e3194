"""What the bus has of runs against what there should be: made again where it lacks, removed where it is left.

A run that goes on is let in, also after the bus was wiped. One that has ended, or is gone, is let in no
more, and its messages are removed once its status says all that they say. The journal itself is in the run's
claim; where a run has none, the copy on the bus is all there is of it, and stays for as long as the stream
keeps it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from esper_operator.credentials import RunOnBus
from esper_operator.feed import JOURNAL
from esper_operator.store import Store
from esper_runtime.oona import BusKeeper

AT_ONCE = 16
"""Runs that are let in at a time."""

_ENDS = ("Succeeded", "Failed")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Due:
    """The runs that there are.

    Attributes:
        going: those that have not ended, or whose pods are still there, with their last attempt.
        ended: the others, and whether a claim has their journal.
    """

    going: Mapping[RunOnBus, int] = field(default_factory=dict)
    ended: Mapping[RunOnBus, bool] = field(default_factory=dict)


def due(store: Store) -> Due:
    """The runs that there are, by what is known of them."""
    going: dict[RunOnBus, int] = {}
    ended: dict[RunOnBus, bool] = {}
    for key in store.runs():
        run = store.run(key)
        if run is None:
            continue
        uid, status, children = run["metadata"]["uid"], run["status"], store.children(key)
        own = [facts.seen for facts in children.jobs.values() if facts.seen.owner == uid]
        alive = [pod for pod in children.pods.values() if pod.run_uid == uid and pod.living]
        known = RunOnBus(key.namespace, key.name, uid)
        if status.get("phase") in _ENDS and not own and not alive:
            ended[known] = children.claim == uid
        else:
            going[known] = max([int(status.get("attempt") or 0), *(job.attempt for job in own)])
    return Due(going, ended)


class BusSweep:
    """Compares the bus with the runs that there are.

    Args:
        keeper: the operator's hand on the bus.
        runs: gives the runs that there are, once all of them are known.
        namespaces: whose runs are looked after; none: all.
    """

    def __init__(self, keeper: BusKeeper, runs: Callable[[], Due], namespaces: Collection[str] = ()) -> None:
        self._keeper, self._runs, self._namespaces = keeper, runs, namespaces
        self._incarnations: dict[str, str] = {}
        self._over: set[RunOnBus] = set()
        self._left: set[tuple[str, str]] = set()

    async def restore(self) -> None:
        """Let runs in that go on and are not let in, as after a wipe of the bus.

        Raises:
            BusError: the bus cannot be reached, or refuses; the next call goes on.
        """
        accounts = await self._keeper.accounts()
        going = {run: attempt for run, attempt in self._runs().going.items() if attempt}
        anew = {
            namespace
            for namespace in {run.namespace for run in going}
            if self._keeper.keys.namespace_account(namespace) not in accounts
            or not await self._is_as_before(namespace)
        }
        lost = [run for run in going if run.namespace in anew or self._account(run) not in accounts]
        for namespace in anew:
            await self._keeper.prepare_namespace(namespace)
        gate = asyncio.Semaphore(AT_ONCE)

        async def let_in(run: RunOnBus) -> None:
            async with gate:
                await self._keeper.admit(run.namespace, run.name, run.uid, going[run])
            _log.info("%s/%s is let in again: the bus did not know it", run.namespace, run.word)

        await asyncio.gather(*(let_in(run) for run in lost))
        for namespace in anew:
            found = await self._keeper.incarnation(namespace)
            if found is not None:
                self._incarnations[namespace] = found

    async def sweep(self) -> None:
        """Let in no more whatever has ended or is gone, and remove what it has left.

        What there is is always listed before what there should be: what comes meanwhile is not swept. Nor is
        what was not left at the sweep before yet, for others try the bus with runs that are none.

        Raises:
            BusError: the bus cannot be reached, or refuses; the next call goes on.
        """
        let_in = {run for run in await self._keeper.runs() if self._is_ours(run[0])}
        going = self._runs().going
        over = {RunOnBus(*run) for run in let_in} - going.keys()
        left = {
            (namespace, word)
            for namespace in await self._keeper.namespaces()
            if self._is_ours(namespace)
            for word in await self._left_in(namespace)
        }
        gone = [(run.namespace, run.name, run.uid) for run in over & self._over]
        if gone:
            await self._keeper.revoke(*gone)
            _log.info("let in no more: %s", ", ".join(f"{run[0]}/{run[1]}" for run in gone))
        for namespace, word in left & self._left:
            await self._keeper.remove_words(namespace, word)
            _log.info("%s/%s: what was left of it on the bus is removed", namespace, word)
        self._over, self._left = over, left

    async def _left_in(self, namespace: str) -> set[str]:
        """Names on the bus of runs that are over, and of which a namespace's streams hold something."""
        words = await self._keeper.runs_on_record(namespace)
        runs = self._runs()
        kept = {run.word for run in runs.going if run.namespace == namespace}
        ended = {run.word: claim for run, claim in runs.ended.items() if run.namespace == namespace}
        kept |= {
            word
            for word in words & ended.keys()
            if not ended[word] or not await self._keeper.has_heard(namespace, word, JOURNAL)
        }
        return words - kept

    async def _is_as_before(self, namespace: str) -> bool:
        """Whether a namespace's streams are those that were there at the last look."""
        found = await self._keeper.incarnation(namespace)
        return found is not None and self._incarnations.setdefault(namespace, found) == found

    def _account(self, run: RunOnBus) -> str:
        return self._keeper.keys.run_account(run.namespace, run.name, run.uid)

    def _is_ours(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces
