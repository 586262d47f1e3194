"""From a run's wish to a seed in it, over a cluster's bus: real containers, and the operator's office."""

import asyncio
from pathlib import Path

from benchmarks.cluster_server import ClusterServer
from esper_runtime.contracts import KernelsArrived, KernelState, Role, SeedChanged, Started
from esper_runtime.kasmina import Shelf
from esper_runtime.local import RunFolder
from esper_runtime.nissa import read_journal
from tests.cli.manifests import write
from tests.operator.offices import RUN, an_office, trust_of, until
from tests.operator.pods import Pods

SECONDS = 110.0
MANIFEST = (
    ("spec.training.steps", 300),
    ("spec.training.validation.everySteps", 50),
    ("spec.growth.controller.everySteps", 10),
    ("spec.growth.blueprints.include", ["mlp", "low-rank"]),
)


def test_a_pod_trains_with_kernels_that_the_release_has_made_and_signs_none(tmp_path: Path) -> None:
    with ClusterServer(tmp_path / "bus") as server, Pods(server, tmp_path) as pods:
        try:
            asyncio.run(_trained(server, pods))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{pods.said()}") from error


async def _trained(server: ClusterServer, pods: Pods) -> None:
    async with an_office(server) as office:
        await until(lambda: office.ready, "the library")
        config = pods.mounted("train", await pods.files_of(RUN, 1))
        write(config, *MANIFEST, name="manifest.yaml")
        training = pods.training(RUN, config)
        await until(lambda: office.depths(), "work for the workers")
        workers = [pods.worker(role, "--idle", "60") for role in (Role.TEZZERET, Role.URABRASK)]
        await until(lambda: training.poll() is not None, "the end of the training", SECONDS)
        assert training.returncode == 0
        assert all(worker.poll() is None for worker in workers)
        entries = read_journal(RunFolder(pods.place / "data" / "runs" / RUN.name).journal)
        kinds = [entry.event.kind for entry in entries]
        arrived = [entry for entry in entries if isinstance(entry.event, KernelsArrived)]
        assert kinds.index(Started.__name__) < kinds.index("KernelsArrived") < kinds.index("Validated")
        assert arrived[0].step == 0
        kernels = {kernel.kernel: kernel.digest for e in arrived for kernel in e.event.kernels}
        planted = {e.event.kernel for e in entries if isinstance(e.event, SeedChanged)}
        records = office.records()
        assert kernels
        assert planted
        assert planted <= kernels.keys()
        assert {records[kernel].state for kernel in kernels} == {KernelState.VALIDATED}
        assert {kernel: records[kernel].digest for kernel in kernels} == kernels

        home = pods.home("train-1")
        assert {path.name for path in (home / "keys").iterdir()} == {".lock", "trust.json"}
        usable, refused = Shelf(home).usable(kernels, trust_of(server))
        assert usable.keys() == kernels.keys(), refused
        assert not office.ignored
        assert not office.ignored_of_runs
