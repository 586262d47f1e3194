"""The forge's workers on a cluster: which Jobs to make and to remove, pool by pool.

A worker ends by itself when it has had nothing to do for a while. None is ended because there are too many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper_runtime.contracts import Role, Work, WorkerFacts
from esper_runtime.planning.runs import JobEnd
from esper_runtime.planning.workforce import IDLE_SECONDS, WORKERS, Depth, workers_wanted

TARGET = "target"
"""Role of the Job that tells what the nodes of a pool are; it is kept once it has told."""
FIRST_WAIT = 10.0
LONGEST_WAIT = 600.0
"""Seconds after a failure before the next worker of that role and pool; doubled with each in a row."""
FORGET_SECONDS = 3600.0
"""After so long the last failure is forgotten, and its Job removed."""

WORK: Mapping[Role, Work] = {Role.TEZZERET: "compile", Role.URABRASK: "evaluate", Role.KARN: "generate"}
_FORGE = (Role.TEZZERET, Role.URABRASK)


@dataclass(frozen=True)
class PoolSeen:
    """A pool of the release.

    Attributes:
        name: of the pool.
        device: kind of device that its nodes have.
        limits: workers of each role at most.
        shape: digest of what its pods are made of.
    """

    name: str
    device: str
    limits: Mapping[Role, int]
    shape: str

    @property
    def works(self) -> bool:
        """Whether it both makes and tests kernels."""
        return all(self.limits.get(role, 0) > 0 for role in _FORGE)

    @property
    def invents(self) -> bool:
        """Whether it invents blueprints too."""
        return self.works and self.limits.get(Role.KARN, 0) > 0


@dataclass(frozen=True)
class WorkerSeen:
    """A worker's Job.

    Attributes:
        name: of the Job.
        uid: of the Job.
        role: of the worker; `TARGET` for one that tells what its node is.
        pool: name of its pool.
        number: the last part of its name.
        shape: `PoolSeen.shape` when it was made.
        failures: of workers of its role and pool in a row before it.
        deleting: whether it is being deleted.
        ended: how it ended; None while it goes on.
        ended_at: seconds since the epoch.
        facts: what its node is, where it has told.
    """

    name: str
    uid: str
    role: str
    pool: str
    number: int
    shape: str = ""
    failures: int = 0
    deleting: bool = False
    ended: JobEnd | None = None
    ended_at: float = 0.0
    facts: WorkerFacts | None = None


@dataclass(frozen=True)
class WorkforceSeen:
    """Everything observed of the forge's workers.

    Attributes:
        pools: of the release.
        workers: all Jobs of workers.
        depths: items by work and target; None where they are not known.
        asked: whether somebody wants to know what the nodes of pools are though there is no work yet.
        now: seconds since the epoch.
    """

    pools: Sequence[PoolSeen]
    workers: Sequence[WorkerSeen]
    depths: Mapping[tuple[Work, str], int] | None
    asked: bool
    now: float


@dataclass(frozen=True)
class CreateWorker:
    """Make a worker's Job."""

    role: str
    pool: str
    number: int
    failures: int = 0


@dataclass(frozen=True)
class DeleteWorker:
    """Remove a Job that has ended."""

    name: str
    uid: str


@dataclass(frozen=True)
class WorkforcePlan:
    """What to do, and what is known.

    Attributes:
        actions: in this order.
        sites: what pools make kernels for, by pool, as far as they have told.
        unserved: targets with work that no pool serves.
        failing: workers that failed last, by role and pool.
        look_again: seconds until something is due though nothing happens; None: when something does.
    """

    actions: tuple[CreateWorker | DeleteWorker, ...] = ()
    sites: Mapping[str, WorkerFacts] | None = None
    unserved: frozenset[str] = frozenset()
    failing: Mapping[tuple[str, str], WorkerSeen] | None = None
    look_again: float | None = None


def wait_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(30, max(0, failures - 1)))


