"""The lease of a process on this machine."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.local.forge.lease import lease_of_process
from esper_runtime.oona import BundledServer
from tests.forge.planners import Planner, with_planners

HOLD = """
import asyncio, sys
from pathlib import Path
from esper_runtime.local.forge.lease import lease_of_process
from esper_runtime.oona import BusAddress, connect

async def hold():
    client = await connect(BusAddress.load(Path(sys.argv[1])), "other")
    print(await lease_of_process(client).hold(), flush=True)
    await asyncio.sleep(600)

asyncio.run(hold())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    """A real nats-server with a user for each role."""
    with BundledServer(tmp_path / "bus", roles=True) as server:
        yield server


def test_a_holder_that_was_killed_here_is_replaced_at_once(server: BundledServer, home: Path) -> None:
    async def work(planner: Planner) -> None:
        address = str(server.address_file)
        with subprocess.Popen([sys.executable, "-c", HOLD, address], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"True\n"
            lease = lease_of_process(planner.client)
            assert not await lease.hold()
            other.kill()
            other.wait()
            assert await lease.hold()

    with_planners(server, home, 1, work)
