"""The forge against a real API server and a real bus: a blueprint by hand is validated without a run."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_server import ClusterServer
from benchmarks.control_plane import ControlPlane
from esper_operator.kube import (
    BLUEPRINT,
    JOB,
    KERNEL,
    LEASE,
    ExpiredError,
    KubeApi,
    Object,
    RefusedError,
)
from esper_operator.names import MADE, POOL_LABEL
from esper_runtime.blueprint import canonical_id, catalogue
from tests.operator.forge_world import MLP, blueprint
from tests.operator.kubelet import Kubelet
from tests.operator.test_apiserver import metrics, on_api, operator

pytestmark = pytest.mark.apiserver
POOLS = json.dumps([{"name": "cpu", "device": "cpu", "tezzeret": 1, "urabrask": 1}])
SECONDS = 60.0
OWN = MLP.model_copy(
    update={
        "name": "own",
        "nodes": tuple(
            node.model_copy(update={"attributes": node.attributes | {"width": "3 Cin"}})
            if node.id != MLP.output and "width" in node.attributes
            else node
            for node in MLP.nodes
        ),
    }
)
"""One that is not in the catalogue."""


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A bus, as the settings of an operator name it."""
    folder = tmp_path_factory.mktemp("bus")
    keys = folder / "keys"
    keys.mkdir()
    with ClusterServer(folder / "server") as server:
        for name in ("ca.crt", "ca.key"):
            (keys / name).write_text((folder / "server" / name).read_text())
        for name, text in server.keys.files().items():
            (keys / name).write_text(text)
        yield {"NATS_URL": server.url, "BUS_KEYS": str(keys), "POOLS": POOLS}


@contextlib.asynccontextmanager
async def kubelet(api: KubeApi, place: Path, *roles: str) -> AsyncIterator[Kubelet]:
    """Workers of these roles run while this is open."""
    found = Kubelet(api, place, roles)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def apply(api: KubeApi, body: Object) -> Object:
    """What ``kubectl apply --server-side`` does."""
    path = BLUEPRINT.path(body["metadata"]["namespace"], body["metadata"]["name"])
    query = {"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"}
    return await api._call("PATCH", BLUEPRINT, path, query, body, "application/apply-patch+yaml")


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not await holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def status(api: KubeApi, name: str) -> Object:
    body = await api.get(BLUEPRINT, "team", name)
    found: Object = (body or {}).get("status") or {}
    return found


async def reaches(api: KubeApi, name: str, phase: str) -> Object:
    async def holds() -> bool:
        return (await status(api, name)).get("phase") == phase

    await until(holds, f"{name} does not become {phase}")
    return await status(api, name)


def written(address: str) -> int:
    """How many statuses an operator has written."""
    lines = [
        line for line in metrics(address).splitlines() if line.startswith("esper_operator_status_writes_t")
    ]
    return int(float(lines[0].split()[-1]))


async def free_the_lease(api: KubeApi) -> None:
    lease = await api.get(LEASE, "esper", "esper-operator")
    assert lease is not None
    lease["spec"]["holderIdentity"] = ""
    await api.replace(LEASE, lease)


def test_a_blueprint_applied_by_hand_is_made_tested_validated_shown_and_archived(
    plane: ControlPlane, bus: dict[str, str], tmp_path: Path
) -> None:
    async def work(api: KubeApi) -> None:
        async with kubelet(api, tmp_path, "target", "tezzeret", "urabrask"):
            await apply(api, blueprint(graph=OWN))

            async def made() -> bool:
                conditions = (await status(api, "mine")).get("conditions") or ()
                return any((item["type"], item["status"]) == ("Compiled", "True") for item in conditions)

            await until(made, "no kernel of it is made")
            found = await reaches(api, "mine", "Validated")
            assert found["id"] == canonical_id(OWN)
            assert found["kernelsSummary"] == "1/1"

            async def shown() -> bool:
                bodies = (await api.list(KERNEL, "esper")).items
                return [(body.get("status") or {}).get("phase") for body in bodies] == ["Validated"]

            await until(shown, "the kernel is not shown")
            (body,) = (await api.list(KERNEL, "esper")).items
            assert body["spec"]["blueprint"] == found["id"]
            assert body["status"]["equivalence"] < 1e-3
            assert body["status"]["signature"]["value"]

            async def drained() -> bool:
                jobs = (await api.list(JOB, "esper", f"{MADE},{POOL_LABEL}")).items
                return [job["metadata"]["name"] for job in jobs] == ["esper-target-cpu-1"]

            await until(drained, "workers that have ended stay")
            mine = await api.get(BLUEPRINT, "team", "mine")
            assert mine is not None
            await api.delete(BLUEPRINT, "team", "mine", mine["metadata"]["uid"], "Background")

            async def gone() -> bool:
                return (await api.list(KERNEL, "esper")).items == []

            await until(gone, "the kernel of what was archived is still shown")

    with operator(plane, **bus):
        on_api(plane, work)


