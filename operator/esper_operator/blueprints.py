"""The pass over one blueprint that a person has applied: observe, plan, carry out, say.

Deleting the resource archives the blueprint in the library: only a deletion that was seen does, and only once
no other resource has the same graph. That one is absent orders nothing. What a process before this one did
not live to carry out is told again by the API server, for as long as it remembers (`Forge.catch_up`).
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError

from esper_operator.kube import BLUEPRINT, Kube, Object
from esper_operator.live import Notice
from esper_operator.names import BlueprintKey, shows_library
from esper_operator.objects import Objects, living
from esper_operator.office import Office
from esper_operator.writer import StatusWriter
from esper_runtime.blueprint import canonical_id, parse_blueprint, usual_class
from esper_runtime.contracts import (
    Blueprint,
    BlueprintError,
    BusError,
    KernelInterface,
    KernelRecord,
    Origin,
    Pipeline,
    canonical_json,
)
from esper_runtime.contracts.resources import BlueprintStatus
from esper_runtime.planning import (
    DELETED,
    BlueprintAction,
    BlueprintPlan,
    BlueprintSeen,
    Enter,
    LibraryFacts,
    LibraryState,
    Wish,
    Workplaces,
    plan_blueprint,
)

LOOK_AGAIN = 5.0
"""Seconds until the library is asked again whether it has taken in what was said."""
AWAY_SECONDS = 10.0
"""A library that does not answer for so long is said to be away."""
SAID_SECONDS = 30.0
"""What was said to the library is not said again so soon, though it is not seen there yet."""
_ORIGIN = 128
"""Characters of an entry's origin at most."""
_SYSTEM = frozenset(origin.value for origin in Origin if origin is not Origin.USER)
"""Origins of blueprints that no resource rules."""
_EXACT = frozenset({Pipeline.STANDARD, Pipeline.AGGRESSIVE})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """What a blueprint's spec says, or why it is refused."""

    graph: Blueprint | None
    refusal: str = ""
    id: str | None = None
    pipelines: tuple[Pipeline, ...] = ()
    slots: tuple[tuple[Pipeline, KernelInterface], ...] = ()


@dataclass(frozen=True)
class _Departed:
    """A resource that was deleted."""

    uid: str
    id: str


