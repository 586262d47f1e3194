"""What several tests need: waiting for what must come, reading what a stream holds, killing a server."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from nats.aio.client import Client

from esper_runtime.contracts import JournalEntry, Validated, canonical_json
from esper_runtime.oona import BundledServer, BusAddress, connect, disconnect

T = TypeVar("T")


def eventually(what: Callable[[], Any], seconds: float = 10.0) -> None:
    """Return as soon as ``what()`` holds; fail when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def on_bus(address: BusAddress, work: Callable[[Client], Awaitable[T]], patience: float = 5.0) -> T:
    """Run ``work`` with a connection."""

    async def run() -> T:
        client = await connect(address, "test", patience=patience)
        try:
            return await work(client)
        finally:
            await disconnect(client)

    return asyncio.run(run())


def messages(address: BusAddress, stream: str, subject: str | None = None) -> list[dict[str, Any]]:
    """The events of a stream, in order."""

    async def read(client: Client) -> list[dict[str, Any]]:
        js = client.jetstream()
        state = (await js.stream_info(stream)).state
        found = [await js.get_msg(stream, seq) for seq in range(state.first_seq, state.last_seq + 1)]
        return [json.loads(raw.data or b"") for raw in found if subject in (None, raw.subject)]

    return on_bus(address, read)


def kill(server: BundledServer) -> None:
    """End the server's process with SIGKILL and wait until it is gone."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.is_alive())


class Journal:
    """A journal file with the chain of the real one."""

    def __init__(self, path: Path, text: str = "") -> None:
        self.path = path
        self.entries: list[JournalEntry] = []
        self.text = text

    def grow(self, count: int) -> None:
        """Append entries."""
        for _ in range(count):
            number = len(self.entries)
            entry = JournalEntry(
                sequence=number,
                time="2026-01-01T00:00:00.000+00:00" + self.text,
                incarnation=0,
                step=number,
                event=Validated(
                    train_loss=1.0, loss=1.0, metric=0.5, parameters=1, learning_rate=0.1, macs=number
                ),
                previous=self.entries[-1].digest if self.entries else "0" * 64,
            ).sealed()
            self.entries.append(entry)
            with self.path.open("ab") as file:
                file.write(canonical_json(entry.model_dump(mode="json", by_alias=True)) + b"\n")

    @property
    def digests(self) -> list[str]:
        """Of all entries, in order."""
        return [entry.digest for entry in self.entries]


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def is_let(client: Client, *, publish: str | None = None, subscribe: str | None = None) -> bool:
    """Whether the server lets a connection publish to or subscribe to a subject.

    Errors come in the order of their causes: once that of a subject which is nobody's has come, the one that
    was asked for would have.
    """
    said: list[str] = []
    last = asyncio.Event()

    async def note(error: Exception) -> None:
        text = str(error).lower()
        assert "permissions violation" in text, text
        said.append(text)
        if "nobody.may" in text:
            last.set()

    client._error_cb = note
    if publish is not None:
        await client.publish(publish, b"{}")
    if subscribe is not None:
        await client.subscribe(subscribe)
    await client.publish("nobody.may.say.this", b"")
    await client.subscribe("nobody.may.hear.this")
    await client.flush()
    await asyncio.wait_for(last.wait(), 10)
    async with asyncio.timeout(10):  # who may hear everything is refused only once
        while len([text for text in said if "nobody.may" in text]) < 2:
            await asyncio.sleep(0.001)
    return len(said) == 2
