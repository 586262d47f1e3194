"""The forge's side of the operator on an API server and a library in memory, driven step by step."""

import asyncio
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from esper_operator.forge import KINDS, Forge
from esper_operator.kube import BLUEPRINT, DEPLOYMENT, JOB, KERNEL, POD, Kind, Object, UnavailableError
from esper_operator.names import MADE, BlueprintKey, ForgeKey, Key
from esper_operator.pools import Pool
from esper_operator.settings import Settings
from esper_operator.writer import StatusWriter
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    BusError,
    Check,
    FieldReport,
    KernelRecord,
    KernelSpec,
    KernelState,
    Pipeline,
    Target,
    ValidationReport,
    Work,
    WorkerFacts,
)
from esper_runtime.urza import Fault
from tests.operator.memory import Cluster, Killed

LIBRARY = Kind("bus", "Library", "library")
"""Calls of the library are counted among those of the API server, so that a test can stop at any of both."""
CPU = Target(device="cpu", arch="avx512", torch="2.13.0")
FACTS = WorkerFacts(target=CPU, toolchains={Pipeline.FAST: {"builder": "1"}})
POOL = Pool(name="cpu", device="cpu", tezzeret=1, urabrask=1)
SETTINGS = Settings(pools=(POOL,))
SECRETS = {role: f"esper-{role}-1" for role in ("tezzeret", "urabrask", "karn")}
MLP = catalogue()["mlp"]
_SEEN = (KernelState.PENDING, KernelState.PENDING_BENCHMARK)


class MemoryLibrary:
    """A library and its queues; workers are played by `ForgeWorld.work`."""

    def __init__(self, cluster: Cluster) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.ready = True
        self.incarnation: str | None = "one"
        self.entries: dict[str, BlueprintEntry] = {}
        self.kernels: dict[str, KernelRecord] = {}
        self.said: list[FieldReport] = []
        self.entered: Counter[str] = Counter()
        self.hidden: set[str] = set()
        """Ids of what it has taken in and does not show yet."""
        self.ignored: Counter[Fault] = Counter()
        self.ignored_of_runs: Counter[str] = Counter()
        self._cluster = cluster

    def blueprints(self) -> Mapping[str, BlueprintEntry]:
        return {name: entry for name, entry in self.entries.items() if name not in self.hidden}

    def records(self) -> Mapping[str, KernelRecord]:
        return {name: record for name, record in self.kernels.items() if name not in self.hidden}

    def reports(self) -> list[FieldReport]:
        return self.said

    def refused_proposals(self) -> Mapping[str, int]:
        return {}

    def depths(self) -> Mapping[tuple[Work, str], int] | None:
        if not self.ready:
            return None
        found: Counter[tuple[Work, str]] = Counter()
        for record in self.kernels.values():
            if record.state in _SEEN:
                work: Work = "compile" if record.state is KernelState.PENDING else "evaluate"
                found[work, record.spec.target.name] += 1
        return dict(found)

    async def enter(self, graph: Blueprint, origin: str, *, reinstate: bool = False) -> str:
        name = canonical_id(graph)
        with self._cluster._call("enter", LIBRARY, name):
            self._reach()
            known = self.entries.get(name)
            if known is None:
                self.entered[name] += 1
                self.entries[name] = BlueprintEntry(
                    blueprint=name, graph=graph, origin=origin, entered="2026-01-01T00:00:00.000+00:00"
                )
            elif reinstate:
                self.entries[name] = known.model_copy(update={"archived": None})
        return name

    async def archive(self, blueprint: str, reason: str) -> None:
        with self._cluster._call("archive", LIBRARY, blueprint):
            self._reach()
            self.entries[blueprint] = self.entries[blueprint].model_copy(update={"archived": reason})

    async def wish(self, spec: KernelSpec, *, urgent: bool = False) -> bool:
        with self._cluster._call("wish", LIBRARY, spec.kernel_id):
            self._reach()
            new = spec.kernel_id not in self.kernels
            if new:
                self.kernels[spec.kernel_id] = KernelRecord(
                    kernel=spec.kernel_id, spec=spec, state=KernelState.PENDING
                )
            return new

    def lose_everything(self) -> None:
        """The bus's storage is gone."""
        self.entries, self.kernels, self.said = {}, {}, []
        self.incarnation = "two"

    def settle(self, kernel: str, state: KernelState, reason: str = "", speedup: float = 1.0) -> None:
        """What workers and planner have said of a kernel."""
        record = self.kernels[kernel]
        digest = hashlib.sha256(kernel.encode()).hexdigest()
        report = ValidationReport(
            kernel=kernel,
            digest=digest,
            passed=state is not KernelState.REJECTED,
            checks=(Check(name="exact", passed=state is not KernelState.REJECTED),),
            numbers={"speedup": speedup, "difference": 1e-6},
            tags=("small",),
            risk=0.1,
            seconds=1.0,
        )
        judged = state not in _SEEN
        self.kernels[kernel] = record.model_copy(
            update={
                "state": state,
                "digest": None if state is KernelState.PENDING else digest,
                "bytes": 1234,
                "report": report if judged else None,
                "reason": reason,
            }
        )

    def _reach(self) -> None:
        if not self.ready:
            raise BusError("the library is away")


