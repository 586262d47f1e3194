"""The planner on a real bus: its actions may be broken off, done twice, and done by two."""

import asyncio
from pathlib import Path

from esper_runtime.contracts import KernelState, WorkAttempt
from esper_runtime.oona import BundledServer
from esper_runtime.planning import Compile, plan_forge
from tests.forge.planners import IMPATIENT, Planner, with_planners
from tests.oona.bus import kill
from tests.urza.sayings import compiled, digest_of, failed, verdict

A = digest_of("a")


def test_a_wish_goes_through_both_queues_to_a_validated_kernel(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner) -> None:
        spec = await planner.wish()
        await planner.turn()
        assert not (await planner.turn()).actions
        [item] = await planner.fetch("compile")
        assert item.spec.spec == spec
        await planner.say(compiled(spec, A))
        await item.done()
        await planner.turn()
        [test] = await planner.fetch("evaluate")
        assert (test.spec.kernel, test.spec.digest) == (spec.kernel_id, A)
        await planner.say(verdict(spec, A))
        await test.done()
        assert not (await planner.turn()).actions
        record = await planner.library.record(spec.kernel_id)
        assert record is not None
        assert record.state is KernelState.VALIDATED
        assert await planner.items() == 0

    with_planners(server, home, 1, work)


def test_two_planners_that_decide_the_same_at_once_make_one_item(server: BundledServer, home: Path) -> None:
    async def work(first: Planner, second: Planner) -> None:
        for number in range(5):
            await first.wish(number)
        plans = [plan_forge(await planner.observer.look()) for planner in (first, second)]
        assert [type(action) for action in plans[0].actions] == [Compile] * 5

        async def act(planner: Planner) -> None:
            for action in plans[0].actions:
                await planner.actor.carry_out(action)

        await asyncio.gather(act(first), act(second))
        await act(second)
        assert await first.items() == 5

    with_planners(server, home, 2, work)


def test_what_was_noted_before_a_death_is_published_by_the_next_planner(
    server: BundledServer, home: Path
) -> None:
    async def work(dead: Planner, living: Planner) -> None:
        spec = await dead.wish()
        attempt = WorkAttempt(number=1)
        await dead.observer.notes.change(spec.kernel_id, lambda note: note.with_attempt("compile", attempt))
        await living.turn()
        assert await living.items() == 1
        note = living.observer.notes.all[spec.kernel_id]
        assert note.compile is not None
        assert note.compile.number == 1
        assert note.compile.sequence is not None
        assert not (await dead.turn()).actions

    with_planners(server, home, 2, work)


def test_an_item_that_is_lost_is_published_again_and_given_up_in_the_end(
    server: BundledServer, home: Path
) -> None:
    async def work(planner: Planner) -> None:
        spec = await planner.wish()
        js = planner.client.jetstream()
        await planner.turn(IMPATIENT)
        for number in (1, 2):
            note = planner.observer.notes.all[spec.kernel_id]
            assert note.compile is not None
            assert note.compile.number == number
            await js.delete_msg("FORGE", note.compile.sequence or 0)
            await planner.turn(IMPATIENT)
        await planner.observer.letters.refresh()
        [letter] = planner.observer.letters.all
        assert letter.kernel == spec.kernel_id
        assert "2 tries left the queue without a result" in letter.dead.reason
        assert not (await planner.turn(IMPATIENT)).actions

    with_planners(server, home, 1, work)


def test_a_failure_to_compile_ends_the_work(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner) -> None:
        spec = await planner.wish()
        await planner.turn()
        [item] = await planner.fetch("compile")
        await planner.say(failed(spec))
        await item.done()
        assert not (await planner.turn()).actions

    with_planners(server, home, 1, work)


def test_notes_survive_a_bus_that_is_killed(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner) -> None:
        specs = [await planner.wish(number) for number in range(3)]
        await planner.turn()
        await asyncio.to_thread(kill, server)
        await asyncio.to_thread(server.restart)
        other = await Planner.begin(server, home)
        assert not (await other.turn()).actions
        assert set(other.observer.notes.all) == {spec.kernel_id for spec in specs}
        assert await other.items() == 3
        await other.end()

    with_planners(server, home, 1, work)


def test_notes_of_two_writers_are_both_kept(server: BundledServer, home: Path) -> None:
    async def work(first: Planner, second: Planner) -> None:
        spec = await first.wish()

        async def write(planner: Planner, name: str) -> None:
            for number in range(20):
                run = f"{name}-{number}"
                await planner.observer.notes.change(
                    spec.kernel_id,
                    lambda note, run=run: note.model_copy(update={"pardoned": (*note.pardoned, run)}),
                )

        await asyncio.gather(write(first, "a"), write(second, "b"))
        await first.observer.notes.refresh()
        assert len(set(first.observer.notes.all[spec.kernel_id].pardoned)) == 40

    with_planners(server, home, 2, work)
