"""What was last seen of runs and their children: fed by events, by lists and by what calls answered.

It only goes forward: an event that is older than what is known changes nothing, and what was deleted does
not come back. Nothing irreversible is done on its word alone.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from esper_operator.kube import CLAIM, JOB, POD, RUN, SERVICE, Kind, Listed, Object
from esper_operator.names import RUN_LABEL, RunKey, controller_of, key_of
from esper_operator.observe import JobFacts, PodSeen, job_facts, pod_seen
from esper_runtime.contracts import canonical_json

REMEMBERED = 20_000
"""Uids of this many last deletions are known."""

CHILD_KINDS = (JOB, POD, SERVICE, CLAIM)


@dataclass
class _Known:
    """One object, with the version that is known of it."""

    uid: str
    version: int
    run: RunKey
    seen: JobFacts | PodSeen | str | Object
    chosen: bool
    """Whether the selectors of lists and watches choose it."""


@dataclass
class Children:
    """What exists under a run's names.

    Attributes:
        jobs: by name.
        pods: by name.
        service: uid of the controller owner of the Service; empty where it has none, None without one.
        claim: the same of the claim.
    """

    jobs: dict[str, JobFacts] = field(default_factory=dict)
    pods: dict[str, PodSeen] = field(default_factory=dict)
    service: str | None = None
    claim: str | None = None


class Store:
    """The objects that the operator knows of."""

    def __init__(self) -> None:
        self._known: dict[Kind, dict[tuple[str, str], _Known]] = {kind: {} for kind in (RUN, *CHILD_KINDS)}
        self._of_run: dict[RunKey, dict[Kind, set[str]]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(known) for known in self._known.values())

    def run(self, key: RunKey) -> Object | None:
        """The resource of a run, without what the operator has no use for."""
        known = self._known[RUN].get((key.namespace, key.name))
        return None if known is None else known.seen  # type: ignore[return-value]

    def runs(self) -> list[RunKey]:
        """Keys of all runs."""
        return [known.run for known in self._known[RUN].values()]

    def children(self, key: RunKey) -> Children:
        """What is known under a run's names."""
        found = Children()
        for kind, names in self._of_run.get(key, {}).items():
            for name in names:
                seen = self._known[kind][key.namespace, name].seen
                if isinstance(seen, JobFacts):
                    found.jobs[name] = seen
                elif isinstance(seen, PodSeen):
                    found.pods[name] = seen
                elif kind is SERVICE:
                    found.service = str(seen)
                elif kind is CLAIM:
                    found.claim = str(seen)
        return found

    def put(self, kind: Kind, body: Object, run: RunKey | None = None) -> RunKey | None:
        """Take in an object as it was seen.

        Returns:
            The run that it concerns; None where it says nothing new, or is nobody's.

        Args:
            kind: of the object.
            body: of the object.
            run: the run under one of whose names it was found; else its label says it.
        """
        head = body["metadata"]
        owner = key_of(body) if kind is RUN else run or _run_of(body)
        if owner is None or head["uid"] in self._gone:
            return None
        chosen = kind is RUN or _run_of(body) == owner
        place = (head["namespace"], head["name"])
        version = _number(head.get("resourceVersion"))
        before = self._known[kind].get(place)
        if before is not None and before.version >= version and before.run == owner:
            return None
        if before is not None and before.run != owner:
            self._unlist(kind, place)
        seen = _again(body, before.seen) if kind is RUN and before is not None else None
        self._known[kind][place] = _Known(head["uid"], version, owner, seen or _seen(kind, body), chosen)
        if kind is not RUN:
            self._of_run.setdefault(owner, {}).setdefault(kind, set()).add(head["name"])
        return owner

    def remove(self, kind: Kind, namespace: str, name: str, uid: str) -> RunKey | None:
        """Take in that an object is gone; returns the run that it concerned."""
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        known = self._known[kind].get((namespace, name))
        if known is None or known.uid != uid:
            return None
        self._unlist(kind, (namespace, name))
        return known.run

    def replace_of(self, key: RunKey, kind: Kind, listed: Listed) -> None:
        """Take in a complete list of a run's own children of one kind."""
        for body in listed.items:
            self.put(kind, body)
        names = self._of_run.get(key, {}).get(kind, ())
        there = {body["metadata"]["uid"] for body in listed.items}
        self._remove_others(kind, there, listed.version, [(key.namespace, name) for name in names])

    def remove_others(self, kind: Kind, there: Set[str], version: str, namespace: str | None) -> set[RunKey]:
        """Take in that of a kind nothing else is there.

        Args:
            kind: of the objects.
            there: uids of those that a complete list had.
            version: of that list.
            namespace: that it was of; None for all.

        Returns:
            The runs of what is gone.
        """
        places = [place for place in self._known[kind] if namespace is None or place[0] == namespace]
        return self._remove_others(kind, there, version, places)

    def _remove_others(
        self, kind: Kind, there: Set[str], version: str, places: Iterable[tuple[str, str]]
    ) -> set[RunKey]:
        concerned: set[RunKey | None] = set()
        for place in places:
            known = self._known[kind][place]
            if known.chosen and known.uid not in there and known.version <= _number(version):
                concerned.add(self.remove(kind, *place, known.uid))
        return {key for key in concerned if key is not None}

    def _unlist(self, kind: Kind, place: tuple[str, str]) -> None:
        known = self._known[kind].pop(place)
        kinds = self._of_run.get(known.run)
        if kinds is None:
            return
        kinds.get(kind, set()).discard(place[1])
        if not any(kinds.values()):
            del self._of_run[known.run]


def _run_of(body: Object) -> RunKey | None:
    name = (body["metadata"].get("labels") or {}).get(RUN_LABEL)
    return None if name is None else RunKey(body["metadata"]["namespace"], str(name))


@lru_cache(maxsize=1024)
def _shared(text: bytes) -> Any:
    """A part of a manifest: thousands of runs have the same ones, mostly defaults, and they are kept once."""
    return json.loads(text)


def _number(version: object) -> int:
    """Versions are compared as numbers, which they are on every API server there is."""
    text = str(version or "0")
    return int(text) if text.isdigit() else 0


def _seen(kind: Kind, body: Object) -> JobFacts | PodSeen | str | Object:
    if kind is JOB:
        return job_facts(body)
    if kind is POD:
        return pod_seen(body)
    if kind is RUN:
        spec = body.get("spec") or {}
        return _run(body, {name: _shared(canonical_json(part)) for name, part in spec.items()})
    return controller_of(body) or ""


def _run(body: Object, spec: Object) -> Object:
    head = body["metadata"]
    kept = ("name", "namespace", "uid", "generation", "resourceVersion", "deletionTimestamp")
    return {
        "apiVersion": RUN.version,
        "kind": RUN.name,
        "metadata": {name: head[name] for name in kept if name in head},
        "spec": spec,
        "status": body.get("status") or {},
    }


def _again(body: Object, before: Any) -> Object | None:
    """A run of which only the status is another one than before; None where more is."""
    new, old = body["metadata"], before["metadata"]
    same = (new["uid"], new.get("generation")) == (old["uid"], old.get("generation"))
    return _run(body, before["spec"]) if same and "generation" in new else None
