"""One planner at a time."""

from pathlib import Path

import pytest

from esper_runtime.forge import Lease
from esper_runtime.forge import lease as module
from esper_runtime.oona import BundledServer
from tests.forge.planners import Planner, with_planners


def test_the_second_waits_until_the_first_gives_it_back(server: BundledServer, home: Path) -> None:
    async def work(one: Planner, two: Planner) -> None:
        first, second = Lease(one.client, "here", "1"), Lease(two.client, "here", "2")
        assert await first.hold()
        assert await first.hold()
        assert not await second.hold()
        await first.release()
        assert await second.hold()
        assert not await first.hold()

    with_planners(server, home, 2, work)


def test_a_holder_that_is_known_to_be_over_is_replaced_at_once(server: BundledServer, home: Path) -> None:
    async def work(one: Planner, two: Planner) -> None:
        assert await Lease(one.client, "cluster", "operator-1").hold()
        assert not await Lease(two.client, "here", "2", lambda holder: holder.host == "here").hold()
        assert await Lease(
            two.client, "cluster", "operator-2", lambda holder: holder.host == "cluster"
        ).hold()

    with_planners(server, home, 2, work)


def test_a_holder_elsewhere_that_does_not_renew_loses_it(
    server: BundledServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(one: Planner, two: Planner) -> None:
        far, near = Lease(one.client, "elsewhere", "1"), Lease(two.client, "here", "1")
        assert await far.hold()
        assert not await near.hold()
        monkeypatch.setattr(module, "EXPIRES", -1.0)
        assert await near.hold()
        monkeypatch.undo()
        monkeypatch.setattr(module, "RENEW", -1.0)
        assert not await far.hold()
        assert not far.held

    with_planners(server, home, 2, work)
