"""The operator with 1,000 runs on a real API server: how fast, how large, and how little it writes.

Needs etcd and kube-apiserver in the folder ``KUBEBUILDER_ASSETS``. No kubelet and no controllers run; this
process plays them, with a pod for each Job that is ready from the start. What is measured is the operator
and the API server on one machine, with the client that applies the runs.
"""

import asyncio
import json
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp

from benchmarks.control_plane import REMEDY, ControlPlane, binaries, control_plane, prepare
from benchmarks.line import bar
from benchmarks.operator_process import (
    Process,
    figure,
    for_each,
    manifest,
    p95_of_passes,
    run_pods,
    until,
)
from esper_operator.children import claim_of, job_of, secret_of, service_of
from esper_operator.kube import CLAIM, JOB, LEASE, RUN, SECRET, SERVICE, Kind, Object
from esper_operator.live import Live
from esper_operator.observe import read_manifest
from esper_operator.settings import Settings
from esper_operator.status import Facts, status_of
from esper_runtime.contracts import JournalEntry, SeedChanged, SeedStage
from esper_runtime.planning import RunPlan, RunSeen, Standing

COMMAND = "python -m benchmarks.operator_scale"
RUNS = 1000
ROUNDS = 3
CHANGES, CHANGES_A_SECOND = 300, 10


async def bare(plane: ControlPlane, namespace: str) -> float:
    """Seconds in which a client without any logic makes 1,000 runs with their children: 5 writes each."""
    api = await plane.api(60.0)
    settings = Settings()

    async def make(index: int) -> None:
        run = await api.create(RUN, manifest(f"run-{index}", namespace))
        read = read_manifest(run)
        assert read.manifest is not None
        children: list[tuple[Kind, Object]] = [
            (SERVICE, service_of(run)),
            (CLAIM, claim_of(run, read.manifest, settings)),
            (SECRET, secret_of(run, 1, {})),
            (JOB, job_of(run, read.manifest, 1, read.identity, settings)),
        ]
        for kind, body in children:
            await api.create(kind, body)

    began = time.perf_counter()
    await for_each(range(RUNS), make)
    took = time.perf_counter() - began
    await api.close()
    return took


async def operated(
    plane: ControlPlane, session: aiohttp.ClientSession, namespace: str, process: Process
) -> float:
    """Seconds from the first run applied until all 1,000 have their children."""
    api = await plane.api(60.0)

    async def leads() -> bool:
        return figure(await process.metrics(session), "esper_operator_leader") == 1

    async def made() -> bool:
        text = await process.metrics(session)
        return figure(text, "esper_operator_api_calls_total", verb="POST", kind="Job", code="201") >= RUNS

    async def make(index: int) -> None:
        await api.create(RUN, manifest(f"run-{index}", namespace))

    await until(leads, "the operator does not lead")
    began = time.perf_counter()
    await for_each(range(RUNS), make)
    await until(made, "not every run has its Job")
    took = time.perf_counter() - began
    await api.close()
    return took


@asynccontextmanager
async def watching(
    plane: ControlPlane, kind: Kind, namespace: str, hear: Callable[[Object], None]
) -> AsyncIterator[None]:
    """A watch of our own, so that what is measured is what others see."""
    api = await plane.api()
    headers: dict[str, str] = {}
    await api._client.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
    await api.close()
    insecure = ssl.create_default_context()
    insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
    url = f"{plane.url}{kind.path(namespace)}?watch=true"

    async def read(session: aiohttp.ClientSession) -> None:
        async with session.get(url, ssl=insecure, headers=headers) as answer:
            async for line in answer.content:
                hear(json.loads(line)["object"])

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        task = asyncio.create_task(read(session))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def changed(plane: ControlPlane, namespace: str) -> tuple[list[float], list[float]]:
    """Seconds from a change of a run until its Job is told to end, and until its status says so."""
    api = await plane.api(60.0)
    asked: dict[str, float] = {}
    acted: dict[str, float] = {}
    said: dict[str, float] = {}

    def hear_job(job: Object) -> None:
        name = job["metadata"]["name"].rpartition("-")[0]
        if name in asked and job["metadata"].get("deletionTimestamp"):
            acted.setdefault(name, time.perf_counter() - asked[name])

    def hear_run(run: Object) -> None:
        head = run["metadata"]
        if head["name"] in asked and (run.get("status") or {}).get("observedGeneration") == 2:
            said.setdefault(head["name"], time.perf_counter() - asked[head["name"]])

    async with (
        watching(plane, JOB, namespace, hear_job),
        watching(plane, RUN, namespace, hear_run),
    ):
        await asyncio.sleep(3.0)
        began = time.perf_counter()
        pending: set[asyncio.Task[Object]] = set()
        for index in range(CHANGES):
            await asyncio.sleep(max(0.0, began + index / CHANGES_A_SECOND - time.perf_counter()))
            name = f"run-{index * RUNS // CHANGES}"
            asked[name] = time.perf_counter()
            body = manifest(name, namespace, suspend=True)
            pending.add(asyncio.create_task(api.apply(RUN, body)))
        await asyncio.gather(*pending)

        async def all_said() -> bool:
            return len(acted) == len(said) == CHANGES

        await until(all_said, "not every change was acted on and said")
    await api.close()
    return sorted(acted.values()), sorted(said.values())


