"""A cluster's bus that has lost its storage: told from an empty library, and filled again."""

import asyncio
from pathlib import Path

from benchmarks.cluster_server import ClusterServer
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import BusError, KernelState, Signed
from esper_runtime.oona import Bridge, BusKeeper, BusRole
from esper_runtime.urza import Library
from tests.oona.bus import Journal
from tests.urza.libraries import until
from tests.urza.sayings import compiled, digest_of, kernel_spec, sign, verdict

UID = "0123abcd-1111-2222-3333-444444444444"
NAME = "small-0123abcd"
GRAPHS = list(catalogue().values())[:40]
SPECS = [kernel_spec(canonical_id(graph)) for graph in GRAPHS[:10]]


def words(keyring: KeyRing) -> dict[BusRole, list[Signed]]:
    """What the workers say once they have made and tested the kernels."""
    digests = {spec.kernel_id: digest_of(spec.kernel_id) for spec in SPECS}
    return {
        BusRole.TEZZERET: [sign(keyring, compiled(spec, digests[spec.kernel_id])) for spec in SPECS],
        BusRole.URABRASK: [sign(keyring, verdict(spec, digests[spec.kernel_id])) for spec in SPECS],
    }


async def fill(server: ClusterServer, keeper: BusKeeper, library: Library, keyring: KeyRing) -> list[str]:
    """Enter the blueprints and have the workers say their words; returns the blueprints' ids."""
    entered = [await library.enter(graph, "User") for graph in GRAPHS]
    for role, said in words(keyring).items():
        async with await Library.connect(server.address_of(role), keyring.trust) as worker:
            for signed in said:
                await worker.publish(signed)
    return entered


async def validated(library: Library) -> set[str]:
    records = await library.records()
    return {kernel for kernel, record in records.items() if record.state is KernelState.VALIDATED}


def test_a_wiped_bus_is_told_from_an_empty_library_and_filled_again(tmp_path: Path, keyring: KeyRing) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(5)
    with ClusterServer(tmp_path / "bus") as server:
        asyncio.run(_wiped(server, keyring, journal))


async def _wiped(server: ClusterServer, keyring: KeyRing, journal: Journal) -> None:
    async with server.keeper() as keeper:
        made = await keeper.prepare_core()
        await keeper.prepare_run("team", "small", UID, 1)
        library = Library(await keeper.core(), keyring.trust, keeper=True)
        await library.refresh()
        before = library.incarnation
        assert before is not None
        entered = await fill(server, keeper, library, keyring)
        kernels = await validated(library)
        assert (len(set(entered)), len(kernels)) == (40, 10)

        for entry in list(await library.blueprints()):
            await library.archive(entry, "not wanted")
        assert library.incarnation == before  # emptied by hand: the same library
        for graph in GRAPHS:
            await library.enter(graph, reinstate=True)

        run = Bridge(server.address_of_run("team", "small", UID), "team", NAME, "/runs/x", journal.path)
        with run:
            await until(lambda: _holds(run.counts().journal == 4))
            server.wipe()
            journal.grow(5)  # the training goes on meanwhile
            server.start()
            assert await until(lambda: _made(keeper)) == made
            await library.refresh()
            assert library.incarnation not in (None, before)
            assert not await library.blueprints()
            assert not await library.records()
            assert await keeper.prepare_run("team", "small", UID, 1)
            assert await fill(server, keeper, library, keyring) == entered
            assert await validated(library) == kernels
            await until(lambda: _holds(run.counts().journal == 9))
            assert not run.overtaken


async def _holds(what: bool) -> bool:
    return what


async def _made(keeper: BusKeeper) -> list[str] | None:
    try:
        return await keeper.prepare_core()
    except BusError:  # the connection comes back in a moment
        return None
