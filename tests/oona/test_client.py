import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from esper_runtime.contracts import BusError, CloudEvent
from esper_runtime.oona import (
    BundledServer,
    BusAddress,
    OutOfOrderError,
    Receiver,
    connect,
    ensure_consumer,
    ensure_streams,
    find_server,
    publish,
    publish_event,
)
from esper_runtime.oona.streams import stream_configs
from tests.oona.bus import eventually, free_port, kill, messages, on_bus

LIBRARY = "esper.library.events"


def event(number: int) -> CloudEvent:
    return CloudEvent.new("dev.esper.test.counted.v1", "/test", {"n": number}, f"n{number}")


def test_publishing_goes_on_through_a_kill(server: BundledServer) -> None:
    async def through(client: Client) -> None:
        await ensure_streams(client.jetstream())
        await publish_event(client, LIBRARY, event(0))
        await asyncio.to_thread(kill, server)
        sending = [asyncio.create_task(publish_event(client, LIBRARY, event(n))) for n in range(1, 50)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in sending)
        await asyncio.to_thread(server.restart)
        await asyncio.gather(*sending)

    on_bus(server.address, through)
    assert sorted(message["data"]["n"] for message in messages(server.address, "LIBRARY")) == list(range(50))


def test_what_is_not_acknowledged_in_time_is_told(server: BundledServer) -> None:
    async def away(client: Client) -> float:
        await ensure_streams(client.jetstream())
        await asyncio.to_thread(kill, server)
        began = time.monotonic()
        with pytest.raises(BusError, match="not acknowledged within"):
            await publish_event(client, LIBRARY, event(0), patience=0.4)
        return time.monotonic() - began

    assert on_bus(server.address, away) < 2.0


def test_a_message_that_comes_out_of_order_is_refused(server: BundledServer) -> None:
    async def ordered(client: Client) -> None:
        await ensure_streams(client.jetstream())
        first = await publish(client, LIBRARY, b"1", "a", after=0)
        assert await publish(client, LIBRARY, b"2", "b", after=first) == first + 1
        with pytest.raises(OutOfOrderError):
            await publish(client, LIBRARY, b"3", "c", after=first)

    on_bus(server.address, ordered)


def test_a_message_that_is_too_large_is_refused_at_once(server: BundledServer) -> None:
    async def large(client: Client) -> None:
        await ensure_streams(client.jetstream())
        with pytest.raises(BusError, match="more than the bus takes"):
            await publish(client, LIBRARY, bytes(client.max_payload + 1), "a")

    on_bus(server.address, large)


def test_a_receiver_is_handed_several_events_without_waiting_for_more(server: BundledServer) -> None:
    async def receive(client: Client) -> tuple[list[int], float]:
        js = client.jetstream()
        await ensure_streams(js)
        await ensure_consumer(js, "LIBRARY", "reader", LIBRARY)
        receiver = Receiver("LIBRARY", "reader")
        await receiver.bind(js)
        waiting = asyncio.create_task(receiver.fetch(64, timeout=5))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        for number in range(5):
            await publish_event(client, LIBRARY, event(number))
        found = await waiting
        while len(found) < 5:
            found += await receiver.fetch(64, timeout=5)
        return [received.event.data["n"] for received in found], time.monotonic() - began

    numbers, seconds = on_bus(server.address, receive)
    assert numbers == list(range(5))
    assert seconds < 1.0


def test_inboxes_are_not_shared(server: BundledServer) -> None:
    async def prefixes() -> set[bytes]:
        clients = [await connect(server.address, "test") for _ in range(3)]
        found = {bytes(client._inbox_prefix) for client in clients}
        for client in clients:
            await client.close()
        return found

    assert len(asyncio.run(prefixes()) - {b"_INBOX"}) == 3


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[BusAddress]:
    """A server of somebody else: TLS, user and password."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    try:
        subprocess.run(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
            f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}",
            shell=True,
            check=True,
            capture_output=True,
        )
    except subprocess.CalledProcessError:
        pytest.skip("the openssl program makes the certificate, and it is not installed")
    port, config = free_port(), tmp_path / "nats.conf"
    config.write_text(
        f'host: "127.0.0.1"\nport: {port}\nauthorization {{ user: me, password: "pass word" }}\n'
        f'jetstream {{ store_dir: "{tmp_path}/streams" }}\n'
        f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'
    )
    log = tmp_path / "log"
    process = subprocess.Popen([find_server(), "-c", str(config), "-l", str(log)])
    try:
        eventually(lambda: log.exists() and "Server is ready" in log.read_text())
        yield BusAddress(
            url=f"tls://localhost:{port}", user="me", password="pass word", tls_ca=str(certificate)
        )
    finally:
        process.terminate()
        process.wait()


def test_tls_with_user_and_password_gets_in_and_nothing_less(guarded: BusAddress) -> None:
    assert len(on_bus(guarded, lambda client: ensure_streams(client.jetstream()))) == len(stream_configs())
    with pytest.raises(BusError, match="refuses"):
        on_bus(guarded.model_copy(update={"password": "wrong"}), lambda client: client.flush())

    async def untrusted() -> None:
        await connect(guarded.model_copy(update={"tls_ca": None}), "test", patience=1.0)

    with pytest.raises(BusError, match="certificate"):
        asyncio.run(untrusted())
