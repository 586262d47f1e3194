import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from nats.aio.client import Client

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    BusError,
    CompileWork,
    EvaluateWork,
    Interface,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Target,
)
from esper_runtime.oona import (
    MOST_DELIVERIES,
    BundledServer,
    WorkItem,
    WorkQueue,
    connect,
    ensure_streams,
    publish,
)
from tests.oona.bus import kill, messages, on_bus

TARGET = Target(device="cpu", arch="avx2", torch="2.13.0")


def item(number: int = 0) -> EvaluateWork:
    return EvaluateWork(kernel=f"ck-{number:012x}", digest=f"{number:064x}")


def compile_item() -> CompileWork:
    graph = catalogue()["bottleneck"]
    slot = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(4,), spatial_out=(4,))
    spec = KernelSpec(
        blueprint=canonical_id(graph),
        interface=KernelInterface.of(slot),
        target=TARGET,
        pipeline=Pipeline.FAST,
    )
    return CompileWork(spec=spec, graph=graph)


def with_queue(server: BundledServer, use: Callable[[WorkQueue, Client], Awaitable[None]]) -> None:
    async def run(client: Client) -> None:
        await ensure_streams(client.jetstream())
        queue = WorkQueue(client, "evaluate", TARGET.name)
        await queue.ensure()
        await use(queue, client)

    on_bus(server.address, run)


async def take(queue: WorkQueue, count: int) -> list[WorkItem]:
    """So many items; a fetch may bring fewer."""
    found = []
    while len(found) < count:
        found += await queue.fetch(count - len(found), timeout=5)
    return found


async def soon(queue: WorkQueue, client: Client) -> None:
    """Have what is not acknowledged come again at once."""
    info = await client.jetstream().consumer_info("FORGE", queue.durable)
    config = info.config
    config.ack_wait = 0.2
    await client.jetstream().add_consumer("FORGE", config)


