"""An operator's office on a cluster's real bus, and those that speak to its library as pods do."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping

from nats.aio.client import Client

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import signing_key, trust_list
from esper_operator.credentials import RunOnBus
from esper_operator.library import ForgeOffice
from esper_operator.sweep import BusSweep, Due
from esper_runtime.artifact import MAY_SAY, Trust, sign_with
from esper_runtime.contracts import Role, Statement
from esper_runtime.oona import AccessRefusedError, BusRole, connect
from esper_runtime.urza import Library

RUN = RunOnBus("team", "small", "0123abcd-1111-2222-3333-444444444444")
SECONDS = 40.0


def trust_of(server: ClusterServer) -> Trust:
    """Whom everybody in the release believes."""
    return Trust(trust_list(server.keys))


async def say(server: ClusterServer, *statements: Statement) -> None:
    """Workers of the release say it, each with its own key and way in."""
    for statement in statements:
        role = MAY_SAY[type(statement)]
        address = server.address_of(BusRole(role.value))
        async with await Library.connect(address, trust_of(server)) as library:
            await library.publish(sign_with(signing_key(server.keys, role), statement))


async def let_in(server: ClusterServer) -> Client:
    """A connection of `RUN`, as soon as the operator has let it in."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return await connect(server.address_of_run(RUN.namespace, RUN.name, RUN.uid), "run")
        except AccessRefusedError:
            assert time.monotonic() < deadline, "it is not let in"
            await asyncio.sleep(0.05)


async def until(holds: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait for something to come about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def an_office(
    server: ClusterServer, runs: Mapping[RunOnBus, int] | None = None
) -> AsyncIterator[ForgeOffice]:
    """An office that works, as the operator has it.

    Args:
        server: the bus.
        runs: those that go on, with their attempts; default: the first attempt of `RUN`.
    """
    known = {RUN: 1} if runs is None else runs
    key = signing_key(server.keys, Role.PLANNER)
    async with server.keeper() as keeper:
        office = ForgeOffice(
            keeper,
            trust_of(server),
            lambda ruling: sign_with(key, ruling),
            "operator-1",
            lambda: {run.namespace for run in known},
            BusSweep(keeper, lambda: Due(going=known)).restore,
        )
        task = asyncio.create_task(office.run())
        try:
            yield office
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
