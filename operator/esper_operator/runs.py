"""The pass over one run: observe, plan, carry out, say. Killed anywhere, the next pass goes on from there."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from esper_operator.children import claim_of, job_of, network_policy_of, secret_of, service_of
from esper_operator.credentials import Credentials, RunOnBus
from esper_operator.fresh import Fresh
from esper_operator.kube import (
    CLAIM,
    JOB,
    NETWORK_POLICY,
    POD,
    RUN,
    SECRET,
    SERVICE,
    AlreadyThereError,
    Kind,
    Kube,
    Object,
    RefusedError,
    UnavailableError,
)
from esper_operator.live import Live, Notice
from esper_operator.names import RunKey, controller_of
from esper_operator.observe import JobFacts, Read, read_manifest, run_seen
from esper_operator.settings import Settings
from esper_operator.status import Facts, parsed_status, status_of
from esper_operator.store import Children, Store
from esper_operator.trouble import OF_EVENTS, Trouble, trouble_of_error, trouble_of_events, trouble_of_pods
from esper_operator.writer import StatusWriter
from esper_runtime.contracts import BusError, MorphogeneticRun
from esper_runtime.planning import (
    CreateAttempt,
    CreateClaim,
    CreateService,
    DeleteJob,
    DeleteRun,
    RunAction,
    RunPlan,
    RunSeen,
    Standing,
    Verdict,
    plan_run,
)

ROUNDS = 4
"""How often one pass observes again after it has done something."""
NO_PODS_SECONDS = 10.0
"""A Job that has no pods for so long is asked why."""
LOOK_AGAIN = 15.0
"""Seconds until a run with trouble is looked at again though nothing happens; doubled each time."""
LONGEST = 300.0
"""At most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _View:
    """Everything that one look gave."""

    run: Object
    read: Read
    children: Children
    seen: RunSeen
    plan: RunPlan
    began_as: str
    """Digest of what never changes, as the run began."""

    @property
    def changed(self) -> bool:
        """Whether host, task or random seed are others now, which CEL cannot see in all."""
        return self.read.manifest is not None and self.read.identity != self.began_as


