"""Runs on a real bus over several lives of the operator: who is let in, and what is left of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_operator.credentials import RunOnBus
from esper_operator.feed import Feed
from esper_operator.kube import JOB, RUN
from esper_operator.names import RunKey
from esper_operator.sweep import BusSweep, due
from esper_runtime.contracts import BusError, Channel, Progress, SeedStage, canonical_json, run_subject
from esper_runtime.oona import Bridge, BusKeeper, connect, disconnect
from tests.operator.test_feed import say_entry, until
from tests.operator.test_live import change, entry
from tests.operator.world import World

ELSEWHERE = {"checkpoint": {"uri": "s3://bucket/c"}, "output": {"uri": "s3://bucket/o"}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("bus")) as server:
        yield server


def key(name: str) -> RunKey:
    return RunKey("team", name)


def on_bus(world: World, name: str) -> RunOnBus:
    return RunOnBus("team", name, world.cluster.one(RUN, name)["metadata"]["uid"])


def trains(world: World, name: str, **spec: object) -> RunOnBus:
    """A run whose first attempt trains."""
    world.apply(name, **spec)
    world.process.one_pass(key(name))
    world.cluster.run_jobs()
    world.process.one_pass(key(name))
    return on_bus(world, name)


def ends(world: World, name: str) -> None:
    """Its Job is complete, its end recorded, and its Job and pods are gone."""
    done = {"conditions": [{"type": "Complete", "status": "True", "reason": "R"}]}
    world.cluster.change(JOB, f"{name}-1", status=done)
    world.process.one_pass(key(name))
    world.process.one_pass(key(name))
    world.cluster.collect()
    assert world.cluster.one(RUN, name)["status"]["phase"] == "Succeeded"


def sweeper(keeper: BusKeeper, world: World) -> BusSweep:
    return BusSweep(keeper, lambda: due(world.process.store))


async def speaks(server: ClusterServer, keeper: BusKeeper, run: RunOnBus) -> None:
    """Two entries of its journal, said with its own credentials."""
    await keeper.prepare_run(run.namespace, run.name, run.uid, 1)
    trainer = await connect(server.address_of_run(run.namespace, run.name, run.uid), "trainer")
    subject = run_subject(run.namespace, run.word, Channel.JOURNAL)
    for number, stage in enumerate((SeedStage.GRAFTING, SeedStage.FOSSILIZED)):
        await say_entry(trainer, subject, entry(number, change(stage, text=run.name)))
    await disconnect(trainer)


async def holds(wanted: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(2000):
        if await wanted():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


def test_what_an_earlier_operator_let_in_is_withdrawn_and_removed_once_its_status_says_it(
    cluster: ClusterServer,
) -> None:
    world = World()
    going, ended, elsewhere, gone = (
        trains(world, "going"),
        trains(world, "ended"),
        trains(world, "elsewhere", **ELSEWHERE),
        trains(world, "gone"),
    )
    for name in ("ended", "elsewhere"):
        ends(world, name)
    world.cluster.remove(RUN, "team", "gone")
    world.cluster.collect()
    world.begin()

    async def earlier() -> None:
        async with cluster.keeper() as keeper:
            await keeper.prepare_core()
            for run in (going, ended, elsewhere, gone):
                await speaks(cluster, keeper, run)

    async def later() -> None:
        async with cluster.keeper() as keeper:
            sweep = sweeper(keeper, world)
            await sweep.sweep()
            assert ("team", "gone", gone.uid) in await keeper.runs(), "it may be another one's trial"
            await sweep.sweep()
            assert await keeper.runs() == {("team", "going", going.uid)}
            with pytest.raises(BusError, match="refuses"):
                await connect(cluster.address_of_run("team", "gone", gone.uid), "stale")
            kept = {run.word for run in (going, ended, elsewhere)}
            assert await keeper.runs_on_record("team") == kept, "what was not heard yet stays"

            feed = Feed(keeper.namespace, lambda key, _: world.process.runs.live(key), lambda key: None)
            feed.hear("team")
            await until(lambda: feed.heard == 6, "not everything was heard")
            for _ in range(2):
                await sweep.sweep()
            assert ended.word in await keeper.runs_on_record("team"), "its status does not say it yet"
            for name in ("going", "ended", "elsewhere"):
                await world.process.runs.reconcile(key(name))
            await world.process.writer.drain()

            async def removed() -> bool:
                await sweep.sweep()
                return await keeper.runs_on_record("team") == {going.word, elsewhere.word}

            await holds(removed, "the ended run's messages stay, or others went with them")
            await feed.stop()
        said = world.cluster.one(RUN, "ended")["status"]
        assert [item["stage"] for item in said["adaptations"]] == ["Grafting", "Fossilized"]

    asyncio.run(earlier())
    asyncio.run(later())


def test_runs_of_namespaces_that_are_not_watched_are_left_alone(cluster: ClusterServer) -> None:
    async def main() -> None:
        async with cluster.keeper() as keeper:
            await keeper.prepare_core()
            theirs = RunOnBus("theirs", "small", "0123abcd-1111-2222-3333-444444444444")
            await speaks(cluster, keeper, theirs)
            world = await asyncio.to_thread(World)
            sweep = BusSweep(keeper, lambda: due(world.process.store), ("team",))
            for _ in range(2):
                await sweep.sweep()
            assert ("theirs", "small", theirs.uid) in await keeper.runs()
            assert await keeper.runs_on_record("theirs") == {theirs.word}

    asyncio.run(main())


def test_a_pod_that_still_writes_after_the_end_was_recorded_is_let_in(cluster: ClusterServer) -> None:
    world = World()
    run = trains(world, "late", deadlines={"activeSeconds": 60})
    world.now += 61
    for _ in range(2):
        world.process.one_pass(key("late"))
    assert world.cluster.one(RUN, "late")["status"]["phase"] == "Failed"
    assert run in due(world.process.store).going, "its pod is told to end, and is not gone"
    world.cluster.collect()
    assert due(world.process.store).ended == {run: True}


def test_after_a_wipe_of_the_bus_a_run_that_goes_on_is_let_in_again_and_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("AGAIN", 0.2), ("WAIT", 0.5)):
        monkeypatch.setattr(f"esper_operator.feed.{name}", seconds)
    world = World()
    run = trains(world, "small")
    journal = tmp_path / "journal.jsonl"
    first = entry(0, change(SeedStage.GRAFTING)).model_dump(mode="json", by_alias=True)
    journal.write_bytes(canonical_json(first) + b"\n")

    async def copied(keeper: BusKeeper) -> bool:
        js = (await keeper.namespace("team")).jetstream()
        subject = run_subject("team", run.word, Channel.JOURNAL)
        state = (await js.stream_info("EVENTS", subjects_filter=subject)).state
        return state.subjects == {subject: 1}

    async def main(server: ClusterServer) -> None:
        async with server.keeper() as keeper:
            await keeper.prepare_core()
            sweep = sweeper(keeper, world)
            await sweep.restore()
            assert ("team", "small", run.uid) in await keeper.runs(), "the bus is new, and the run goes on"
            feed = Feed(keeper.namespace, lambda key, _: world.process.runs.live(key), lambda key: None)
            feed.hear("team")
            address = server.address_of_run("team", "small", run.uid)
            with Bridge(address, "team", run.word, "/runs/team/small", journal) as bridge:
                bridge.progress(Progress(step=5, total_steps=60))
                await until(lambda: shown(world) == 5, "the run is not heard")

                await asyncio.to_thread(server.wipe)
                await asyncio.to_thread(server.start)
                await holds(restored(sweep), "the run is not let in again")
                await keeper.prepare_core()
                step = 5

                async def heard_again() -> bool:
                    nonlocal step
                    step += 1
                    bridge.progress(Progress(step=step, total_steps=10_000))
                    await asyncio.sleep(0.02)
                    return shown(world) > 5

                await holds(heard_again, "the run is not heard after the wipe")
                await holds(lambda: copied(keeper), "its journal is not copied again")
            await feed.stop()

    with ClusterServer(tmp_path / "bus") as server:
        asyncio.run(main(server))


def shown(world: World) -> int:
    live = world.process.runs.live(key("small"))
    return 0 if live is None or live.progress is None else live.progress.step


def restored(sweep: BusSweep) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        try:
            await sweep.restore()
            return True
        except BusError:
            return False

    return look
