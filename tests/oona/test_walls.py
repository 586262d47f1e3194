"""Who may say what on a cluster's bus, and what becomes of all that is tried beyond that."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster_bus import measure
from benchmarks.cluster_scene import RUNS
from benchmarks.cluster_server import ClusterServer
from esper_runtime.oona import BusAddress, BusRole
from tests.oona.bus import is_let, on_bus

FORGERS = {"tezzeret", "urabrask"}
WORKERS = {*FORGERS, "karn"}
LIBRARY = {*FORGERS, "reader", *RUNS}
WHO = {*LIBRARY, "karn"}
SMALL, LARGE = "team.small-0123abcd", "team.large-89abcdef"

MAY_SAY: dict[str, set[str]] = {
    # the library: words by role, blueprints and rulings by the operator alone
    "$KV.verdicts.k": {"urabrask"},
    "$KV.compiled.k": {"tezzeret"},
    "$KV.rulings.k": set(),
    "$KV.blueprints.k": set(),
    "$KV.notes.k": set(),
    "$KV.wishes.k": set(RUNS),  # arrives as esper.run.NAMESPACE.RUN.wish.k
    "$O.artifacts.C.k": {"tezzeret"},
    "esper.library.events": FORGERS,
    "esper.library.proposals": {"karn"},
    # work
    "esper.forge.compile.cpu": set(),
    "esper.forge.generate.cpu": set(),
    "esper.dead.compile.cpu": {"tezzeret"},
    "esper.dead.evaluate.cpu": {"urabrask"},
    "esper.dead.generate.cpu": {"karn"},
    "esper.api.CONSUMER.MSG.NEXT.FORGE.compile-cpu": WORKERS,
    "esper.api.CONSUMER.MSG.NEXT.FORGE.generate-cpu": WORKERS,
    "$JS.ACK.FORGE.compile-cpu.1.1.1.1.0": WORKERS,
    # a run's own
    f"esper.run.{SMALL}.journal": {"run"},
    f"esper.run.{SMALL}.telemetry": {"run"},
    f"esper.run.{SMALL}.progress": {"run"},
    f"esper.run.{SMALL}.report": {"run"},
    f"esper.run.{SMALL}.directive": set(),
    f"esper.run.{LARGE}.journal": {"neighbour"},
    "esper.run.rivals.small-0123abcd.journal": {"rival"},
    "esper.api.CONSUMER.MSG.NEXT.EVENTS.run_team_small-0123abcd": {"run"},
    "esper.api.CONSUMER.MSG.NEXT.EVENTS.run_team_large-89abcdef": {"neighbour"},
    f"esper.api.DIRECT.GET.EVENTS.esper.run.{SMALL}.journal": {"run"},
    f"esper.api.DIRECT.GET.EVENTS.esper.run.{SMALL}.directive": set(),
    "esper.api.DIRECT.GET.EVENTS": set(),
    "esper.api.STREAM.MSG.GET.EVENTS": set(),
    # reading the library
    "esper.api.STREAM.MSG.GET.KV_blueprints": WHO,
    "esper.api.STREAM.MSG.GET.KV_verdicts": LIBRARY,
    "esper.api.STREAM.MSG.GET.OBJ_artifacts": LIBRARY,
    "esper.api.STREAM.MSG.GET.PROPOSALS": set(),
    "esper.api.STREAM.MSG.GET.KV_wishes": {*FORGERS, "reader"},
    "esper.api.STREAM.MSG.GET.KV_notes": set(),
    "esper.api.STREAM.MSG.GET.REPORTS": {"urabrask", "reader"},
    # commands of JetStream and of the server
    "esper.api.STREAM.DELETE.KV_verdicts": set(),
    "esper.api.STREAM.PURGE.EVENTS": set(),
    "esper.api.CONSUMER.CREATE.EVENTS": set(),
    "$JS.API.STREAM.DELETE.KV_verdicts": set(),
    "$JS.API.STREAM.CREATE.MINE": set(),
    "$SYS.REQ.CLAIMS.UPDATE": set(),
}
"""By subject: which credentials the server lets publish to it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("cluster")) as server:

        async def prepare() -> None:
            async with server.keeper() as keeper:
                await keeper.prepare_core()
                for namespace, run, uid in RUNS.values():
                    await keeper.prepare_run(namespace, run, uid, 1)

        asyncio.run(prepare())
        yield server


def address(cluster: ClusterServer, who: str) -> BusAddress:
    return cluster.address_of_run(*RUNS[who]) if who in RUNS else cluster.address_of(BusRole(who))


@pytest.mark.parametrize("who", sorted(WHO))
def test_each_credential_says_what_the_table_allows(cluster: ClusterServer, who: str) -> None:
    async def said(client: object) -> set[str]:
        return {subject for subject in MAY_SAY if await is_let(client, publish=subject)}  # type: ignore[arg-type]

    assert on_bus(address(cluster, who), said) == {s for s, names in MAY_SAY.items() if who in names}


def test_nothing_lands_where_it_may_not_be_said_and_nobody_hears_another(tmp_path: Path) -> None:
    with ClusterServer(tmp_path / "bus") as server:
        tallies, controls, wrong = asyncio.run(measure(server, tmp_path))
    assert not wrong
    assert all(controls.values()), controls
    for name, tally in tallies.items():
        assert tally.kept, (name, tally)
        assert tally.sent > 5000
    assert tallies["run"].ignored["malformed wish"] > 0
    assert tallies["tezzeret"].ignored.total() > 0
    assert tallies["urabrask"].ignored.total() > 0
    assert tallies["karn"].ignored["malformed"] > 0