def p95(values: list[float]) -> float:
    """The 95th percentile of sorted values."""
    return values[min(len(values) - 1, int(0.95 * len(values)))]


def most_in_a_second(log: Path) -> int:
    """The most status writes that came to the API server in any second, by its own log."""
    times = sorted(
        datetime.fromisoformat(json.loads(line)["requestReceivedTimestamp"]).timestamp()
        for line in log.read_text().splitlines()
    )
    most = first = 0
    for index, moment in enumerate(times):
        while moment - times[first] >= 1.0:
            first += 1
        most = max(most, index - first + 1)
    return most


def largest_status() -> int:
    """Bytes of a status after 10,000 adaptations with the longest texts."""
    text = "é" * 400
    live = Live()
    for number in range(10_000):
        event = SeedChanged(
            seed=f"{number}{text}",
            slot=text,
            blueprint=text,
            name=text,
            before=None,
            after=SeedStage.CULLED,
            parameters=1,
            alpha=1.0,
            reason=text,
        )
        live.fold(
            JournalEntry(
                sequence=number,
                time="2026-01-01T00:00:00Z",
                incarnation=0,
                step=number,
                event=event,
                previous="0" * 64,
            )
        )
    run = manifest("run", "team")
    run["metadata"]["uid"] = "u"
    run |= {"kind": RUN.name, "apiVersion": RUN.version}
    read = read_manifest(run)
    seen = RunSeen(uid="u", name="run", spec=read.manifest, shape=read.shape, now=0.0)
    plan = RunPlan((), Standing.RUNNING, "PodsReady", text, 1)
    status = status_of(Facts(run, read, seen, plan, live=live))
    return len(json.dumps(status, ensure_ascii=False).encode())


async def measure(plane: ControlPlane) -> None:
    """All of it."""
    spaces = [f"{who}-{index}" for index in range(ROUNDS) for who in ("bare", "operated")]
    await prepare(plane, "esper", *spaces)
    alone: list[float] = []
    ours: list[float] = []
    async with aiohttp.ClientSession() as session:
        for index in range(ROUNDS):
            alone.append(await bare(plane, f"bare-{index}"))
            namespace = f"operated-{index}"
            process = Process(plane, namespace)
            try:
                ours.append(await operated(plane, session, namespace, process))
                print(f"# bare {alone[-1]:.1f} s, operator {ours[-1]:.1f} s", file=sys.stderr, flush=True)
                if index < ROUNDS - 1:
                    continue
                await run_pods(plane, namespace)
                accepted = await all_run(session, process)
                objects = figure(await process.metrics(session), "esper_operator_objects")
                passes = p95_of_passes(await process.metrics(session))
                acted, said = await changed(plane, namespace)
                memory = process.memory()
            finally:
                process.end()
        restart, silent = await restarted(plane, session, namespace)
    most = most_in_a_second(plane.audit)
    say(Measured(alone, ours, accepted, passes, acted, said, memory, objects, restart, silent, most))


async def all_run(session: aiohttp.ClientSession, process: Process) -> float:
    """Seconds until every run's status says that it runs, after its pod was made."""
    began = time.perf_counter()

    async def written() -> bool:
        text = await process.metrics(session)
        waits = figure(text, "esper_operator_status_waiting") + figure(text, "esper_operator_queue_length")
        return figure(text, "esper_operator_runs", phase="Running") == RUNS and waits == 0

    await until(written, "not every status is written", 0.2)
    return time.perf_counter() - began


