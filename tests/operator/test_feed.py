"""Runs heard over a cluster's real bus: each speaks with its own credentials."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from nats.aio.client import Client

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import BusCredentials, BusFiles
from esper_operator.credentials import RunOnBus
from esper_operator.feed import JOURNAL, Feed
from esper_operator.names import run_word
from esper_operator.settings import Settings
from esper_runtime.contracts import (
    Channel,
    CloudEvent,
    ContractModel,
    EventType,
    JournalEntry,
    Progress,
    SeedStage,
    run_subject,
)
from esper_runtime.oona import BusAddress, BusKeeper, connect, disconnect, publish
from tests.operator.test_live import change, entry
from tests.operator.world import KEY, World


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("bus")) as server:
        yield server


async def until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


async def say(client: Client, subject: str, kind: EventType, identity: str, data: ContractModel) -> None:
    event = CloudEvent.new(kind, "/runs/team/small", data, identity)
    await publish(client, subject, event.encoded(), identity, patience=10)


async def say_entry(client: Client, subject: str, made: JournalEntry) -> None:
    await say(client, subject, EventType.JOURNAL, made.digest, made)


async def unacknowledged(keeper: BusKeeper) -> int:
    info = await (await keeper.namespace("team")).jetstream().consumer_info("EVENTS", JOURNAL)
    return int(info.num_ack_pending or 0) + int(info.num_pending or 0)


async def reconcile(world: World) -> None:
    await world.process.runs.reconcile(KEY)
    await world.process.writer.drain()


def stages(world: World) -> list[str]:
    return [str(item["stage"]) for item in world.status["adaptations"]]


def test_progress_and_journal_reach_the_status_and_are_acknowledged_once_it_is_written(
    cluster: ClusterServer,
) -> None:
    world = World()
    world.apply()
    world.settle()
    uid, word = world.run["metadata"]["uid"], run_word(world.run)
    journal, progress = (run_subject("team", word, what) for what in (Channel.JOURNAL, Channel.PROGRESS))

    async def main() -> None:
        async with cluster.keeper() as keeper:
            await keeper.prepare_core()
            credentials = BusCredentials(keeper, BusFiles(cluster.keys), Settings())
            files = await credentials.files(RunOnBus("team", "small", uid), 1)
            address = BusAddress(url=cluster.url, tls_ca=cluster.ca, credentials_text=files["user.creds"])
            trainer = await connect(address, "trainer")
            changed: list[object] = []
            feed = Feed(keeper.namespace, lambda key, _: world.process.runs.live(key), changed.append)
            feed.hear("team")
            feed.hear("team")
            await say(trainer, progress, EventType.PROGRESS, "p1", Progress(step=7, total_steps=60))
            await say_entry(trainer, journal, entry(0, change(SeedStage.GRAFTING)))
            await publish(trainer, journal, b"no event", "rubbish", patience=10)
            await until(lambda: feed.heard == 2 and feed.malformed == 1, "not everything was heard")
            assert set(changed) == {KEY}
            assert await unacknowledged(keeper) >= 1, "the entry is not in the status yet"
            await reconcile(world)
            assert world.status["progress"]["summary"] == "7/60"
            assert stages(world) == ["Grafting"]
            while await unacknowledged(keeper):
                await asyncio.sleep(0.01)

            # The next operator begins with the status, and hears only what came later.
            await feed.stop()
            await asyncio.to_thread(world.begin)
            await say_entry(trainer, journal, entry(1, change(SeedStage.FOSSILIZED)))
            second = Feed(keeper.namespace, lambda key, _: world.process.runs.live(key), changed.append)
            second.hear("team")
            await until(lambda: second.heard == 1, "the later entry was not heard")
            await reconcile(world)
            assert stages(world) == ["Grafting", "Fossilized"]
            await second.stop()

            await disconnect(trainer)

    asyncio.run(main())