def blueprint(name: str = "mine", graph: Blueprint = MLP, namespace: str = "team", **spec: Any) -> Object:
    """A blueprint's resource as a person applies it."""
    plain = graph.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"graph": plain, "pipelines": ["fast"]} | copy.deepcopy(spec),
    }


class ForgeWorld:
    """A cluster, a library, and the operator's present life."""

    def __init__(self, settings: Settings = SETTINGS, *, bus: bool = True) -> None:
        self.now = 1767225600.0
        self.cluster = Cluster()
        self.library = MemoryLibrary(self.cluster)
        self.settings, self._bus = settings, bus
        self.deaf = False
        made = self.cluster.add(
            DEPLOYMENT, {"metadata": {"name": "esper-operator", "namespace": settings.namespace}}
        )
        uid = made["metadata"]["uid"]
        self.owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "esper-operator", "uid": uid}
        self.begin()

    def begin(self) -> Forge:
        """A fresh operator: what it held in memory is lost."""
        self.asked: dict[Key, None] = {}
        forge: list[Forge] = []
        self.writer = StatusWriter(
            self.cluster, 1000, lambda key: forge[0].current(key), lambda key, body: forge[0].learn(key, body)
        )
        self.forge = Forge(
            self.cluster,
            self.writer,
            self.library if self._bus else None,
            self.settings,
            self.owner,
            SECRETS,
            lambda key, _: self.asked.setdefault(key, None),
            clock=lambda: self.now,
        )
        forge.append(self.forge)
        self.relist()
        self.cluster.listeners[:] = [self._hear]
        return self.forge

    def relist(self) -> None:
        """What a start and the periodic relist do."""
        calls = len(self.cluster.calls)
        faults, self.cluster.faults = self.cluster.faults, {}
        for kind in KINDS:
            labels = MADE if kind in (JOB, POD) else ""
            self.forge.replace(kind, asyncio.run(self.cluster.list(kind, None, labels)), None)
        self.forge.look_at_all()
        del self.cluster.calls[calls:]
        self.cluster.faults = faults

    def apply(self, body: Object) -> Object:
        """What ``kubectl apply`` does."""
        return self.cluster.add(BLUEPRINT, body)

    def passes(self) -> None:
        """Passes until nothing is asked for any more; each death is followed by a fresh operator."""
        for _ in range(60):
            if not self.asked:
                return
            key = next(iter(self.asked))
            del self.asked[key]
            try:
                asyncio.run(self._one(key))
            except Killed:
                self.begin()
            except (BusError, UnavailableError):
                self.asked[key] = None
        if self.library.ready:
            raise AssertionError(f"it does not come to rest: {self.cluster.calls[-8:]}")

    async def _one(self, key: Key) -> None:
        await self.forge.reconcile(key)
        await self.writer.drain()

    def mark(self) -> str:
        """The mark for the next operator, with all that was heard so far long ago."""
        self.forge.deletions._clock = lambda: self.now
        self.forge.mark()
        self.now += 60
        return self.forge.mark()

    def look(self) -> None:
        """News of the library, and a pass over everything."""
        self.library.changed()
        self.passes()

    def work(self, end: str = "Complete") -> None:
        """The Job controller, the kubelet and the workers: whoever has a Job does what waits for it."""
        for job in list(self.cluster.of(JOB)):
            labels, status = job["metadata"]["labels"], job.get("status") or {}
            if status.get("conditions"):
                continue
            role = labels["app.kubernetes.io/component"]
            if end == "Complete":
                self._do(role)
            self.finish(job, end, FACTS.model_dump_json(by_alias=True) if role == "target" else "")

    def finish(self, job: Object, end: str, message: str = "") -> None:
        """A worker's Job ends, and leaves its last words."""
        head = job["metadata"]
        name = f"{head['name']}-x"
        if (POD.name, head["namespace"], name) not in self.cluster.objects:
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": head["name"], "uid": head["uid"]}
            template = copy.deepcopy(job["spec"]["template"])
            labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": head["name"]}
            template["metadata"] = {
                "name": name,
                "namespace": head["namespace"],
                "labels": labels,
                "ownerReferences": [owner | {"controller": True}],
            }
            ended = {"name": "worker", "state": {"terminated": {"exitCode": 0, "message": message}}}
            self.cluster.add(
                POD, {**template, "status": {"phase": "Succeeded", "containerStatuses": [ended]}}
            )
        at = "2026-01-01T00:00:00Z"
        condition = {"type": end, "status": "True", "reason": "R", "lastTransitionTime": at}
        self.cluster.change(JOB, head["name"], head["namespace"], status={"conditions": [condition]})

    def settle(self, rounds: int = 8) -> None:
        """Passes, workers and the garbage collector in turn, until nothing is written any more."""
        for _ in range(rounds):
            before = len(self.cluster.writes())
            self.look()
            self.cluster.collect()
            self.work()
            if len(self.cluster.writes()) == before and not self.asked:
                return
        raise AssertionError(f"it did not come to rest: {self.cluster.writes()[-8:]}")

    def status(self, name: str = "mine", namespace: str = "team") -> Object:
        found: Object = self.cluster.one(BLUEPRINT, name, namespace).get("status") or {}
        return found

    def condition(self, kind: str, name: str = "mine", namespace: str = "team") -> Object:
        """A condition of a blueprint."""
        conditions = self.status(name, namespace)["conditions"]
        return next(item for item in conditions if item["type"] == kind)

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.cluster.of(JOB))

    def kernels(self) -> list[str]:
        return sorted(body["metadata"]["name"] for body in self.cluster.of(KERNEL))

    def _do(self, role: str) -> None:
        for kernel, record in list(self.library.kernels.items()):
            if role == "tezzeret" and record.state is KernelState.PENDING:
                self.library.settle(kernel, KernelState.PENDING_BENCHMARK)
            elif role == "urabrask" and record.state is KernelState.PENDING_BENCHMARK:
                self.library.settle(kernel, KernelState.VALIDATED)

    def _hear(self, what: str, name: str, body: Object) -> None:
        kind = next((kind for kind in KINDS if kind.name == name), None)
        if kind is not None and not self.deaf:
            self.forge.hear(kind, what, body)


def key(name: str = "mine", namespace: str = "team") -> BlueprintKey:
    """Of a blueprint's resource."""
    return BlueprintKey(namespace, name)


WORKERS = ForgeKey(SETTINGS.namespace, "workers")