def plan_workforce(seen: WorkforceSeen) -> WorkforcePlan:
    """Decide about all workers. Depths that are not known change nothing but what has ended."""
    tellers = _tellers(seen)
    sites = {pool: worker.facts for pool, worker in tellers.items() if worker.facts is not None}
    told = {worker.uid for worker in tellers.values()}
    actions: list[CreateWorker | DeleteWorker] = []
    failing: dict[tuple[str, str], WorkerSeen] = {}
    waits: list[float] = []
    wanted = _wanted(seen, sites)
    places = dict.fromkeys((worker.role, worker.pool) for worker in seen.workers) | dict.fromkeys(wanted)
    for role, name in places:
        mine = [worker for worker in seen.workers if (worker.role, worker.pool) == (role, name)]
        number = max((worker.number for worker in mine), default=0)
        ended = [worker for worker in mine if worker.ended is not None and not worker.deleting]
        last = max(ended, key=lambda worker: worker.number, default=None)
        failures = 0
        if last is not None and last.ended is JobEnd.FAILED:
            failures = last.failures + 1
            if seen.now - last.ended_at < FORGET_SECONDS + wait_after(failures):
                failing[role, name] = last
        kept = failing.get((role, name))
        for worker in ended:
            stays = worker.uid in told or (worker is kept and worker.number == number)
            if not stays:
                actions.append(DeleteWorker(worker.name, worker.uid))
        going = sum(worker.ended is None and not worker.deleting for worker in mine)
        missing = wanted.get((role, name), 0) - going
        if missing <= 0:
            continue
        due = 0.0 if kept is None else kept.ended_at + wait_after(failures) - seen.now
        if due > 0:
            waits.append(due)
            continue
        actions += [
            CreateWorker(role, name, number + index, failures if kept is not None else 0)
            for index in range(1, missing + 1)
        ]
    for last in failing.values():
        waits.append(max(1.0, last.ended_at + FORGET_SECONDS + wait_after(last.failures + 1) - seen.now))
    unserved = _unserved(seen, sites)
    return WorkforcePlan(tuple(actions), sites, unserved, failing, min(waits, default=None))


def _tellers(seen: WorkforceSeen) -> dict[str, WorkerSeen]:
    """By pool the Job that has told last what its nodes are, and that was made as the pool is now."""
    pools = {pool.name: pool for pool in seen.pools}
    found: dict[str, WorkerSeen] = {}
    for worker in sorted(seen.workers, key=lambda worker: worker.number):
        pool = pools.get(worker.pool)
        if pool is not None and _tells(worker, pool) and not worker.deleting:
            found[worker.pool] = worker
    return found


def _tells(worker: WorkerSeen, pool: PoolSeen) -> bool:
    return (
        worker.role == TARGET
        and worker.ended is JobEnd.COMPLETE
        and worker.facts is not None
        and worker.shape == pool.shape
    )


def _wanted(seen: WorkforceSeen, sites: Mapping[str, WorkerFacts]) -> dict[tuple[str, str], int]:
    """How many workers there should be, by role and pool."""
    found: dict[tuple[str, str], int] = {}
    busy = seen.depths is not None and any(seen.depths.values())
    if seen.asked or busy:
        found |= {(TARGET, pool.name): 1 for pool in seen.pools if pool.works and pool.name not in sites}
    if seen.depths is None:
        return found
    left = dict(seen.depths)
    for pool in seen.pools:
        running = {
            role: sum(
                w.role == role and w.pool == pool.name and w.ended is None and not w.deleting
                for w in seen.workers
            )
            for role in WORKERS
        }
        depths: dict[Role, Depth] = {}
        for role, work in WORK.items():
            mine = [key for key in left if key[0] == work and serves(pool, sites.get(pool.name), key[1])]
            taken = pool.limits.get(role, 0)
            # No more than its own limit, so that no role takes the places of another one.
            depths[role] = Depth(min(taken, sum(left[key] for key in mine)), IDLE_SECONDS)
            for key in mine:  # what this pool's workers take at a time is not asked of the next pool
                share = min(taken, left[key])
                left[key] -= share
                taken -= share
        limit = sum(pool.limits.get(role, 0) for role in WORK)
        for role, count in workers_wanted(depths, running, limit).items():
            found[role.value, pool.name] = min(count, pool.limits.get(role, 0))
    return found


def serves(pool: PoolSeen, site: WorkerFacts | None, target: str) -> bool:
    """Whether a pool works for a target: for the one that it has told, before that for all of its device."""
    if site is not None:
        return site.target.name == target
    return target.partition("-")[0] == pool.device


def _unserved(seen: WorkforceSeen, sites: Mapping[str, WorkerFacts]) -> frozenset[str]:
    found = set()
    for (work, target), items in (seen.depths or {}).items():
        role = next(role for role, of_role in WORK.items() if of_role == work)
        able = (pool for pool in seen.pools if pool.limits.get(role, 0) > 0)
        if items > 0 and not any(serves(pool, sites.get(pool.name), target) for pool in able):
            found.add(target)
    return frozenset(found)
