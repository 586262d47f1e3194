"""The operator's library on a cluster's real bus: planned for, away, and wiped."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import BusFiles, worker_files
from esper_operator.library import ForgeOffice
from esper_operator.library_metrics import LibraryMetrics
from esper_operator.settings import Settings
from esper_runtime import karn
from esper_runtime.artifact import KeyRing
from esper_runtime.artifact.guarded import guarded_folder
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    BusError,
    InnovationWish,
    Interface,
    KernelInterface,
    KernelState,
    KernelWish,
    Role,
    name_on_bus,
)
from esper_runtime.oona import BusRole, disconnect, publish
from esper_runtime.urza import Library
from tests.operator.offices import RUN, an_office, let_in, say, trust_of, until
from tests.urza.sayings import BLUEPRINT, compiled, digest_of, kernel_spec, verdict

SPEC = kernel_spec()
TARGET = SPEC.target.name
COMPILE = {("compile", TARGET): 1}
A = digest_of("a")
CATALOGUE = {canonical_id(graph) for graph in catalogue().values()}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("bus")) as server:
        yield server


def scraped(office: ForgeOffice) -> str:
    registry = CollectorRegistry()
    registry.register(LibraryMetrics(office))
    return generate_latest(registry).decode()


def state_of(office: ForgeOffice) -> KernelState | None:
    record = office.records().get(SPEC.kernel_id)
    return record.state if record is not None else None


async def run_wishes(server: ClusterServer) -> None:
    """A run says with its own way in what it can use, and what cannot be meant."""
    client = await let_in(server)
    mine = Library(client, trust_of(server), wishes=False)
    await mine.wish(KernelWish(spec=SPEC))
    await publish(client, "$KV.wishes.ck-000000000000", b"{}", "w1", patience=5)
    await disconnect(client)


def test_what_a_run_wishes_for_becomes_work_and_then_a_kernel(server: ClusterServer) -> None:
    async def main() -> None:
        told: list[bool] = []
        async with an_office(server) as office:
            with pytest.raises(BusError, match="cannot be reached"):
                await office.enter(BLUEPRINT, "team/b")
            assert office.depths() is None
            office.changed = lambda: told.append(office.ready)
            await until(lambda: office.ready and office.blueprints().keys() == CATALOGUE, "the catalogue")
            assert office.depths() == {}
            assert await office.enter(BLUEPRINT, "team/b") == SPEC.blueprint
            await run_wishes(server)
            await until(lambda: office.depths() == COMPILE, "work to be done")
            assert office.targets() == {TARGET: SPEC.target}
            await say(server, compiled(SPEC, A))
            await until(lambda: (office.depths() or {}).get(("evaluate", TARGET)) == 1, "a test to be done")
            await say(server, verdict(SPEC, A))
            await until(lambda: state_of(office) is KernelState.VALIDATED, "the kernel")
            text = scraped(office)
            assert 'esper_operator_ignored_words_total{reason="malformed wish"} 1.0' in text
            assert 'esper_operator_kernels{state="Validated"} 1.0' in text
            assert 'esper_operator_forge_items{work="compile"} 1.0' in text
            assert "esper_operator_library_ready 1.0" in text
            assert told[-1]
            await office.archive(SPEC.blueprint, "its resource was deleted")
            await until(lambda: office.blueprints()[SPEC.blueprint].archived, "the archive")
            await office.enter(BLUEPRINT, "team/b", reinstate=True)
            await until(lambda: office.blueprints()[SPEC.blueprint].archived is None, "the way back")

    asyncio.run(main())


def test_what_a_run_wants_invented_is_proposed_by_karn_with_its_own_way_in_and_entered(
    server: ClusterServer, tmp_path: Path
) -> None:
    slot = Interface(kind="features", width_in=16, width_out=16)
    wish = InnovationWish(
        run=f"{RUN.namespace}/{name_on_bus(RUN.name, RUN.uid)}",
        slots=(KernelInterface.of(slot, exact=True),),
        target=SPEC.target,
        blueprints=2,
    )

    async def main() -> None:
        async with an_office(server) as office:
            await until(lambda: office.ready and office.blueprints().keys() == CATALOGUE, "the catalogue")
            client = await let_in(server)
            mine = Library(client, trust_of(server), wishes=False)
            await mine.want_invented(wish.model_copy(update={"run": "rivals/theirs"}))
            await mine.want_invented(wish)
            await disconnect(client)
            await until(lambda: office.depths() == {("generate", TARGET): 1}, "work for Karn")
            assert office.ignored_of_runs == {"misplaced wish": 1}
            keyring = mounted(server, Role.KARN, tmp_path)
            await karn.serve(server.address_of(BusRole.KARN), keyring, TARGET, idle_seconds=0.0)
            await until(lambda: sum(one.invented for one in office.blueprints().values()) == 2, "inventions")
            found = [one for one in office.blueprints().values() if one.invented]
            assert {one.wish for one in found} == {wish.wish_id}
            assert office.refused_proposals() == {}
            await until(lambda: office.depths() == {}, "an empty queue")

    asyncio.run(main())


def mounted(server: ClusterServer, role: Role, folder: Path) -> KeyRing:
    """The keys that a worker's pod has of its Secret."""
    keys = guarded_folder(folder / "home" / "keys")
    settings = Settings(nats_url=server.address_of(BusRole(role.value)).url)
    for name, text in worker_files(BusFiles(server.keys), settings, role, BusRole(role.value)).items():
        if name.endswith(".pem") or name == "trust.json":
            (keys / name).write_text(text)
            (keys / name).chmod(0o600)
    return KeyRing(folder / "home")


def test_what_was_seen_stays_while_the_bus_is_away_and_it_is_planned_for_once_it_is_back(
    server: ClusterServer,
) -> None:
    async def main() -> None:
        async with an_office(server) as office:
            await until(lambda: office.ready, "the library")
            await office.enter(BLUEPRINT, "team/b")
            await until(lambda: SPEC.blueprint in office.blueprints(), "the blueprint")
            before = office.incarnation
            server.kill()
            await until(lambda: not office.ready, "its absence")
            assert office.depths() is None
            assert SPEC.blueprint in office.blueprints()
            assert office.incarnation == before
            assert "esper_operator_library_ready 0.0" in scraped(office)
            assert "esper_operator_forge_items" not in scraped(office)
            server.start()
            await until(lambda: office.ready, "its return")
            assert office.incarnation == before
            await office.wish(SPEC)
            await until(lambda: office.depths() == COMPILE, "work to be done")

    asyncio.run(main())


def test_a_wiped_bus_is_another_library_which_lets_runs_in_and_is_planned_for(
    server: ClusterServer,
) -> None:
    async def main() -> None:
        async with an_office(server) as office:
            await until(lambda: office.ready, "the library")
            await office.enter(BLUEPRINT, "team/b")
            await office.wish(SPEC)
            await until(lambda: office.depths() == COMPILE, "work to be done")
            before = office.incarnation
            server.wipe()
            server.start()
            await until(lambda: office.incarnation not in (None, before), "another library")
            await until(lambda: office.ready and office.blueprints().keys() == CATALOGUE, "the catalogue")
            assert office.depths() == {}
            assert await office.enter(BLUEPRINT, "team/b") == SPEC.blueprint
            await run_wishes(server)
            await until(lambda: office.depths() == COMPILE, "work to be done again")

    asyncio.run(main())
