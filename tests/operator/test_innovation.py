"""From a run's wish to a seed in it, over a cluster's bus: real containers, and the operator's office."""

import asyncio
import signal
import subprocess
from pathlib import Path

from benchmarks.cluster_server import ClusterServer
from esper_runtime.contracts import JournalEntry, KernelsArrived, KernelState, Role, SeedChanged
from esper_runtime.local import RunFolder
from esper_runtime.nissa import read_journal
from esper_runtime.urza import Shelf
from tests.cli.manifests import write
from tests.operator.offices import RUN, an_office, trust_of, until
from tests.operator.pods import Pods

SECONDS = 110.0
MANIFEST = (
    ("spec.training.steps", 600),
    ("spec.training.validation.everySteps", 50),
    ("spec.growth.controller.everySteps", 10),
    ("spec.growth.blueprints.include", ["mlp", "low-rank"]),
)


def test_pods_train_with_kernels_that_the_release_has_made_and_sign_none(tmp_path: Path) -> None:
    with ClusterServer(tmp_path / "bus") as server, Pods(server, tmp_path) as pods:
        try:
            asyncio.run(_trained(server, pods))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{pods.said()}") from error


async def _trained(server: ClusterServer, pods: Pods) -> None:
    async with an_office(server) as office:
        await until(lambda: office.ready, "the library")
        first = await begin(pods, 1)
        await until(lambda: office.depths(), "work for the workers")
        workers = [pods.worker(role) for role in (Role.TEZZERET, Role.URABRASK)]
        await until(lambda: any(isinstance(e.event, SeedChanged) for e in entries(pods)), "a seed", SECONDS)
        first.send_signal(signal.SIGTERM)  # its node is drained
        await until(lambda: first.poll() == 75, "a checkpoint and the end")
        second = await begin(pods, 2)  # on another node: its shelf is empty
        await until(lambda: second.poll() == 0, "the end of the training", SECONDS)
        assert all(worker.poll() is None for worker in workers)

        arrived = [entry for entry in entries(pods) if isinstance(entry.event, KernelsArrived)]
        assert [entry.step for entry in arrived] == [0], "all were there before the first step, and stayed"
        kernels = {kernel.kernel: kernel.digest for kernel in arrived[0].event.kernels}
        kinds = [entry.event.kind for entry in entries(pods)]
        assert "KernelsGone" not in kinds
        assert kinds.count("Resumed") == 1
        planted = {entry.event.kernel for entry in entries(pods) if isinstance(entry.event, SeedChanged)}
        assert planted
        assert planted <= kernels.keys()
        records = office.records()
        assert {records[kernel].state for kernel in kernels} == {KernelState.VALIDATED}
        assert {kernel: records[kernel].digest for kernel in kernels} == kernels
        assert not office.ignored
        assert not office.ignored_of_runs
        for home in (pods.home("train-1"), pods.home("train-2")):
            assert {path.name for path in (home / "keys").iterdir()} == {".lock", "trust.json"}
            usable, refused = Shelf(home).usable(kernels, trust_of(server))
            assert usable.keys() == kernels.keys(), refused


async def begin(pods: Pods, attempt: int) -> subprocess.Popen[bytes]:
    config = pods.mounted(f"train-{attempt}", await pods.files_of(RUN, attempt))
    write(config, *MANIFEST, name="manifest.yaml")
    return pods.training(RUN, config, attempt)


def entries(pods: Pods) -> list[JournalEntry]:
    folder = RunFolder(pods.place / "data" / "runs" / RUN.name)
    return list(read_journal(folder.journal)) if folder.started else []