class Runs:
    """Carries out runs.

    Args:
        kube: the API.
        store: what was seen last.
        writer: of statuses.
        credentials: of the pods.
        settings: of the release.
        clock: seconds since the epoch.
        served: whether the pools make what a run wants; None for a release without a bus.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        writer: StatusWriter,
        credentials: Credentials,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        served: Callable[[MorphogeneticRun | None], Verdict | None] = lambda _: None,
    ) -> None:
        self._served = served
        self._kube, self._store, self._writer = kube, store, writer
        self._credentials, self._settings, self._clock = credentials, settings, clock
        self._fresh = Fresh(kube, clock)
        self._blocked: dict[RunKey, int] = {}
        self._asked: dict[RunKey, tuple[str, float, Trouble | None]] = {}
        self.lives: dict[RunKey, Live] = {}
        """What runs say of themselves, by run; whoever hears them adds to it."""

    def live(self, key: RunKey) -> Live | None:
        """What a run says of itself, beginning with what its status says; None where there is no such run."""
        run = self._store.run(key)
        if run is None:
            return None
        if key not in self.lives:
            self.lives[key] = Live.from_status(parsed_status(run))
        return self.lives[key]

    async def reconcile(self, key: RunKey) -> float | None:
        """One pass.

        Returns:
            Seconds after which to look again though nothing happens; None for when something does.

        Raises:
            KubeError: the API server did not do something; the pass is to be made again.
            BusError: the bus did not.
        """
        trouble: Trouble | None = None
        rounds = 0
        while True:
            run = self._store.run(key)
            if run is None:
                for known in (self.lives, self._blocked, self._asked):
                    known.pop(key, None)
                self._writer.forget(key)
                return None
            view = self._look(key, run)
            if view.seen.deleting:
                return None
            if not view.plan.actions or _ends(view) or trouble is not None or rounds == ROUNDS:
                break
            rounds += 1
            try:
                await self._carry_out(key, view)
            except _RefusalError as refusal:
                trouble = refusal.trouble
        trouble = trouble or await self._trouble(key, view)
        self._say(key, view, trouble)
        waits = [view.plan.look_again]
        if trouble is not None or view.plan.standing is Standing.NAME_TAKEN or view.changed:
            times = self._blocked[key] = self._blocked.get(key, -1) + 1
            waits.append(min(LONGEST, LOOK_AGAIN * 2 ** min(times, 10)))
        else:
            self._blocked.pop(key, None)
            if view.plan.standing is Standing.PENDING:
                waits.append(_patience(view))
        return min((wait for wait in waits if wait is not None), default=None)

    def _look(self, key: RunKey, run: Object) -> _View:
        children = self._store.children(key)
        read = read_manifest(run)
        status = run.get("status") or {}
        live = self.lives.get(key)
        restarts = int((status.get("usage") or {}).get("restarts") or 0)
        if live is not None and live.restarts is not None:
            restarts = max(restarts, live.restarts)
        seen = run_seen(
            run,
            read,
            list(children.jobs.values()),
            [pod for pod in children.pods.values() if pod.run_uid == run["metadata"]["uid"]],
            service=children.service,
            claim=children.claim,
            restarts=restarts,
            now=self._clock(),
        )
        plan = plan_run(seen)
        own = [facts.identity for facts in children.jobs.values() if facts.seen.owner == seen.uid]
        began_as = status.get("identity") or next((text for text in own if text), read.identity)
        view = _View(run, read, children, seen, plan, str(began_as))
        if view.changed and any(isinstance(action, CreateAttempt) for action in plan.actions):
            return replace(view, plan=replace(plan, actions=(), standing=Standing.REFUSED))
        return view

    async def _carry_out(self, key: RunKey, view: _View) -> None:
        for action in view.plan.actions:
            _log.info("%s: %s", key, action)
            await self._act(key, view, action)

    async def _act(self, key: RunKey, view: _View, action: RunAction) -> None:
        run, uid = view.run, view.seen.uid
        match action:
            case CreateService():
                await self._create(key, SERVICE, service_of(run), uid)
            case CreateClaim():
                assert view.read.manifest is not None
                claim = claim_of(run, view.read.manifest, self._settings)
                await self._create(key, CLAIM, claim, uid)
            case CreateAttempt(number):
                await self._create_attempt(key, view, number)
            case DeleteJob(name, job_uid):
                left = await self._kube.delete(JOB, key.namespace, name, job_uid, "Foreground")
                if left is None:
                    self._store.remove(JOB, key.namespace, name, job_uid)
                else:
                    self._store.put(JOB, left)
            case DeleteRun():
                await self._kube.delete(RUN, key.namespace, key.name, uid, "Background")
                self._store.remove(RUN, key.namespace, key.name, uid)

    async def _create_attempt(self, key: RunKey, view: _View, number: int) -> None:
        """Credentials and Job of an attempt, once the API itself has said that nothing stands against it.

        What is known may be old; two trainers of one run must never be. The number is the one after that on
        record, so that whoever reads the record knows the names of all Jobs that there can be.
        """
        verified = await self._verified(key, view, number)
        if verified is None:
            return
        run, manifest = verified.run, verified.read.manifest
        assert manifest is not None
        head = run["metadata"]
        if self._settings.network_policies:
            await self._create(key, NETWORK_POLICY, network_policy_of(run, self._settings), head["uid"])
        try:
            files = await self._credentials.files(RunOnBus(key.namespace, key.name, head["uid"]), number)
        except BusError as error:
            text = f"the bus cannot be prepared: {error}; the run starts once it is there"
            raise _RefusalError(Trouble("BusUnavailable", text)) from error
        await self._create(key, SECRET, secret_of(run, number, files), head["uid"])
        job = job_of(run, manifest, number, verified.read.identity, self._settings)
        await self._create(key, JOB, job, head["uid"])

    async def _verified(self, key: RunKey, view: _View, number: int) -> _View | None:
        """The view by what the API says now, where an attempt still follows from it."""
        uid = view.seen.uid
        run, jobs, pods = await self._fresh.run(key, uid)
        if run is None or run["metadata"]["uid"] != uid:
            self._store.remove(RUN, key.namespace, key.name, uid)
            if run is not None:
                self._store.put(RUN, run)
            return None
        self._store.put(RUN, run)
        self._store.replace_of(key, JOB, jobs)
        self._store.replace_of(key, POD, pods)
        now = self._look(key, self._store.run(key) or run)
        if CreateAttempt(number) not in now.plan.actions:
            return None
        return now

    async def _create(self, key: RunKey, kind: Kind, body: Object, uid: str) -> None:
        name = body["metadata"]["name"]
        try:
            made = await self._kube.create(kind, body)
        except AlreadyThereError:
            if kind in _NOT_WATCHED:
                return  # of this very attempt, by its name; the operator may not read it
            found = await self._kube.get(kind, key.namespace, name)
            if found is None:
                raise UnavailableError(f"{kind.name} {name}", 0, "Gone", "it was there and is gone") from None
            self._store.put(kind, found, key)
            if controller_of(found) != uid:
                raise _RefusalError(_taken(kind, name)) from None
            return
        except RefusedError as error:
            raise _RefusalError(trouble_of_error(f"{kind.name} {name}", error)) from error
        if kind not in _NOT_WATCHED:
            self._store.put(kind, made, key)

    async def _trouble(self, key: RunKey, view: _View) -> Trouble | None:
        """What keeps the run from moving, as far as it can be seen."""
        if view.plan.standing is Standing.NAME_TAKEN:
            await self._look_at_names(key, view)
            return None
        if view.plan.standing not in (Standing.PENDING, Standing.RUNNING, Standing.STARTING):
            return None
        job = _current(view)
        pods = [pod for pod in view.children.pods.values() if job is not None and pod.job == job.seen.uid]
        found = trouble_of_pods(pods)
        if found is not None or job is None or pods:
            return found
        if job.seen.active == 0 and view.seen.now - job.seen.created >= NO_PODS_SECONDS:
            uid, asked, known = self._asked.get(key, ("", 0.0, None))
            if uid != job.seen.uid and view.seen.now - job.seen.created > 3 * NO_PODS_SECONDS:
                # Of a process before this one: not all are asked at once at a start.
                self._asked[key] = (job.seen.uid, view.seen.now, _said_before(view))
                return self._asked[key][2]
            if uid == job.seen.uid and view.seen.now - asked < _patience(view):
                return known
            warnings = await self._fresh.warnings_of_job(key.namespace, job.seen.uid)
            self._asked[key] = (job.seen.uid, view.seen.now, trouble_of_events(warnings))
            return self._asked[key][2]
        return None

    async def _look_at_names(self, key: RunKey, view: _View) -> None:
        """See whether what has the run's name is still there: no event tells of what is not Esper's."""
        for job in view.seen.jobs:
            if job.owner != view.seen.uid:
                found = await self._kube.get(JOB, key.namespace, job.name)
                if found is None or found["metadata"]["uid"] != job.uid:
                    self._store.remove(JOB, key.namespace, job.name, job.uid)

    def _say(self, key: RunKey, view: _View, trouble: Trouble | None) -> None:
        """Have the status written where it is not so already."""
        live = self.lives.get(key)
        refusal = None
        if view.changed:
            refusal = Trouble(
                "Changed",
                "spec.host, spec.task or spec.training.randomSeed is not what this run began with; put it "
                "back, or make a new run under another name. What runs already goes on as it began",
            )
        elif trouble is not None and trouble.reason in _NOT_ACCEPTED:
            refusal, trouble = trouble, None
        facts = Facts(
            view.run,
            view.read,
            view.seen,
            view.plan,
            _current(view),
            live,
            trouble,
            refusal,
            view.began_as,
            self._served(view.read.manifest),
        )
        status = status_of(facts)
        notices: list[Notice] = []
        after = []
        if live is not None:
            notices, after = list(live.notices), list(live.after)
            live.notices.clear()
            live.after.clear()
        before = view.run.get("status") or {}
        if status == before and not notices and not after and not self._writer.is_waiting(key):
            return
        told = _transition(before, status)
        self._writer.offer(
            key,
            view.seen.uid,
            None if status == before else status,
            urgent=_without_live(status) != _without_live(before),
            notices=[*([told] if told is not None else []), *notices],
            after=after,
        )


class _RefusalError(Exception):
    """A child cannot be made as things are."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


