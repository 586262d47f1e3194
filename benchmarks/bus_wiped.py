"""The bus loses all that it has stored, while 40 blueprints, their kernels and a run are there.

The operator's parts work over an API server in memory and a real nats-server with a cluster's accounts;
workers and training are the containers of its Jobs, as processes. Asked: no resource is deleted, the same ids
are made and validated again, the run is not disturbed, and no condition says meanwhile what is not so.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cluster_server import ClusterServer
from benchmarks.containers import Containers
from benchmarks.line import bar
from esper_operator.kube import BLUEPRINT, RUN
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import Channel, JournalEntry, KernelState, run_subject
from esper_runtime.local import RunFolder
from esper_runtime.nissa import read_journal
from esper_runtime.oona import Tail
from tests.operator.release import RESOURCES, Release, own_blueprints, spec_of

BLUEPRINTS = 40
AWAY_SECONDS = 6.0
SECONDS = 900.0
SPEC = {
    "host": {"builtin": "mlp"},
    "task": {"builtin": "digits"},
    "training": {"steps": 2_000_000, "batchSize": 64, "validation": {"everySteps": 1000}},
    "growth": {"blueprints": {"include": ["mlp", "low-rank"]}, "controller": {"everySteps": 50}},
    "checkpoint": {"everySteps": 500},
}


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder, ClusterServer(Path(folder, "bus")) as server:
        asyncio.run(_measured(server, Path(folder)))


async def _measured(server: ClusterServer, folder: Path) -> None:
    graphs = {graph.name: graph for graph in own_blueprints(BLUEPRINTS)}
    ids = {name: canonical_id(graph) for name, graph in graphs.items()}
    async with Release(server) as release:
        with Containers(release, folder) as containers:
            scene = _Scene(release, containers, folder, ids)
            for name, graph in graphs.items():
                release.apply(BLUEPRINT, name, spec_of(graph))
            release.apply(RUN, "small", SPEC)
            began = time.monotonic()
            await scene.until(lambda: scene.validated and scene.kinds.count("Checkpointed") > 2, "all there")
            made = time.monotonic() - began
            kernels, before, trainer = scene.kernels, release.uids(), containers.pid_of("small-1")
            incarnation, entries = release.office.incarnation, len(scene.entries)
            release.cluster.calls.clear()
            await asyncio.to_thread(server.wipe)
            wiped = time.monotonic()
            await scene.until(lambda: scene.conditions("Served") == {"Unknown"}, "that it is away")
            said = time.monotonic() - wiped
            await scene.until(lambda: time.monotonic() - wiped > AWAY_SECONDS, "")
            meanwhile = len(scene.entries) - entries
            await asyncio.to_thread(server.start)
            back = time.monotonic()
            await scene.until(lambda: release.office.incarnation != incarnation, "another library")
            await scene.until(lambda: scene.validated and kernels <= scene.kernels, "all there again")
            again = time.monotonic() - back
            copied = await scene.copied(server)
            after = release.uids()
            deleted = {
                call.name
                for call in release.cluster.calls
                if call.verb == "delete" and call.kind in {kind.name for kind in RESOURCES}
            }
            kept = sum(after.get(place) == uid for place, uid in before.items())
            same = {name: release.status(BLUEPRINT, name)["id"] for name in ids} == ids
            undisturbed = (
                containers.pid_of("small-1") == trainer
                and not {"Interrupted", "Resumed", "KernelsGone"} & set(scene.kinds)
                and scene.kinds.count("KernelsArrived") == 1
                and meanwhile > 0
                and copied
            )
            bar(
                "bus_wiped",
                command="python -m benchmarks.bus_wiped",
                figure={"resourcesKept": kept, "of": len(before), "kernels": len(kernels)},
                bound="no resource deleted, same ids validated again, run undisturbed, conditions honest",
                passed=not deleted
                and kept == len(before)
                and same
                and undisturbed
                and not scene.lies
                and len(kernels) >= 10,
                detail={
                    "blueprints": BLUEPRINTS,
                    "deleted": sorted(deleted),
                    "sameIds": same,
                    "runUndisturbed": undisturbed,
                    "journalEntriesWhileAway": meanwhile,
                    "conditionsThatLied": sorted(scene.lies),
                    "secondsUntilMade": round(made, 1),
                    "secondsUntilSaidToBeAway": round(said, 1),
                    "secondsUntilMadeAgain": round(again, 1),
                    "containers": containers.known,
                },
            )


class _Scene:
    """What is looked at again and again."""

    def __init__(self, release: Release, containers: Containers, folder: Path, ids: dict[str, str]) -> None:
        self.release, self._containers, self._ids = release, containers, ids
        self._folder = RunFolder(folder / "data" / "runs" / "small")
        self.lies: set[str] = set()

    @property
    def entries(self) -> list[JournalEntry]:
        """Of the run's journal."""
        return list(read_journal(self._folder.journal)) if self._folder.started else []

    @property
    def kinds(self) -> list[str]:
        """Kinds of the journal's entries."""
        return [entry.event.kind for entry in self.entries]

    @property
    def kernels(self) -> set[str]:
        """Validated kernels in the library."""
        records = self.release.office.records().values()
        return {record.kernel for record in records if record.state is KernelState.VALIDATED}

    @property
    def validated(self) -> bool:
        """Whether every blueprint is said to be, in the library of now."""
        return all(
            status.get("phase") == "Validated" and status.get("library") == self.release.office.incarnation
            for status in map(self._status, self._ids)
        )

    def conditions(self, kind: str) -> set[str]:
        """The statuses of a condition of all blueprints."""
        found = [item for name in self._ids for item in self._status(name).get("conditions", ())]
        return {item["status"] for item in found if item["type"] == kind}

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Look until something holds; note what is said to be validated and is not."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise SystemExit(f"never: {what}\n{self._containers.said()}")
            self._containers.look()
            await asyncio.sleep(0.1)
            sound = {self.release.office.records()[kernel].spec.blueprint for kernel in self.kernels}
            for name, identity in self._ids.items():
                status: Any = self._status(name)
                here = status.get("library") == self.release.office.incarnation
                if here and status.get("phase") == "Validated" and identity not in sound:
                    self.lies.add(name)

    async def copied(self, server: ClusterServer) -> bool:
        """Whether the bus comes to have the whole journal."""
        uid = self.release.cluster.one(RUN, "small")["metadata"]["uid"]
        subject = run_subject("team", f"small-{uid[:8]}", Channel.JOURNAL)
        async with server.keeper() as keeper:
            js = (await keeper.namespace("team")).jetstream()
            for _ in range(40):
                wanted = [entry.digest for entry in self.entries]
                kept = await Tail(js, "EVENTS").read()
                there = [json.loads(one.data)["data"]["digest"] for one in kept if one.subject == subject]
                if there[: len(wanted)] == wanted:
                    return True
                await asyncio.sleep(0.5)
        return False

    def _status(self, name: str) -> Any:
        return self.release.status(BLUEPRINT, name)


if __name__ == "__main__":
    main()
