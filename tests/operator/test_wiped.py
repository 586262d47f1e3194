"""A bus that loses its storage while the operator works: no resource goes, all is made again, runs go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import signing_key
from esper_operator.kube import BLUEPRINT, JOB, KERNEL, RUN, SECRET
from esper_runtime.artifact import MAY_SAY, sign_with
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import BusError, KernelState, Statement, Work
from esper_runtime.oona import Bridge, BusAddress, BusRole, WorkQueue, connect, disconnect
from esper_runtime.urza import Library
from tests.oona.bus import Journal
from tests.operator.forge_world import CPU, FACTS
from tests.operator.offices import trust_of, until
from tests.operator.release import Release, own_blueprints, spec_of
from tests.operator.world import SPEC
from tests.urza.sayings import compiled, digest_of, verdict

GRAPHS = own_blueprints(3)
NAMES = [graph.name for graph in GRAPHS]
IDS = {canonical_id(graph) for graph in GRAPHS}


def test_a_wiped_bus_costs_no_resource_and_all_kernels_are_validated_again(tmp_path: Path) -> None:
    with ClusterServer(tmp_path / "bus") as server:
        asyncio.run(_wiped(server, tmp_path))


async def _wiped(server: ClusterServer, place: Path) -> None:
    journal = Journal(place / "journal.jsonl")
    journal.grow(3)
    async with Release(server) as release, workers(server, release):
        for graph in GRAPHS:
            release.apply(BLUEPRINT, graph.name, spec_of(graph))
        release.apply(RUN, "small", SPEC)
        await until(lambda: validated(release) and len(release.cluster.of(KERNEL)) == 3, "the kernels")
        await until(lambda: release.cluster.of(SECRET)[-1]["metadata"]["namespace"] == "team", "the run")
        before, incarnation, kernels = release.uids(), release.office.incarnation, good(release)
        run, secret = release.cluster.one(RUN, "small"), release.cluster.of(SECRET)[-1]
        creds = secret["stringData"]["user.creds"]
        address = BusAddress(url=server.url, tls_ca=server.ca, credentials_text=creds)
        word = f"small-{run['metadata']['uid'][:8]}"
        with Bridge(address, "team", word, "/runs/team/small", journal.path) as bridge:
            await until(lambda: bridge.counts().journal == 2, "the copy of the journal")
            release.cluster.calls.clear()
            await asyncio.to_thread(server.wipe)
            await until(lambda: served(release) == {("Unknown", "LibraryAway")}, "that it is away")
            assert validated(release), "what was known last stays"
            journal.grow(3)
            await asyncio.to_thread(server.start)
            await until(lambda: release.office.incarnation != incarnation, "another library")
            while not (validated(release) and told(release) == {release.office.incarnation}):
                for name in NAMES:  # nothing is said to be validated that is not, in this library
                    status = release.status(BLUEPRINT, name)
                    if status["library"] == release.office.incarnation and status["phase"] == "Validated":
                        assert status["id"] in {r.spec.blueprint for r in sound(release)}
                await asyncio.sleep(0.01)
            await until(lambda: bridge.counts().journal == 5, "the journal's copy from its begin")
            assert not bridge.overtaken
    assert release.uids() == before
    assert good(release) == kernels
    assert {body["id"] for body in (release.status(BLUEPRINT, name) for name in NAMES)} == IDS
    deleted = {call.kind for call in release.cluster.calls if call.verb == "delete"}
    assert deleted <= {JOB.name}, "of workers that have ended"
    assert [job["metadata"]["name"] for job in release.cluster.of(JOB)].count("small-1") == 1
    assert not any(job["metadata"]["name"] == "small-2" for job in release.cluster.of(JOB))


def sound(release: Release) -> list[KernelState]:
    return [r for r in release.office.records().values() if r.state is KernelState.VALIDATED]


def good(release: Release) -> set[str]:
    return {record.kernel for record in sound(release)}


def validated(release: Release) -> bool:
    return all(release.status(BLUEPRINT, name).get("phase") == "Validated" for name in NAMES)


def told(release: Release) -> set[str]:
    """The libraries that blueprints are said to be entered in."""
    return {release.status(BLUEPRINT, name)["library"] for name in NAMES}


def served(release: Release) -> set[tuple[str, str]]:
    """Status and reason of the condition Served of all blueprints."""
    return {
        (item["status"], item["reason"])
        for name in NAMES
        for item in release.status(BLUEPRINT, name)["conditions"]
        if item["type"] == "Served"
    }


@contextlib.asynccontextmanager
async def workers(server: ClusterServer, release: Release) -> AsyncIterator[None]:
    """Nodes that run each Job at once, and workers that say what workers say, over the bus."""
    tasks = [
        asyncio.create_task(_nodes(release)),
        asyncio.create_task(_work(server, "compile", BusRole.TEZZERET)),
        asyncio.create_task(_work(server, "evaluate", BusRole.URABRASK)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nodes(release: Release) -> None:
    while True:
        for job in release.cluster.of(JOB):
            if not job.get("status"):
                release.add_pod(job, {"phase": "Running"})
                if job["metadata"]["labels"]["app.kubernetes.io/component"] == "target":
                    release.end_pod(job, 0, FACTS.model_dump_json(by_alias=True))
        await asyncio.sleep(0.02)


async def _work(server: ClusterServer, work: Work, role: BusRole) -> None:
    """Takes work and says that it is done, through everything that happens to the bus."""
    while True:
        try:
            client = await connect(server.address_of(role), role.value)
        except BusError:
            continue
        try:
            library, queue = Library(client, trust_of(server)), WorkQueue(client, work, CPU.name)
            while not client.is_closed:
                for item in await queue.fetch(timeout=0.2):
                    spec = (
                        item.spec.spec
                        if work == "compile"
                        else (await library.records())[item.spec.kernel].spec
                    )
                    made = compiled if work == "compile" else verdict
                    await _say(server, library, made(spec, digest_of(spec.kernel_id)))
                    await item.done()
        except BusError:
            await asyncio.sleep(0.2)
        finally:
            await disconnect(client)


async def _say(server: ClusterServer, library: Library, statement: Statement) -> None:
    await library.publish(sign_with(signing_key(server.keys, MAY_SAY[type(statement)]), statement))