_NOT_WATCHED = (SECRET, NETWORK_POLICY)
"""Kinds of children that are made and not looked at: their names hold the run's uid."""
_NOT_ACCEPTED = ("NameTaken", "Refused")
_LIVE_FIELDS = ("progress", "parameters", "seeds", "seedsSummary", "adaptations", "checkpoint")


def _said_before(view: _View) -> Trouble | None:
    """The trouble of a Job without pods that the status tells of."""
    for item in (view.run.get("status") or {}).get("conditions") or ():
        if item["type"] == "Degraded" and item["status"] == "True" and item["reason"] in OF_EVENTS:
            return Trouble(item["reason"], item.get("message", ""))
    return None


def _patience(view: _View) -> float:
    """Seconds until a Job without pods is asked why again: the older it is, the less often."""
    job = _current(view)
    age = 0.0 if job is None else view.seen.now - job.seen.created
    return min(LONGEST, max(NO_PODS_SECONDS, age / 2))


def _ends(view: _View) -> bool:
    """Whether the end is to be recorded before anything is removed, so that nothing starts anew after it."""
    return view.seen.ended is None and view.plan.standing in (Standing.COMPLETE, Standing.FAILED)


def _current(view: _View) -> JobFacts | None:
    """The Job of the last attempt."""
    own = [facts for facts in view.children.jobs.values() if facts.seen.owner == view.seen.uid]
    return max(own, key=lambda facts: facts.seen.attempt, default=None)


