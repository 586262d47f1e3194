"""Running a library on a real bus."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nats.js import JetStreamContext

from esper_runtime.artifact import KeyRing, Trust
from esper_runtime.contracts import Statement
from esper_runtime.oona import BundledServer, BusAddress, connect, disconnect
from esper_runtime.urza import Library
from tests.urza.sayings import sign

T = TypeVar("T")


def with_library(server: BundledServer, trust: Trust, work: Callable[[Library], Awaitable[T]]) -> T:
    """Run ``work`` with a library that is its keeper."""

    async def run() -> T:
        async with await Library.connect(server.address, trust, keeper=True) as library:
            return await work(library)

    return asyncio.run(run())


async def say(library: Library, keyring: KeyRing, *statements: Statement) -> list[bool]:
    """Publish statements, each signed by its role."""
    return [await library.publish(sign(keyring, statement)) for statement in statements]


def js(library: Library) -> JetStreamContext:
    """JetStream past the library, on its connection."""
    return library._client.jetstream()


async def put_raw(address: BusAddress, bucket: str, key: str, data: bytes, **headers: str) -> None:
    """Write a value past the library."""
    client = await connect(address, "test")
    try:
        await client.jetstream().publish(f"$KV.{bucket}.{key}", data, headers=headers or None)
    finally:
        await disconnect(client)


async def until(what: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """The first answer of ``what`` that holds."""
    async with asyncio.timeout(seconds):
        while True:
            found = await what()
            if found:
                return found
            await asyncio.sleep(0.02)
