"""Planners on a real bus, and what one needs to look past them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nats.aio.client import Client

from esper_runtime import forge
from esper_runtime.artifact import MAY_SAY, KeyRing
from esper_runtime.contracts import KernelSpec, KernelWish, Role, Statement, Work
from esper_runtime.forge.act import Actor
from esper_runtime.forge.observe import Observer
from esper_runtime.oona import BundledServer, BusRole, WorkItem, WorkQueue, connect, disconnect
from esper_runtime.planning import ForgePlan, ForgePolicy
from esper_runtime.urza import Library
from tests.urza.sayings import BLUEPRINT, kernel_spec

T = TypeVar("T")
TARGET = kernel_spec().target.name
IMPATIENT = ForgePolicy(most_attempts=2, first_seconds=0.0)


@dataclass
class Planner:
    """One planner with a connection of its own."""

    real: forge.Planner
    keyring: KeyRing
    server: BundledServer
    others: dict[BusRole, Library] = field(default_factory=dict)

    @classmethod
    async def begin(cls, server: BundledServer, home: Path) -> "Planner":
        client = await connect(server.address, "planner")
        keyring = KeyRing(home)
        real = forge.Planner(client, keyring.trust, lambda ruling: keyring.sign(Role.PLANNER, ruling))
        await real.begin()
        return cls(real, keyring, server)

    @property
    def client(self) -> Client:
        return self.real.client

    @property
    def library(self) -> Library:
        return self.real.library

    @property
    def observer(self) -> Observer:
        return self.real.observer

    @property
    def actor(self) -> Actor:
        return self.real.actor

    async def end(self) -> None:
        for library in self.others.values():
            await library.close()
        await disconnect(self.client)

    async def as_(self, role: BusRole) -> Library:
        """The library as another role uses it."""
        if role not in self.others:
            address = self.server.address_of(role)
            self.others[role] = await Library.connect(address, self.keyring.trust)
        return self.others[role]

    async def say(self, *statements: Statement) -> None:
        """What workers say, each with its own rights."""
        for statement in statements:
            role = MAY_SAY[type(statement)]
            library = await self.as_(BusRole(role.value))
            assert await library.publish(self.keyring.sign(role, statement))

    async def fetch(self, work: Work) -> list[WorkItem]:
        """What a worker of this machine's target gets next."""
        role = BusRole.TEZZERET if work == "compile" else BusRole.URABRASK
        return await WorkQueue((await self.as_(role))._client, work, TARGET).fetch()

    async def turn(self, policy: ForgePolicy | None = None) -> ForgePlan:
        """Look, decide, act."""
        return await self.real.turn(policy)

    async def wish(self, number: int = 0, urgent: bool = False) -> KernelSpec:
        await self.library.enter(BLUEPRINT)
        spec = kernel_spec(flags=(str(number),))
        await (await self.as_(BusRole.TRAINING)).wish(KernelWish(spec=spec, urgent=urgent))
        return spec

    async def items(self) -> int:
        """How many items the queue holds."""
        return int((await self.client.jetstream().stream_info("FORGE")).state.messages)


def with_planners(server: BundledServer, home: Path, number: int, work: Callable[..., Awaitable[T]]) -> T:
    """Run ``work`` with so many planners, each as another process would be."""

    async def run() -> T:
        planners = [await Planner.begin(server, home) for _ in range(number)]
        try:
            return await work(*planners)
        finally:
            for planner in planners:
                await planner.end()

    return asyncio.run(run())