def _taken(kind: Kind, name: str) -> Trouble:
    return Trouble(
        "NameTaken",
        f"the {kind.name} {name} belongs to somebody else; delete it, or give the run another name",
    )


def _without_live(status: Object) -> Object:
    """A status without what only says how far the run is."""
    rest = {name: value for name, value in status.items() if name not in _LIVE_FIELDS}
    conditions = [
        {name: value for name, value in condition.items() if name != "message"}
        for condition in rest.get("conditions") or ()
    ]
    return rest | {"conditions": conditions}


def _transition(before: Object, after: Object) -> Notice | None:
    """The event of a change of phase, or of a new trouble."""
    old = {item["type"]: item for item in before.get("conditions") or ()}
    changed = [
        item
        for item in after["conditions"]
        if (item["status"], item["reason"])
        != (old.get(item["type"], {}).get("status"), old.get(item["type"], {}).get("reason"))
    ]
    for kind in ("Failed", "Complete", "Degraded", "Accepted", "Suspended", "Running", "QuotaReserved"):
        for item in changed:
            mended = kind == "Degraded" and item["status"] == "False"
            if item["type"] != kind or mended or item["status"] == "Unknown":
                continue
            bad = kind in ("Failed", "Degraded") or (kind == "Accepted" and item["status"] == "False")
            text = item.get("message") or f"{kind}: {item['status']}"
            identity = f"{kind}-{item['status']}-{item['lastTransitionTime']}-{after.get('attempt', 0)}"
            return Notice(identity, item["reason"], text, bad)
    return None
