"""The planner and Karn's worker on a real bus: from a training's wish to blueprints in the library."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, encode_signed
from esper_runtime.blueprint import canonical_id, catalogue, validate
from esper_runtime.contracts import (
    PROPOSALS_SUBJECT,
    Blueprint,
    BlueprintBudget,
    BlueprintEntry,
    InnovationWish,
    InputError,
    Interface,
    KernelInterface,
    KernelWish,
    Node,
    Origin,
    Proposal,
    Provenance,
    Role,
    Signed,
)
from esper_runtime.karn import Proposed, serve
from esper_runtime.kasmina import spec_for
from esper_runtime.local.forge import desk_at
from esper_runtime.oona import BundledServer, BusRole, connect, disconnect, publish
from tests.forge.planners import Planner, with_planners
from tests.urza.sayings import compiled, digest_of, kernel_spec, verdict

SLOT = Interface(kind="features", width_in=16, width_out=16)
TARGET = kernel_spec().target
WISH = InnovationWish(
    run="local/one",
    slots=(KernelInterface.of(SLOT, exact=True),),
    target=TARGET,
    blueprints=6,
    budget=BlueprintBudget(parameters=1000),
)
AHEAD = 4


async def wanted(planner: Planner, wish: InnovationWish = WISH) -> None:
    """A training says what it wants to have invented."""
    await (await planner.as_(BusRole.TRAINING)).want_invented(wish)


async def karn(planner: Planner) -> Proposed:
    """Karn works until there is no more work."""
    address = planner.server.address_of(BusRole.KARN)
    return await serve(address, planner.keyring, TARGET.name, idle_seconds=0.0)


async def invented(planner: Planner) -> dict[str, BlueprintEntry]:
    return {id_: one for id_, one in (await planner.library.blueprints()).items() if one.invented}


async def judged(planner: Planner, entry: BlueprintEntry) -> None:
    """A kernel of a blueprint is wished for, made and found good."""
    spec = spec_for(entry.blueprint, SLOT, TARGET, kernel_spec().pipeline)
    await (await planner.as_(BusRole.TRAINING)).wish(KernelWish(spec=spec))
    await planner.say(compiled(spec, digest_of(entry.blueprint)), verdict(spec, digest_of(entry.blueprint)))


def test_what_a_training_wants_is_invented_checked_and_entered_as_far_as_it_is_judged(
    server: BundledServer, home: Path
) -> None:
    async def work(planner: Planner) -> None:
        for name in ("mlp", "low-rank", "gated-mlp"):
            await planner.library.enter(catalogue()[name])
        assert not (await planner.turn()).actions
        assert await planner.items() == 0
        await wanted(planner)
        await planner.turn()
        await planner.turn()
        assert await planner.items() == 1
        done = await karn(planner)
        assert (done.mutated + done.drawn, done.failed) == (AHEAD, 0)
        await planner.turn()
        first = await invented(planner)
        assert len(first) == AHEAD
        for id_, entry in first.items():
            validate(entry.graph)
            made = entry.graph.provenance
            assert canonical_id(entry.graph) == id_
            assert entry.wish == WISH.wish_id
            assert entry.origin == made.origin.value
            assert made.seed is not None
        for _ in range(2):
            await planner.turn()
        assert await planner.items() == 0, "nothing more is asked for while these wait to be judged"
        for entry in first.values():
            await judged(planner, entry)
        await planner.turn()
        assert await planner.items() == 1
        await karn(planner)
        await planner.turn()
        everything = await invented(planner)
        assert len(everything) == WISH.blueprints
        later = [one for id_, one in everything.items() if id_ not in first]
        parents = {parent for one in later for parent in one.graph.provenance.parents}
        assert parents <= set(await planner.library.blueprints())
        for entry in later:
            await judged(planner, entry)
        await planner.turn()
        assert await planner.items() == 0, "the wish has all that it asked for"
        assert planner.real.refused == {}

    with_planners(server, home, 1, work)


def test_another_planner_finds_the_same_and_enters_nothing_twice(server: BundledServer, home: Path) -> None:
    async def work(one: Planner, two: Planner) -> None:
        await wanted(one)
        await asyncio.gather(one.turn(), two.turn())
        await karn(one)
        await asyncio.gather(one.turn(), two.turn())
        found = await invented(one)
        assert len(found) >= AHEAD
        assert await invented(two) == found
        again = await Planner.begin(server, home)
        try:
            await again.turn()
            assert await invented(again) == found
            assert again.real.refused == one.real.refused
        finally:
            await again.end()

    with_planners(server, home, 2, work)


async def say(planner: Planner, *messages: bytes) -> None:
    """Put messages where Karn's proposals are, with Karn's rights."""
    client = await connect(planner.server.address_of(BusRole.KARN), "test")
    for data in messages:
        await publish(client, PROPOSALS_SUBJECT, data, hashlib.sha256(data).hexdigest(), patience=5)
    await disconnect(client)


def proposal(graph: Blueprint, **made: object) -> Proposal:
    provenance = Provenance(origin=Origin.GENERATED, generator="test").model_copy(update=made)
    return Proposal(wish=WISH.wish_id, graph=graph.model_copy(update={"provenance": provenance}))


def without_tail() -> Blueprint:
    """A graph whose output is not zero at birth."""
    return Blueprint(
        name="loud",
        interface="features",
        nodes=(
            Node(id="a", op="linear", inputs=("input",), attributes={"width": "Cout"}),
            Node(id="b", op="sigmoid", inputs=("a",)),
        ),
        output="b",
    )


def unreadable() -> Blueprint:
    return Blueprint(
        name="odd", interface="features", nodes=(Node(id="a", op="pickle", inputs=("input",)),), output="a"
    )


def test_what_may_not_be_entered_is_refused_and_counted_with_the_reason(
    server: BundledServer, home: Path, tmp_path: Path
) -> None:
    said = {
        "zero-tail": proposal(without_tail()),
        "operator": proposal(unreadable()),
        "fit": proposal(catalogue()["bottleneck"]),
        "price": proposal(catalogue()["mlp-double"]),
        "known": proposal(catalogue()["low-rank"]),
        "parents": proposal(catalogue()["mlp-4"], origin=Origin.MUTATED, parents=("bp-" + "0" * 12,)),
        "origin": proposal(catalogue()["mlp-4"], origin=Origin.USER),
        "unwanted": proposal(catalogue()["mlp-8"]).model_copy(update={"wish": "iw-" + "0" * 12}),
    }

    async def work(planner: Planner) -> None:
        await planner.library.enter(catalogue()["low-rank"])
        await wanted(planner)
        stranger = KeyRing(tmp_path / "stranger")
        ours = planner.keyring
        good = proposal(catalogue()["mlp-4"])
        forged = [
            stranger.sign(Role.KARN, good),
            Signed(
                statement=ours.sign(Role.KARN, good).statement,
                signature=ours.sign(Role.URABRASK, verdict(kernel_spec(), digest_of("a"))).signature,
            ),
            ours.sign(Role.URABRASK, verdict(kernel_spec(), digest_of("a"))),
        ]
        messages = [encode_signed(ours.sign(Role.KARN, one)) for one in said.values()]
        messages += [encode_signed(one) for one in forged]
        messages += [b"{}", b"\xff\x00", good.model_dump_json(by_alias=True).encode()]
        await say(planner, *messages)
        await planner.turn()
        assert await invented(planner) == {}
        expected = dict.fromkeys(said, 1) | {"forged": 3, "malformed": 3}
        assert dict(planner.real.refused) == expected
        async with desk_at(server.address, home) as desk:
            assert (await desk.status()).refused == expected
        await say(planner, encode_signed(ours.sign(Role.KARN, good)))
        await planner.turn()
        assert set(await invented(planner)) == {canonical_id(catalogue()["mlp-4"])}
        async with desk_at(server.address, home) as desk:
            status = await desk.status()
        assert status.refused == expected
        assert status.invented == {"Generated": 1}

    with_planners(server, home, 1, work)


def test_a_wish_that_nothing_can_meet_is_given_up_until_a_person_asks_again(
    server: BundledServer, home: Path
) -> None:
    impossible = WISH.model_copy(update={"budget": BlueprintBudget(parameters=1)})

    async def work(planner: Planner) -> None:
        await wanted(planner, impossible)
        await planner.turn()
        assert (await karn(planner)).failed == 1
        for _ in range(2):
            await planner.turn()
        assert await planner.items() == 0
        async with desk_at(server.address, home) as desk:
            (letter,) = (await desk.status()).letters
            assert "at most 1 are wanted" in letter.dead.reason
            assert letter.kernel is None
            with pytest.raises(InputError, match=f"esper forge retry {letter.number}"):
                await desk.drop(str(letter.number))
            assert "asked for again" in await desk.retry(str(letter.number))
            assert not (await desk.status()).letters
        await planner.turn()
        assert await planner.items() == 1

    with_planners(server, home, 1, work)