async def restarted(
    plane: ControlPlane, session: aiohttp.ClientSession, namespace: str
) -> tuple[float, bool]:
    """Seconds from the start of a process until it has looked at all runs, and whether it wrote nothing."""
    api = await plane.api()
    lease = await api.get(LEASE, "esper", "esper-operator")
    assert lease is not None
    assert not lease["spec"].get("holderIdentity"), "the one before did not give the Lease back"
    await api.close()
    process = Process(plane, namespace)
    try:

        async def looked() -> bool:
            text = await process.metrics(session)
            done = figure(text, "esper_operator_passes_total")
            return done >= RUNS and figure(text, "esper_operator_queue_length") == 0

        await until(looked, "it has not looked at all runs")
        took = time.perf_counter() - process.began
        text = await process.metrics(session)
        wrote = figure(text, "esper_operator_api_calls_total", verb="POST", code="201")
        return took, wrote + figure(text, "esper_operator_status_writes_total") == 0
    finally:
        process.end()


@dataclass(frozen=True)
class Measured:
    """What was found; times in seconds.

    Attributes:
        alone: rounds of the bare client.
        ours: rounds of the operator.
        accepted: until every status says that its run runs.
        passes: a pass, p95.
        acted: from each change to the deed.
        said: from each change to the status that says it.
        memory: MiB of the operator.
        objects: that it knew.
        restart: until a new process has looked at all of them.
        silent: whether that one wrote nothing.
        writes: of statuses, in the second with most of them.
    """

    alone: list[float]
    ours: list[float]
    accepted: float
    passes: float
    acted: list[float]
    said: list[float]
    memory: float
    objects: float
    restart: float
    silent: bool
    writes: int


def say(found: Measured) -> None:
    """Print the bars."""
    ratio = statistics.median(found.ours) / statistics.median(found.alone)
    bar(
        "operator: 1,000 runs with children, against a bare client",
        command=COMMAND,
        figure=round(ratio, 2),
        bound="<= 3, median of 3, alternated",
        passed=ratio <= 3,
        control={"bare client, s": [round(value, 2) for value in found.alone]},
        detail={
            "operator, s": [round(value, 2) for value in found.ours],
            "writes of each": "run, Service, claim, Secret, Job",
            "then until every status says that it runs, s": round(found.accepted, 1),
        },
    )
    bar(
        "operator: a pass, p95",
        command=COMMAND,
        figure=found.passes,
        bound="<= 1 s without its wait in the queue (bound of its bucket)",
        passed=found.passes <= 1,
    )
    bar(
        "operator: end to end at 10 changes a second over 1,000 runs, p95",
        command=COMMAND,
        figure=round(p95(found.said), 3),
        bound="<= 2 s from the change to the status that says it",
        passed=p95(found.said) <= 2,
        detail={
            "to the deed, p95 s": round(p95(found.acted), 3),
            "to the status, median s": round(statistics.median(found.said), 3),
            "changes": len(found.said),
        },
    )
    bar(
        "operator: memory with 1,000 runs",
        command=COMMAND,
        figure=round(found.memory),
        bound="<= 150 MiB resident",
        passed=found.memory <= 150,
    )
    bar(
        "operator: restart with 5,000 objects",
        command=COMMAND,
        figure=round(found.restart, 2),
        bound="<= 8 s from its start until it has looked at all runs, and nothing written",
        passed=found.restart <= 8 and found.silent and found.objects >= 5 * RUNS,
        detail={"nothing written": found.silent, "objects that it knows": int(found.objects)},
    )
    bar(
        "operator: status writes",
        command=COMMAND,
        figure=found.writes,
        bound="<= 20 in any second",
        passed=found.writes <= 20,
    )


def main() -> int:
    """Exit code: 0, also where there is no API server to measure against."""
    size = largest_status()
    bar(
        "operator: a status after 10,000 adaptations",
        command=COMMAND,
        figure=size,
        bound="<= 32768 bytes",
        passed=size <= 32 * 1024,
    )
    assets = binaries()
    if assets is None:
        bar("operator: scale", command=COMMAND, figure=None, bound=f"not measured: {REMEDY}", passed=None)
        return 0
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder), assets) as plane:
        asyncio.run(measure(plane))
    return 0


if __name__ == "__main__":
    sys.exit(main())
