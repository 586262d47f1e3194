"""A release at work: the operator's parts over an API server in memory and a cluster's real bus."""

import asyncio
import contextlib
import copy
from pathlib import Path
from typing import Any, Self, cast

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import BusCredentials, BusFiles, secrets_of
from esper_operator.kube import BLUEPRINT, JOB, KERNEL, POD, RUN, SECRET, Kind, KubeApi, Object
from esper_operator.library import ForgeOffice
from esper_operator.pools import Pool
from esper_operator.process import Operator
from esper_operator.pump import WATCHED
from esper_operator.settings import Settings
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import Blueprint
from tests.operator.memory import Cluster

POOL = Pool(name="cpu", device="cpu", tezzeret=1, urabrask=1)
RESOURCES = (RUN, BLUEPRINT, KERNEL)
"""What people and the library have as resources."""

_BY_NAME: dict[str, Kind] = {kind.name: kind for kind in WATCHED}


class Release:
    """Inside, the operator works.

    Args:
        server: the bus.
    """

    def __init__(self, server: ClusterServer) -> None:
        self.cluster = Cluster()
        self.settings = Settings(nats_url=server.url, nats_deployed=False, pools=(POOL,), status_writes=1000)
        self._server = server
        self._files = BusFiles(server.keys, Path(server.ca).read_text())
        self._stack = contextlib.AsyncExitStack()
        for name, (_, texts) in secrets_of(self._files, self.settings).items():
            head = {"name": name, "namespace": self.settings.namespace}
            self.cluster.add(SECRET, {"metadata": head, "stringData": texts})

    @property
    def office(self) -> ForgeOffice:
        """The operator's."""
        assert self.operator.office is not None
        return self.operator.office

    async def __aenter__(self) -> Self:
        keeper = await self._stack.enter_async_context(self._server.keeper())
        credentials = BusCredentials(keeper, self._files, self.settings)
        self.operator = Operator(self.settings, cast(KubeApi, self.cluster), credentials)
        await self.operator.relist()
        self.cluster.listeners.append(self._hear)
        tasks = [asyncio.create_task(self.operator.work()), asyncio.create_task(self.office.run())]
        self._stack.push_async_callback(_ended, tasks)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.operator.feed is not None:
            await self.operator.feed.stop()
        await self._stack.aclose()

    def apply(self, kind: Kind, name: str, spec: Object, namespace: str = "team") -> Object:
        """What ``kubectl apply`` does."""
        return self.cluster.add(kind, {"metadata": {"name": name, "namespace": namespace}, "spec": spec})

    def status(self, kind: Kind, name: str, namespace: str = "team") -> Object:
        """The status of a resource."""
        return cast(Object, self.cluster.one(kind, name, namespace).get("status") or {})

    def uids(self) -> dict[tuple[str, str], str]:
        """Uids of all resources, by kind and name."""
        return {
            (kind.name, body["metadata"]["name"]): body["metadata"]["uid"]
            for kind in RESOURCES
            for body in self.cluster.of(kind)
        }

    def add_pod(self, job: Object, status: Object) -> Object:
        """The pod of a Job, as the Job controller makes it."""
        head = job["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": head["name"], "uid": head["uid"]}
        template = copy.deepcopy(job["spec"]["template"])
        template["metadata"] = {
            "name": f"{head['name']}-x",
            "namespace": head["namespace"],
            "labels": template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": head["name"]},
            "ownerReferences": [owner | {"controller": True}],
        }
        self.cluster.change(JOB, head["name"], head["namespace"], status={"active": 1, "ready": 1})
        return self.cluster.add(POD, {**template, "status": status})

    def end_pod(self, job: Object, code: int, said: str = "") -> None:
        """The pod of a Job has ended, and with it the Job."""
        head = job["metadata"]
        container = job["spec"]["template"]["spec"]["containers"][0]["name"]
        ended = {"name": container, "state": {"terminated": {"exitCode": code, "message": said}}}
        status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [ended]}
        self.cluster.change(POD, f"{head['name']}-x", head["namespace"], status=status)
        condition = {
            "type": "Failed" if code else "Complete",
            "status": "True",
            "reason": "R",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        self.cluster.change(JOB, head["name"], head["namespace"], status={"conditions": [condition]})

    def _hear(self, what: str, name: str, body: Object) -> None:
        kind = _BY_NAME.get(name)
        if kind is not None:
            asyncio.get_running_loop().call_soon(self.operator.hear, kind, what, body)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def own_blueprints(number: int) -> list[Blueprint]:
    """So many blueprints that are not in the catalogue, and are all different."""
    known = {canonical_id(graph) for graph in catalogue().values()}
    found: dict[str, Blueprint] = {}
    for op in ("tanh", "silu", "sigmoid", "relu"):
        for graph in catalogue().values():
            nodes = [n.model_copy(update={"op": op}) if n.op in _ACTIVATIONS else n for n in graph.nodes]
            mine = graph.model_copy(update={"name": f"mine-{len(found)}", "nodes": tuple(nodes)})
            if canonical_id(mine) not in known:
                found.setdefault(canonical_id(mine), mine)
    assert len(found) >= number
    return list(found.values())[:number]


def spec_of(graph: Blueprint) -> Object:
    """The spec of a blueprint's resource."""
    plain: Any = graph.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"graph": plain, "pipelines": ["fast"]}


_ACTIVATIONS = ("relu", "gelu", "tanh", "silu", "sigmoid")
