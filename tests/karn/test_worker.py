"""Karn's worker on a real bus: what it proposes, and what becomes of work that it cannot do."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from esper_runtime.artifact import KeyRing, decode_signed
from esper_runtime.blueprint import canonical_id, catalogue, screen
from esper_runtime.contracts import (
    BlueprintBudget,
    DeadWork,
    GenerateWork,
    GenerationError,
    InterfaceKind,
    Origin,
    Proposal,
    Role,
)
from esper_runtime.karn import propose, serve
from esper_runtime.oona import BundledServer, BusRole, Tail, WorkQueue
from esper_runtime.urza import Library
from tests.blueprint.graphs import residual_slot
from tests.karn.slots import class_of
from tests.oona.bus import on_bus

TARGET = "cpu-avx2-torch-2-13-0"
SLOTS = class_of(residual_slot(InterfaceKind.FEATURES, 16))
WISH = "iw-" + "0" * 12
PARENTS = (catalogue()["mlp"], catalogue()["gated-mlp"])
WORK = GenerateWork(wish=WISH, slots=SLOTS, parents=PARENTS, number=6, seed=13)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundledServer]:
    with BundledServer(tmp_path_factory.mktemp("bus"), roles=True) as server:
        yield server


@pytest.fixture
def keyring(tmp_path: Path) -> KeyRing:
    ring = KeyRing(tmp_path / "home")
    for role in Role:
        ring.ensure(role)
    return ring


def test_proposals_are_new_fit_and_say_where_they_come_from() -> None:
    known = {canonical_id(blueprint) for blueprint in catalogue().values()}
    found = propose(WORK, known)
    ids = [canonical_id(one.graph) for one in found]
    assert len(ids) == len(set(ids)) == WORK.number
    assert not known & set(ids)
    parents = {canonical_id(parent) for parent in PARENTS}
    for one in found:
        made = one.graph.provenance
        assert screen(one.graph, SLOTS, WORK.budget) is None
        assert made.seed is not None
        assert made.origin is (Origin.MUTATED if made.parents else Origin.GENERATED)
        assert set(made.parents) <= parents
    assert {one.graph.provenance.origin for one in found} == {Origin.MUTATED, Origin.GENERATED}
    assert found == propose(WORK, known)
    again = propose(WORK, known | set(ids))
    assert not set(ids) & {canonical_id(one.graph) for one in again}


def test_parents_that_fit_nothing_here_are_no_reason_to_propose_nothing() -> None:
    work = WORK.model_copy(update={"parents": (catalogue()["bottleneck"],)})
    assert {one.graph.provenance.origin for one in propose(work, ())} == {Origin.GENERATED}


def test_where_nothing_can_be_found_that_is_said() -> None:
    with pytest.raises(GenerationError, match="were refused"):
        propose(WORK.model_copy(update={"budget": BlueprintBudget(parameters=1), "parents": ()}), ())


def test_the_worker_proposes_signed_and_gives_up_with_the_reason(
    bus: BundledServer, keyring: KeyRing
) -> None:
    impossible = WORK.model_copy(update={"budget": BlueprintBudget(parameters=1), "seed": 99})

    async def plan(client: Client) -> None:
        library = Library(client, keyring.trust, keeper=True)
        for blueprint in PARENTS:
            await library.enter(blueprint)
        queue = WorkQueue(client, "generate", TARGET)
        await queue.ensure()
        for work in (WORK, impossible):
            await queue.publish(work, f"{work.wish}-{work.seed}")

    on_bus(bus.address, plan)
    done = asyncio.run(serve(bus.address_of(BusRole.KARN), keyring, TARGET, idle_seconds=0.5))
    assert (done.mutated + done.drawn, done.failed, done.again) == (WORK.number, 1, 0)

    async def read(client: Client) -> tuple[list[Proposal], list[DeadWork], int | None]:
        said = await Tail(client.jetstream(), "PROPOSALS").read()
        letters = await Tail(client.jetstream(), "DEAD").read()
        found = [keyring.trust.verify_proposal(decode_signed(kept.data)) for kept in said]
        dead = [DeadWork.model_validate_json(kept.data) for kept in letters]
        return found, dead, await WorkQueue(client, "generate", TARGET).depth()

    proposals, dead, left = on_bus(bus.address, read)
    assert proposals == propose(WORK, {canonical_id(parent) for parent in PARENTS})
    assert [letter.item for letter in dead] == [impossible]
    assert "at most 1 are wanted" in dead[0].reason
    assert left == 0