def test_work_is_handed_out_and_gone_when_it_is_done(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        for number in range(3):
            await queue.publish(item(number), f"ck-{number}-0")
        assert await queue.depth() == 3
        found = await take(queue, 3)
        assert [each.spec for each in found] == [item(number) for number in range(3)]
        assert await queue.depth() == 3
        for each in found:
            await each.done()
        assert await queue.depth() == 0
        assert await queue.fetch(timeout=0.1) == []

    with_queue(server, use)
    assert messages(server.address, "FORGE") == []


def test_each_kind_and_target_is_a_queue_of_its_own(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        other = WorkQueue(client, "compile", TARGET.name)
        far = WorkQueue(client, "evaluate", "cuda-sm-90-torch-2-13-0")
        await other.ensure()
        await far.ensure()
        await queue.publish(item(1), "a")
        await other.publish(compile_item(), "a")
        await far.publish(item(2), "b")
        assert [each.spec for each in await far.fetch(5)] == [item(2)]
        assert [each.spec for each in await other.fetch(5)] == [compile_item()]
        assert [each.spec for each in await queue.fetch(5)] == [item(1)]
        with pytest.raises(BusError, match="CompileWork is no work of this queue"):
            await queue.publish(compile_item(), "x")

    with_queue(server, use)


def test_the_same_work_published_twice_is_stored_once(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        assert await queue.publish(item(), "ck-0-1") == await queue.publish(item(), "ck-0-1")
        await queue.publish(item(), "ck-0-2")
        assert await queue.depth() == 2

    with_queue(server, use)


def test_what_a_dead_worker_had_comes_again(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await soon(queue, client)
        await queue.publish(item(), "a")
        dying = await connect(server.address, "dying")
        assert len(await WorkQueue(dying, "evaluate", TARGET.name).fetch()) == 1
        await dying.close()
        (again,) = await queue.fetch(timeout=5)
        assert again.deliveries == 2
        await again.done()

    with_queue(server, use)


def test_work_in_progress_does_not_come_to_another(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await soon(queue, client)
        await queue.publish(item(), "a")
        (mine,) = await queue.fetch()
        other = WorkQueue(client, "evaluate", TARGET.name)
        for _ in range(8):
            await mine.in_progress()
            assert await other.fetch(timeout=0.1) == []
        await mine.done()
        assert await queue.depth() == 0

    with_queue(server, use)


def test_a_copy_of_what_is_in_hand_is_not_handed_out(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await soon(queue, client)
        await queue.publish(item(), "a")
        (mine,) = await queue.fetch()
        assert await queue.fetch(timeout=0.6) == []
        await mine.done()
        assert await queue.depth() == 0

    with_queue(server, use)


def test_work_is_tried_again_after_its_delay_and_given_up_with_the_last_reason(
    server: BundledServer,
) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await queue.publish(item(7), "a")
        for number in range(MOST_DELIVERIES):
            (each,) = await queue.fetch(timeout=5)
            assert each.deliveries == number + 1
            await each.retry(0.01, "the disk is full")
        assert await queue.depth() == 0

    with_queue(server, use)
    (letter,) = messages(server.address, "DEAD")
    assert letter["reason"] == "the disk is full (try 5 of 5)"
    assert letter["deliveries"] == 5
    assert EvaluateWork.model_validate(letter["item"]) == item(7)


def test_what_is_given_up_is_kept_with_its_reason(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await queue.publish(item(7), "a")
        (mine,) = await queue.fetch()
        await mine.give_up("no compiler")
        assert await queue.depth() == 0

    with_queue(server, use)
    assert messages(server.address, "FORGE") == []
    (letter,) = messages(server.address, "DEAD", f"esper.dead.evaluate.{TARGET.name}")
    assert (letter["reason"], letter["target"]) == ("no compiler", TARGET.name)


def test_an_item_that_kills_its_workers_is_given_up_by_the_next(server: BundledServer) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await soon(queue, client)
        await queue.publish(item(666), "a")
        for _ in range(MOST_DELIVERIES):
            dying = WorkQueue(client, "evaluate", TARGET.name)
            assert len(await dying.fetch(timeout=5)) == 1
        assert await queue.fetch(timeout=5) == []
        assert await queue.depth() == 0

    with_queue(server, use)
    (letter,) = messages(server.address, "DEAD")
    assert "handed out 5 times, and no worker said what became of it" in letter["reason"]
    assert letter["item"] is not None


@pytest.mark.parametrize("payload", [b"", b"\xff", b'{"kernel": "x"}', b"[]"])
def test_what_cannot_be_read_is_given_up_as_it_came(server: BundledServer, payload: bytes) -> None:
    async def use(queue: WorkQueue, client: Client) -> None:
        await publish(client, queue.subject, payload, "a")
        await queue.publish(item(), "b")
        assert [each.spec for each in await take(queue, 1)] == [item()]

    with_queue(server, use)
    (letter,) = messages(server.address, "DEAD")
    assert letter["item"] is None
    assert letter["payload"] == payload.decode(errors="replace")
    assert "cannot be read" in letter["reason"]


def test_before_the_planner_made_it_a_queue_is_empty_and_its_depth_unknown(server: BundledServer) -> None:
    async def use(client: Client) -> None:
        await ensure_streams(client.jetstream())
        queue = WorkQueue(client, "evaluate", TARGET.name)
        assert await queue.fetch(timeout=0.2) == []
        assert await queue.depth() is None
        await queue.ensure()
        await queue.ensure()
        await queue.publish(item(), "a")
        assert len(await queue.fetch(timeout=5)) == 1

    on_bus(server.address, use)


def test_through_a_kill_of_the_server_nothing_is_lost_and_one_letter_is_kept(
    server: BundledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.oona.work._PATIENCE", 2.0)

    async def use(queue: WorkQueue, client: Client) -> None:
        await queue.publish(item(1), "a")
        await queue.publish(item(2), "b")
        found = await take(queue, 2)
        await asyncio.to_thread(kill, server)
        await asyncio.to_thread(server.restart)
        for _ in range(2):  # the server may have forgotten that it handed an item out: then it comes again
            for each in found:
                with contextlib.suppress(BusError):
                    await (each.done() if each.spec == item(1) else each.give_up("no"))
            found = await queue.fetch(2)
        assert await queue.depth() == 0

    with_queue(server, use)
    assert [letter["reason"] for letter in messages(server.address, "DEAD")] == ["no"]
    assert messages(server.address, "FORGE") == []
