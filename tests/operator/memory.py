"""An API server in memory: names, uids, versions, owners, foreground deletion, faults at chosen calls.

It plays what the operator relies on. The Job controller and the garbage collector are steps of their own, so
that a test can put anything between them.
"""

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from esper_operator import kube
from esper_operator.credentials import RunOnBus
from esper_operator.kube import (
    JOB,
    POD,
    AlreadyThereError,
    ConflictError,
    ExpiredError,
    Kind,
    Listed,
    NotThereError,
    Object,
    Propagation,
    UnavailableError,
)
from esper_runtime.contracts import BusError

Objects: TypeAlias = list[Object]

BUS = Kind("", "Bus", "")
"""Stands for the bus among the calls."""
START = "2026-01-01T00:00:00Z"


class Killed(BaseException):
    """The operator's process ends here."""


@dataclass
class Fault:
    """What happens at a call: before it is carried out, or after, when the answer is lost."""

    error: BaseException | None
    after: bool = False
    deed: Callable[[], None] | None = None
    """What somebody else does in between."""


@dataclass
class Call:
    """One call that was made."""

    verb: str
    kind: str
    name: str

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "watch", "let in")


Calls: TypeAlias = list[Call]


@dataclass
class Cluster:
    """Objects by kind, namespace and name."""

    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)
    listeners: list[Callable[[str, str, Object], None]] = field(default_factory=list)
    refuse: Callable[[str, Kind, Object], BaseException | None] | None = None
    made: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, name and owner's uid of all that was ever created."""
    let_in: set[tuple[str, int]] = field(default_factory=set)
    """Uid and attempt of the runs that have got credentials."""
    most_trainers: int = 0
    gone: list[tuple[str, Object]] = field(default_factory=list)
    """Kind and last state of all that was ever deleted."""
    remembers: int = 0
    """Of deletions before this version nothing is known any more."""

    def __post_init__(self) -> None:
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    # The verbs of `Kube`.

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        with self._call("get", kind, name):
            return _copied(self.objects.get((kind.name, namespace, name)))

    async def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Listed:
        with self._call("list", kind, ""):
            wanted = [_choice(part) for part in re.split(r",(?![^(]*\))", labels) if part]
            found = [
                body
                for (name, space, _), body in self.objects.items()
                if name == kind.name and namespace in (None, space) and _has(body, wanted)
            ]
            for part in filter(None, fields.split(",")):
                path, _, value = part.partition("=")
                found = [body for body in found if _at(body, path) == value]
            return Listed(_copied(found), str(next(self._versions)))

    async def pages(self, kind: Kind, namespace: str | None, labels: str = "") -> AsyncIterator[Listed]:
        listed = await self.list(kind, namespace, labels)
        half = len(listed.items) // 2
        yield Listed(listed.items[:half], listed.version)
        yield Listed(listed.items[half:], listed.version)

    async def create(self, kind: Kind, body: Object) -> Object:
        with self._call("create", kind, body["metadata"]["name"], body):
            return _copied(self.add(kind, body))

    async def apply(self, kind: Kind, body: Object) -> Object:
        with self._call("apply", kind, body["metadata"]["name"], body):
            place = (kind.name, body["metadata"]["namespace"], body["metadata"]["name"])
            if place not in self.objects:
                return _copied(self.add(kind, body))
            old = self.objects[place]
            return self._changed(kind, {**old, "spec": _copied(body.get("spec"))})

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        with self._call("apply_status", kind, body["metadata"]["name"], body):
            head = body["metadata"]
            old = self.objects.get((kind.name, head["namespace"], head["name"]))
            if old is None:
                raise NotThereError("apply", 404, "NotFound", head["name"])
            if head.get("resourceVersion") not in (None, old["metadata"]["resourceVersion"]):
                raise ConflictError("apply", 409, "Conflict", "another version")
            if old.get("status") == body["status"]:
                return _copied(old)
            return self._changed(kind, {**old, "status": _copied(body["status"])})

    async def replace(self, kind: Kind, body: Object) -> Object:
        with self._call("replace", kind, body["metadata"]["name"], body):
            head = body["metadata"]
            old = self.objects.get((kind.name, head["namespace"], head["name"]))
            if old is None:
                raise NotThereError("replace", 404, "NotFound", head["name"])
            if old["metadata"]["resourceVersion"] != head.get("resourceVersion"):
                raise ConflictError("replace", 409, "Conflict", "another version")
            return self._changed(kind, _copied(body))

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: Propagation
    ) -> Object | None:
        with self._call("delete", kind, name):
            body = self.objects.get((kind.name, namespace, name))
            if body is None or body["metadata"]["uid"] != uid:
                return None
            return self.remove(kind, namespace, name, propagation)

    async def deleted(self, kind: Kind, namespace: str | None, since: str) -> Objects:
        with self._call("watch", kind, ""):
            if int(since) < self.remembers:
                raise ExpiredError("watch", 410, "Expired", "too old resource version")
            return [
                _copied(body)
                for name, body in self.gone
                if name == kind.name
                and namespace in (None, body["metadata"]["namespace"])
                and int(body["metadata"]["resourceVersion"]) > int(since)
            ]

    # The bus's side of a run, as `Credentials` has it.

    async def files(self, run: RunOnBus, attempt: int) -> dict[str, str]:
        try:
            with self._call("let in", BUS, run.name):
                self.let_in.add((run.uid, attempt))
        except UnavailableError as error:
            raise BusError(str(error)) from error
        return {}

    # What people, controllers and the tests do.

    def add(self, kind: Kind, body: Object) -> Object:
        head = _copied(body["metadata"])
        place = (kind.name, head["namespace"], head["name"])
        if place in self.objects:
            raise AlreadyThereError("create", 409, "AlreadyExists", head["name"])
        head |= {
            "uid": f"{next(self._uids):08x}-0000",
            "resourceVersion": str(next(self._versions)),
            "creationTimestamp": START,
            "generation": 1,
        }
        made = {"apiVersion": kind.version, "kind": kind.name, **_copied(body), "metadata": head}
        self.objects[place] = made
        owners = [owner["uid"] for owner in head.get("ownerReferences", ()) if owner.get("controller")]
        self.made.append((kind.name, head["name"], owners[0] if owners else ""))
        self._tell("ADDED", kind, made)
        return made

    def change(self, kind: Kind, name: str, namespace: str = "team", **parts: Any) -> Object:
        """Replace parts of an object; a changed spec counts as a new generation."""
        old = self.objects[kind.name, namespace, name]
        new = {**old, **_copied(parts)}
        if new.get("spec") != old.get("spec"):
            new["metadata"] = {**new["metadata"], "generation": old["metadata"]["generation"] + 1}
        return self._changed(kind, new)

    def remove(
        self, kind: Kind, namespace: str, name: str, propagation: Propagation = "Background"
    ) -> Object | None:
        body = self.objects[kind.name, namespace, name]
        if propagation == "Foreground" and kind is JOB:
            if body["metadata"].get("deletionTimestamp"):
                return _copied(body)
            return self._changed(kind, {**body, "metadata": {**body["metadata"], "deletionTimestamp": START}})
        del self.objects[kind.name, namespace, name]
        gone = _copied(body)
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell("DELETED", kind, gone)
        return None

    def of(self, kind: Kind) -> Objects:
        """All objects of a kind."""
        return [body for (name, _, _), body in self.objects.items() if name == kind.name]

    def one(self, kind: Kind, name: str, namespace: str = "team") -> Object:
        """An object."""
        return self.objects[kind.name, namespace, name]

    def run_jobs(self, *, end: str | None = None, failed: int = 0) -> None:
        """The Job controller and the kubelet: pods of Jobs that may run are there and ready.

        Args:
            end: a condition that all Jobs with ready pods get.
            failed: pods that have failed and count.
        """
        for job in list(self.of(JOB)):
            head, spec = job["metadata"], job["spec"]
            if (
                head.get("deletionTimestamp")
                or spec.get("suspend")
                or "parallelism" not in spec
                or job.get("status", {}).get("conditions")
            ):
                continue
            names = [f"{head['name']}-{index}-x" for index in range(spec["parallelism"])]
            for name in names:
                if ("Pod", head["namespace"], name) not in self.objects:
                    template = _copied(spec["template"])
                    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": head["name"]}
                    template["metadata"] |= {
                        "name": name,
                        "namespace": head["namespace"],
                        "ownerReferences": [{**owner, "uid": head["uid"], "controller": True}],
                    }
                    self.add(POD, {**template, "status": {"phase": "Running"}})
            self._count_trainers()
            status = {"active": len(names), "ready": len(names), "failed": failed}
            if end is not None:
                status = {"failed": failed, "conditions": [{"type": end, "status": "True", "reason": "R"}]}
            self.change(JOB, head["name"], head["namespace"], status=status)

    def collect(self) -> None:
        """The garbage collector: what lost its owner goes, and a Job that is deleted after its pods."""
        for _ in range(4):
            living = {body["metadata"]["uid"] for body in self.objects.values()}
            deleting = {
                body["metadata"]["uid"] for body in self.of(JOB) if body["metadata"].get("deletionTimestamp")
            }
            for (kind, space, name), body in list(self.objects.items()):
                owners = [owner["uid"] for owner in body["metadata"].get("ownerReferences", ())]
                orphaned = owners and not any(uid in living for uid in owners)
                if (orphaned or any(uid in deleting for uid in owners)) and (
                    kind,
                    space,
                    name,
                ) in self.objects:
                    del self.objects[kind, space, name]
                    gone = _copied(body)
                    gone["metadata"]["resourceVersion"] = str(next(self._versions))
                    self._tell("DELETED", _KINDS.get(kind), gone)
            for job in list(self.of(JOB)):
                uid = job["metadata"]["uid"]
                mine = [pod for pod in self.of(POD) if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
                if job["metadata"].get("deletionTimestamp") and not mine:
                    self.remove(JOB, job["metadata"]["namespace"], job["metadata"]["name"])

    def writes(self) -> "Calls":
        """The calls that write."""
        return [call for call in self.calls if call.writes]

    def _count_trainers(self) -> None:
        """How many Jobs of one run have living pods at a time, at most."""
        alive: dict[str, set[str]] = {}
        for pod in self.of(POD):
            labels = pod["metadata"]["labels"]
            if "esper.dev/run-uid" not in labels:
                continue
            owner = pod["metadata"]["ownerReferences"][0]["uid"]
            alive.setdefault(labels["esper.dev/run-uid"], set()).add(owner)
        self.most_trainers = max([self.most_trainers, *(len(owners) for owners in alive.values())])

    def _changed(self, kind: Kind, body: Object) -> Object:
        body = _copied(body)
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[kind.name, body["metadata"]["namespace"], body["metadata"]["name"]] = body
        self._tell("MODIFIED", kind, body)
        return _copied(body)

    def _tell(self, what: str, kind: Kind | None, body: Object) -> None:
        if kind is not None and what == "DELETED":
            self.gone.append((kind.name, _copied(body)))
        if kind is not None:
            for listener in self.listeners:
                listener(what, kind.name, _copied(body))

    def _call(self, verb: str, kind: Kind, name: str, body: Object | None = None) -> "_Calling":
        self.calls.append(Call(verb, kind.name, name))
        refused = None if self.refuse is None or body is None else self.refuse(verb, kind, body)
        if refused is not None:
            raise refused
        return _Calling(self.faults.get(len(self.calls)))


class _Calling:
    """A call with its fault."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault = fault

    def __enter__(self) -> None:
        if self._fault is not None and not self._fault.after:
            self._strike(self._fault)

    def __exit__(self, *_: object) -> None:
        if self._fault is not None and self._fault.after:
            self._strike(self._fault)

    @staticmethod
    def _strike(fault: Fault) -> None:
        if fault.deed is not None:
            fault.deed()
        if fault.error is not None:
            raise fault.error


def _copied(body: Any) -> Any:
    """As it comes from the API server: in JSON, and nobody else's."""
    return json.loads(json.dumps(body))


def lost() -> UnavailableError:
    """A call without an answer."""
    return UnavailableError("call", 0, "Timeout", "no answer")


def _choice(part: str) -> tuple[str, list[str]]:
    """A label's name and the values that a part of a selector allows; none: any."""
    if found := re.fullmatch(r"(\S+) in \((.*)\)", part):
        return found[1], found[2].split(",")
    name, equal, value = part.partition("=")
    return name, [value] if equal else []


def _has(body: Object, wanted: list[tuple[str, list[str]]]) -> bool:
    labels = body["metadata"].get("labels") or {}
    return all(name in labels and (not values or labels[name] in values) for name, values in wanted)


def _at(body: Object, path: str) -> Any:
    """What an object has at a path with dots."""
    for name in path.split("."):
        body = body.get(name) or {}
    return body


_KINDS = {kind.name: kind for kind in vars(kube).values() if isinstance(kind, Kind)}
