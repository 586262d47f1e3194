"""One planner at a time."""

import subprocess
import sys
from pathlib import Path

from esper_runtime.local.forge import lease as module
from esper_runtime.local.forge.lease import Lease
from esper_runtime.oona import BundledServer
from tests.local.forge.planners import Planner, with_planners

HOLD = """
import asyncio, sys
from pathlib import Path
from esper_runtime.local.forge.lease import Lease
from esper_runtime.oona import BusAddress, connect

async def hold():
    client = await connect(BusAddress.load(Path(sys.argv[1])), "other")
    print(await Lease(client).hold(), flush=True)
    await asyncio.sleep(600)

asyncio.run(hold())
"""


def test_the_second_waits_until_the_first_gives_it_back(server: BundledServer, home: Path) -> None:
    async def work(one: Planner, two: Planner) -> None:
        first, second = Lease(one.client), Lease(two.client)
        assert await first.hold()
        assert await first.hold()
        assert not await second.hold()
        await first.release()
        assert await second.hold()
        assert not await first.hold()

    with_planners(server, home, 2, work)


def test_a_holder_that_was_killed_here_is_replaced_at_once(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner) -> None:
        address = str(server.address_file)
        with subprocess.Popen([sys.executable, "-c", HOLD, address], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"True\n"
            lease = Lease(planner.client)
            assert not await lease.hold()
            other.kill()
            other.wait()
            assert await lease.hold()

    with_planners(server, home, 1, work)


def test_a_holder_elsewhere_that_does_not_renew_loses_it(
    server: BundledServer, home: Path, monkeypatch
) -> None:
    async def work(one: Planner, two: Planner) -> None:
        monkeypatch.setattr(module.socket, "gethostname", lambda: "elsewhere")
        far = Lease(one.client)
        assert await far.hold()
        monkeypatch.undo()
        near = Lease(two.client)
        assert not await near.hold()
        monkeypatch.setattr(module, "EXPIRES", -1.0)
        assert await near.hold()
        monkeypatch.undo()
        monkeypatch.setattr(module, "RENEW", -1.0)
        assert not await far.hold()
        assert not far.held

    with_planners(server, home, 2, work)
