"""An operator's core on an API server in memory, driven step by step."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from esper_operator.kube import CLAIM, JOB, POD, RUN, SERVICE, Kind, Object
from esper_operator.names import CHILDREN, RunKey
from esper_operator.runs import Runs
from esper_operator.settings import Settings
from esper_operator.store import Store
from esper_operator.writer import StatusWriter
from tests.operator.memory import Cluster, Killed

KEY = RunKey("team", "small")
SETTINGS = Settings(network_policies=True)
WATCHED: dict[str, Kind] = {kind.name: kind for kind in (RUN, JOB, POD, SERVICE, CLAIM)}

SPEC: dict[str, Any] = {
    "host": {"builtin": "mlp"},
    "task": {"builtin": "digits"},
    "training": {"steps": 60, "batchSize": 64},
}


def manifest(name: str = "small", **spec: Any) -> Object:
    """A run's resource as a person applies it."""
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": name, "namespace": "team"},
        "spec": copy.deepcopy(SPEC) | copy.deepcopy(spec),
    }


@dataclass
class Process:
    """One life of the operator: what it holds in memory is lost with it."""

    cluster: Cluster
    clock: Callable[[], float]
    settings: Settings = SETTINGS
    deaf: bool = False
    """Whether events do not reach it."""
    store: Store = field(default_factory=Store)

    def __post_init__(self) -> None:
        self.writer = StatusWriter(self.cluster, 1000, self.store.run, lambda key, body: self.put(RUN, body))
        self.runs = Runs(self.cluster, self.store, self.writer, self.cluster, self.settings, clock=self.clock)
        self.relist()
        self.cluster.listeners[:] = [self.hear]

    def put(self, kind: Kind, body: Object) -> None:
        self.store.put(kind, body)

    def relist(self) -> None:
        """What a start and the periodic relist do."""
        calls = len(self.cluster.calls)
        faults, self.cluster.faults = self.cluster.faults, {}
        for kind in WATCHED.values():
            labels = "" if kind is RUN else CHILDREN
            listed = asyncio.run(self.cluster.list(kind, None, labels))
            for body in listed.items:
                self.store.put(kind, body)
            there = {body["metadata"]["uid"] for body in listed.items}
            self.store.remove_others(kind, there, listed.version, None)
        del self.cluster.calls[calls:]
        self.cluster.faults = faults

    def hear(self, what: str, name: str, body: Object) -> None:
        """An event of the API server."""
        if self.deaf or name not in WATCHED:
            return
        kind = WATCHED[name]
        if what == "DELETED":
            head = body["metadata"]
            self.store.remove(kind, head["namespace"], head["name"], head["uid"])
        else:
            self.store.put(kind, body)

    def one_pass(self, key: RunKey = KEY) -> float | None:
        """Reconcile, then write what is to be written."""

        async def work() -> float | None:
            after = await self.runs.reconcile(key)
            await self.writer.drain()
            return after

        return asyncio.run(work())


class World:
    """A cluster and the operator's present life."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.now = 1767225600.0  # 2026-01-01T00:00:00Z
        self.cluster = Cluster()
        self.settings = settings
        self.process = self.begin()

    def begin(self) -> Process:
        """A fresh operator."""
        self.process = Process(self.cluster, lambda: self.now, self.settings)
        return self.process

    def apply(self, name: str = "small", **spec: Any) -> Object:
        """What ``kubectl apply`` does."""
        body = manifest(name, **spec)
        if (RUN.name, "team", name) in self.cluster.objects:
            return self.cluster.change(RUN, name, spec=body["spec"])
        return self.cluster.add(RUN, body)

    def settle(self, rounds: int = 12) -> None:
        """Passes, controllers and the garbage collector in turn, until nothing is written any more."""
        for _ in range(rounds):
            before = len(self.cluster.writes())
            versions = {
                place: body["metadata"]["resourceVersion"] for place, body in self.cluster.objects.items()
            }
            self.process.one_pass()
            self.cluster.collect()
            self.cluster.run_jobs()
            after = {
                place: body["metadata"]["resourceVersion"] for place, body in self.cluster.objects.items()
            }
            if len(self.cluster.writes()) == before and set(versions) == set(after):
                return
        raise AssertionError(f"it did not come to rest: {self.cluster.writes()[-8:]}")

    def passes_until_rest(self) -> None:
        """Passes alone, as a queue makes them, with a fresh operator after each death."""
        for _ in range(30):
            before = len(self.cluster.writes())
            try:
                self.process.one_pass()
            except Killed:
                self.begin()
                continue
            if len(self.cluster.writes()) == before:
                return
        raise AssertionError("it did not come to rest")

    @property
    def run(self) -> Object:
        return self.cluster.one(RUN, "small")

    @property
    def status(self) -> Object:
        return self.run.get("status") or {}

    def condition(self, kind: str) -> Object:
        """A condition of the run."""
        return next(item for item in self.status["conditions"] if item["type"] == kind)

    def job_names(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.cluster.of(JOB))