def test_forty_blueprints_are_accepted_bad_ones_refused_and_another_operator_writes_nothing(
    plane: ControlPlane, bus: dict[str, str], tmp_path: Path
) -> None:
    graphs = list(catalogue().values())[-40:]

    async def work(api: KubeApi) -> None:
        for number, (spoil, words) in enumerate(_REFUSED_AT_APPLY):
            body = blueprint(f"bad-{number}")
            spoil(body["spec"], body["spec"]["graph"])
            with pytest.raises(RefusedError, match=words):
                await apply(api, body)
        for number, graph in enumerate(graphs):
            await apply(api, blueprint(f"good-{number}", graph))
        for number, (spoil, _) in enumerate(_REFUSED_BY_THE_CHECK):
            body = blueprint(f"wrong-{number}")
            spoil(body["spec"], body["spec"]["graph"])
            await apply(api, body)
        async with kubelet(api, tmp_path, "target") as nodes:
            for number in range(len(graphs)):
                await reaches(api, f"good-{number}", "Forging")
            for number, (_, words) in enumerate(_REFUSED_BY_THE_CHECK):
                found = await reaches(api, f"wrong-{number}", "Invalid")
                valid = found["conditions"][0]
                assert (valid["type"], valid["status"]) == ("Valid", "False")
                assert words in valid["message"]
                assert "apply the mended one" in valid["message"]

            async def staffed() -> bool:
                return {"tezzeret", "urabrask"} <= nodes.most.keys()

            await until(staffed, "no workers for forty kernels")
            await asyncio.sleep(1.0)  # for more of them than there may be
            assert set(nodes.most.values()) == {1}

    with operator(plane, **bus):
        on_api(plane, work)
    on_api(plane, free_the_lease)
    with operator(plane, **bus) as (_, address):
        deadline = time.monotonic() + SECONDS
        while "esper_operator_library_ready 1.0" not in metrics(address):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(4.0)  # for what would be written wrongly
        assert written(address) == 0


Spoil = Callable[[Any, Any], object]

_REFUSED_AT_APPLY: list[tuple[Spoil, str]] = [
    (lambda spec, graph: graph.update(nodes=[]), "nodes"),
    (lambda spec, graph: graph["nodes"][0].update(inputs=["nobody"]), "neither 'input' nor the id of a node"),
    (lambda spec, graph: graph.update(output="nobody"), r"graph\.output must be the id of a node"),
    (lambda spec, graph: graph.update(interface="video"), "interface"),
    (lambda spec, graph: spec.update(pipelines=["fastest"]), "pipelines"),
    (lambda spec, graph: graph["nodes"][0].update(id="input"), "'input' is the graph's input"),
    (lambda spec, graph: graph["nodes"].append(graph["nodes"][0]), "two nodes have the same id"),
    (lambda spec, graph: graph.update(name="No Name"), "name"),
]
"""What the schema and the rules of the API server refuse, and the words of the refusal."""

_REFUSED_BY_THE_CHECK: list[tuple[Spoil, str]] = [
    (lambda spec, graph: graph["nodes"][0].update(op="lineer"), "lineer"),
    (lambda spec, graph: graph["nodes"][0]["attributes"].update(widht=3), "widht"),
    (lambda spec, graph: graph["nodes"][0].update(inputs=[graph["output"]]), "acyclic"),
    (lambda spec, graph: graph["nodes"][0]["attributes"].update(width="Cin *"), "width"),
]
"""What only the static check sees, and the words of the condition."""


def test_the_api_server_tells_deletions_again_until_it_has_forgotten_them(plane: ControlPlane) -> None:
    async def work(api: KubeApi) -> None:
        for name in ("told", "stays"):
            await apply(api, blueprint(name))
        since = (await api.list(BLUEPRINT, "team")).version
        body = await api.get(BLUEPRINT, "team", "told")
        assert body is not None
        uid = body["metadata"]["uid"]
        await api.delete(BLUEPRINT, "team", "told", uid, "Background")
        for namespace in ("team", None):
            (gone,) = await api.deleted(BLUEPRINT, namespace, since)
            assert gone["metadata"]["uid"] == uid
            assert gone["spec"] == body["spec"]
        now = (await api.list(BLUEPRINT, "team")).version
        assert await api.deleted(BLUEPRINT, "team", now) == []
        with pytest.raises(ExpiredError):
            await api.deleted(BLUEPRINT, "team", "1")

    on_api(plane, work)