class Blueprints:
    """Carries out people's blueprints.

    Args:
        kube: the API.
        objects: what was seen last.
        writer: of statuses.
        office: the library; None for a release without a bus.
        places: where kernels are made, as it is known.
        watched: namespaces whose blueprints are carried out; empty: all.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        kube: Kube,
        objects: Objects,
        writer: StatusWriter,
        office: Office | None,
        places: Callable[[], Workplaces],
        watched: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube, self._objects, self._writer = kube, objects, writer
        self._office, self._places, self._watched, self._clock = office, places, watched, clock
        self._departed: dict[BlueprintKey, list[_Departed]] = {}
        self._told: dict[BlueprintKey, object] = {}
        self._away_since: float | None = None
        self._said: dict[str, tuple[str | None, float]] = {}
        """What was said to which library, and when: ids of graphs and kernels."""
        self._index: tuple[object, dict[str, list[KernelRecord]]] = (None, {})

    def stale(self) -> list[BlueprintKey]:
        """Blueprints of which library or pools say something else than at their last pass."""
        places = self._places()
        found = []
        for body in self._peoples():
            key = BlueprintKey(body["metadata"]["namespace"], body["metadata"]["name"])
            if self._told.get(key) != self._signature(body, places):
                found.append(key)
        return found

    def is_peoples(self, body: Object) -> bool:
        """Whether a resource is a person's, in a namespace that is looked after."""
        return not shows_library(body) and (
            not self._watched or body["metadata"]["namespace"] in self._watched
        )

    def _peoples(self) -> list[Object]:
        return [body for body in living(self._objects.all(BLUEPRINT)) if self.is_peoples(body)]

    def _signature(self, body: Object, places: Workplaces) -> object:
        facts = self.facts(read_blueprint(body).id)
        archived = None if facts.entry is None else facts.entry.archived
        kernels = tuple((record.kernel, record.state, record.reason) for record in facts.kernels)
        return (
            facts.state,
            facts.incarnation,
            facts.entry is None,
            archived,
            kernels,
            len(facts.reports),
            places,
        )

    def depart(self, key: BlueprintKey, body: Object) -> None:
        """A deletion of a resource that was known was seen."""
        read = read_blueprint(body)
        if read.id is not None and self.is_peoples(body):
            self._departed.setdefault(key, []).append(_Departed(body["metadata"]["uid"], read.id))

    @property
    def is_departing(self) -> bool:
        """Whether a deletion that was seen is not carried out yet."""
        return bool(self._departed)

    def is_anybodys(self, identity: str) -> bool:
        """Whether a person's resource has this graph."""
        return any(read_blueprint(body).id == identity for body in self._peoples())

    def asks_for_sites(self) -> bool:
        """Whether a blueprint is to be forged, so that one must know what the pools' nodes are."""
        if self._office is None or not self._office.ready:
            return False
        return any(read_blueprint(body).id is not None for body in self._peoples())

    async def reconcile(self, key: BlueprintKey) -> float | None:
        """One pass.

        Raises:
            KubeError: the API server did not answer; the pass is to be made again.
            BusError: a deletion cannot be told to the library while it is away.
        """
        await self._archive_departed(key)
        body = self._objects.get(BLUEPRINT, key.namespace, key.name)
        if body is None:
            self._writer.forget(key)
            self._told.pop(key, None)
            return None
        if body["metadata"].get("deletionTimestamp") is not None or not self.is_peoples(body):
            return None
        read = read_blueprint(body)
        plan = self._plan(body, read)
        done: tuple[BlueprintAction, ...] = ()
        while plan.actions and plan.actions != done:  # what was done may not be seen at once
            done = plan.actions
            try:
                await self._carry_out(key, read, plan)
            except BusError as error:
                _log.warning("%s: the library does not take it for now: %s", key, error)
            plan = self._plan(body, read)
        self._told[key] = self._signature(body, self._places())
        self._say(key, body, plan.status)
        if self.facts(read.id).state is LibraryState.UNASKED:
            return AWAY_SECONDS
        return LOOK_AGAIN if plan.actions else None

    def _plan(self, body: Object, read: Read) -> BlueprintPlan:
        return plan_blueprint(blueprint_seen(body, read), self.facts(read.id), self._places(), self._clock())

    def facts(self, identity: str | None) -> LibraryFacts:
        """What the library says of a blueprint."""
        office = self._office
        if office is None:
            return LibraryFacts(LibraryState.NONE)
        if not office.ready:
            now = self._clock()
            self._away_since = now if self._away_since is None else self._away_since
            away = now - self._away_since >= AWAY_SECONDS
            return LibraryFacts(LibraryState.AWAY if away else LibraryState.UNASKED, office.incarnation)
        self._away_since = None
        records = office.records()
        if self._index[0] is not records:
            by_blueprint: dict[str, list[KernelRecord]] = {}
            for record in records.values():
                by_blueprint.setdefault(record.spec.blueprint, []).append(record)
            self._index = records, by_blueprint
        kernels = self._index[1].get(identity or "", [])
        reports = [report for report in office.reports() if report.blueprint == identity]
        entry = office.blueprints().get(identity or "")
        return LibraryFacts(LibraryState.THERE, office.incarnation, entry, kernels, reports)

    async def _carry_out(self, key: BlueprintKey, read: Read, plan: BlueprintPlan) -> None:
        assert self._office is not None
        assert read.graph is not None
        for action in plan.actions:
            match action:
                case Enter(identity, reinstate):
                    if not self._is_new(identity):
                        continue
                    origin = f"{key.namespace}/{key.name}"[:_ORIGIN]
                    with self._unsaid_if_lost(identity):
                        await self._office.enter(read.graph, origin, reinstate=reinstate)
                    _log.info("%s: entered in the library as %s", key, identity)
                case Wish(spec):
                    kernel = spec.kernel_id
                    if not self._is_new(kernel):
                        continue
                    with self._unsaid_if_lost(kernel):
                        if await self._office.wish(spec):
                            _log.info("%s: kernel %s is wished for", key, kernel)

    def _is_new(self, identity: str) -> bool:
        """Whether something was not said to this library just now; from here on it was.

        Before it is said: another resource with the same graph may be looked at meanwhile.
        """
        assert self._office is not None
        library, now = self._office.incarnation, self._clock()
        said = self._said.get(identity)
        if said is not None and said[0] == library and now - said[1] < SAID_SECONDS:
            return False
        self._said[identity] = library, now
        return True

    @contextlib.contextmanager
    def _unsaid_if_lost(self, identity: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._said.pop(identity, None)
            raise

    async def _archive_departed(self, key: BlueprintKey) -> None:
        for gone in list(self._departed.get(key, ())):
            await self._archive(key, gone)
            self._departed[key].remove(gone)
        if not self._departed.get(key):
            self._departed.pop(key, None)

    async def _archive(self, key: BlueprintKey, gone: _Departed) -> None:
        if self.is_anybodys(gone.id) or self._office is None:
            return
        found = await self._kube.get(BLUEPRINT, key.namespace, key.name)
        if found is not None:
            if found["metadata"]["uid"] == gone.uid:
                self._objects.restore(BLUEPRINT, found)
            else:
                self._objects.put(BLUEPRINT, found)
            if self.is_anybodys(gone.id):
                return
        if not self._office.ready:
            raise BusError(f"{gone.id} is archived once the library is back")
        entry = self._office.blueprints().get(gone.id)
        if entry is None or entry.archived is not None or entry.origin in _SYSTEM:
            return
        self._said.pop(gone.id, None)  # a new resource brings it back at once
        await self._office.archive(gone.id, f"{DELETED}{key.namespace}/{key.name}")
        _log.info("%s: archived, as its last resource was deleted", gone.id)

    def _say(self, key: BlueprintKey, body: Object, status: BlueprintStatus) -> None:
        after = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        before = body.get("status") or {}
        if after == before and not self._writer.is_waiting(key):
            return
        told = _transition(before, after)
        self._writer.offer(
            key,
            body["metadata"]["uid"],
            None if after == before else after,
            urgent=True,
            notices=[] if told is None else [told],
        )


def blueprint_seen(body: Object, read: Read, *, mirrored: bool = False) -> BlueprintSeen:
    """A blueprint's resource as the planner sees it."""
    return BlueprintSeen(
        graph=read.graph,
        refusal=read.refusal,
        id=read.id,
        pipelines=read.pipelines,
        slots=dict(read.slots),
        generation=int(body["metadata"].get("generation") or 0),
        before=parsed_status(body),
        mirrored=mirrored,
    )


def parsed_status(body: Object) -> BlueprintStatus:
    """The status that a resource has; an empty one where it has none, or one that is not the operator's."""
    try:
        return BlueprintStatus.model_validate_json(json.dumps(body.get("status") or {}))
    except ValidationError:
        return BlueprintStatus()


def read_blueprint(body: Object) -> Read:
    """What the static check says of a resource."""
    return _read(canonical_json(body.get("spec") or {}))


@lru_cache(maxsize=2048)
def _read(spec: bytes) -> Read:
    data = json.loads(spec)
    try:
        graph = parse_blueprint(data.get("graph"))
        pipelines = tuple(Pipeline(name) for name in data.get("pipelines") or ("fast",))
    except BlueprintError as error:
        return Read(
            None, f"spec.graph: {error}. Blueprints do not change: apply the mended one under another name"
        )
    except ValueError as error:
        known = ", ".join(pipeline.value for pipeline in Pipeline)
        return Read(None, f"spec.pipelines: {error}; allowed: {known}")
    slots = {name: usual_class(graph, exact=name in _EXACT) for name in pipelines}
    known_slots = tuple((name, found) for name, found in slots.items() if found is not None)
    return Read(graph, "", canonical_id(graph), pipelines, known_slots)


def _transition(before: Object, after: Object) -> Notice | None:
    """The event of a new phase."""
    phase = after.get("phase")
    if phase in (None, before.get("phase")):
        return None
    by_type = {item["type"]: item for item in after["conditions"]}
    kind = "Valid" if phase == "Invalid" else "Evaluated"
    said = by_type.get(kind) or by_type.get("Served") or by_type["Valid"]
    identity = f"{phase}-{said['lastTransitionTime']}-{after.get('library', '')}"
    bad = phase in ("Invalid", "Rejected", "Quarantined")
    return Notice(identity, str(phase), said.get("message") or str(phase), bad)
