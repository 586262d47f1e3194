"""What a person asks of the forge."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from esper_runtime.contracts import CloudEvent, FieldReport, InputError, KernelSpec, KernelState
from esper_runtime.forge import Desk
from esper_runtime.local.forge import desk_at
from esper_runtime.oona import BundledServer, BusRole, publish_event
from tests.forge.planners import TARGET, Planner, with_planners
from tests.urza.sayings import compiled, digest_of, failed, verdict

A = digest_of("a")


def at_desk(server: BundledServer, home: Path, work: Callable[[Planner, Desk], Awaitable[None]]) -> None:
    async def both(planner: Planner) -> None:
        async with desk_at(server.address, home) as desk:
            await work(planner, desk)

    with_planners(server, home, 1, both)


async def given_up(planner: Planner, number: int = 0) -> KernelSpec:
    """A kernel whose compile a worker has given up."""
    spec = await planner.wish(number)
    await planner.turn()
    [item] = await planner.fetch("compile")
    await item.give_up("the compiler is on strike")
    return spec


def test_status_counts_kernels_queues_and_dead_letters(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        await given_up(planner, 1)
        done = await planner.wish(2)
        await planner.say(compiled(done, A), verdict(done, A))
        tested = await planner.wish(3)
        await planner.say(compiled(tested, A))
        await planner.wish(4)
        await planner.turn()
        status = await desk.status()
        assert status.states == {"Pending": 1, "Compiling": 1, "Benchmarking": 1, "Validated": 1}
        assert {(q.work, q.target, q.items) for q in status.queues} == {
            ("compile", TARGET, 1),
            ("evaluate", TARGET, 1),
        }
        assert [letter.dead.reason for letter in status.letters] == ["the compiler is on strike"]

    at_desk(server, home, work)


def test_a_dead_letter_is_tried_again_once_a_person_says_so(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        spec = await given_up(planner)
        assert not (await planner.turn()).actions
        assert spec.kernel_id in await desk.retry(spec.kernel_id)
        await planner.turn()
        assert not (await desk.status()).letters
        [item] = await planner.fetch("compile")
        assert item.spec.attempt == 2

    at_desk(server, home, work)


def test_all_dead_letters_are_tried_again_together(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        for number in range(3):
            await given_up(planner, number)
        assert len(await desk.retry_all()) == 3
        assert len((await planner.turn()).actions) == 3
        assert await desk.retry_all() == []

    at_desk(server, home, work)


def test_what_was_dropped_is_left_alone_until_it_is_retried(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        dead = await given_up(planner, 1)
        waiting = await planner.wish(2)
        await planner.turn()
        [letter] = (await desk.status()).letters
        await desk.drop(str(letter.number))
        await desk.drop(waiting.kernel_id)
        assert not (await desk.status()).letters
        assert await planner.items() == 0
        assert not (await planner.turn()).actions
        await desk.retry(dead.kernel_id)
        assert len((await planner.turn()).actions) == 1

    at_desk(server, home, work)


def test_an_item_that_cannot_be_read_can_be_dropped_and_not_retried(
    server: BundledServer, home: Path
) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        queue = await planner.actor.queue("compile", TARGET)
        await planner.client.jetstream().publish(queue.subject, b"\xff nonsense")
        assert await planner.fetch("compile") == []
        [letter] = (await desk.status()).letters
        assert "cannot be read" in letter.dead.reason
        with pytest.raises(InputError, match="drop it"):
            await desk.retry(str(letter.number))
        await desk.drop(str(letter.number))
        assert not (await desk.status()).letters

    at_desk(server, home, work)


def test_what_cannot_be_tried_again_says_why(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        good, bad = await planner.wish(1), await planner.wish(2)
        await planner.say(compiled(good, A), verdict(good, A))
        await planner.say(failed(bad, "no such operator"))
        with pytest.raises(InputError, match="Validated: there is nothing"):
            await desk.retry(good.kernel_id)
        with pytest.raises(InputError, match="no such operator"):
            await desk.retry(bad.kernel_id)
        with pytest.raises(InputError, match="no kernel or dead letter 'ck-nonsense'"):
            await desk.retry("ck-nonsense")
        with pytest.raises(InputError, match="no kernel or dead letter"):
            await desk.drop("999")

    at_desk(server, home, work)


def test_failures_in_trainings_quarantine_a_kernel_until_a_person_pardons_them(
    server: BundledServer, home: Path
) -> None:
    async def work(planner: Planner, desk: Desk) -> None:
        spec = await planner.wish()
        await planner.say(compiled(spec, A), verdict(spec, A))
        for run in ("one", "two"):
            report = FieldReport(
                kernel=spec.kernel_id,
                digest=A,
                blueprint=spec.blueprint,
                run=run,
                seed="s1",
                slot="0",
                outcome="Culled",
                failure="RuntimeError",
                steps=3,
                parameters=10,
            )
            event = CloudEvent.new("dev.esper.kernel.reported.v1", "/runs/x", report)
            training = (await planner.as_(BusRole.TRAINING))._client
            await publish_event(training, f"esper.run.local.{run}.report", event, patience=5)
        await planner.turn()
        assert (await desk.status()).states == {"Quarantined": 1}
        assert not (await planner.turn()).actions
        assert "one, two" in await desk.retry(spec.kernel_id)
        await asyncio.sleep(0.002)  # rulings are ordered by milliseconds
        await planner.turn()
        record = await planner.library.record(spec.kernel_id)
        assert record is not None
        assert record.state is KernelState.VALIDATED
        assert not (await planner.turn()).actions

    at_desk(server, home, work)
