import asyncio
import subprocess
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig

from esper_runtime.contracts import BusError
from esper_runtime.oona import BundledServer, BusAddress, ensure_streams, find_server
from tests.oona.bus import free_port, on_bus

NAMES = {"TELEMETRY", "STATE", "EVENTS", "REPORTS", "PROGRESS", "LIBRARY", "FORGE", "DEAD", "PROPOSALS"}


def test_streams_are_made_once(server: BundledServer) -> None:
    async def twice(client: Client) -> tuple[list[str], list[str]]:
        js = client.jetstream()
        return await ensure_streams(js), await ensure_streams(js)

    first, second = on_bus(server.address, twice)
    assert set(first) == NAMES
    assert second == []


def test_several_processes_may_make_them_at_once(server: BundledServer) -> None:
    async def together(client: Client) -> list[str]:
        made = await asyncio.gather(*(ensure_streams(client.jetstream()) for _ in range(5)))
        return [name for names in made for name in names]

    assert set(on_bus(server.address, together)) == NAMES


def test_every_stream_is_bounded_and_on_files(server: BundledServer) -> None:
    async def configs(client: Client) -> list[StreamConfig]:
        js = client.jetstream()
        await ensure_streams(js)
        return [info.config for info in await js.streams_info()]

    for config in on_bus(server.address, configs):
        assert config.max_bytes and config.max_bytes > 0  # noqa: PT018
        assert config.storage == "file"


def test_bounds_that_an_administrator_chose_are_kept(server: BundledServer) -> None:
    async def narrowed(client: Client) -> int | None:
        js = client.jetstream()
        await ensure_streams(js)
        config = (await js.stream_info("TELEMETRY")).config
        config.max_bytes = 1_000_000
        await js.update_stream(config)
        await ensure_streams(js)
        return (await js.stream_info("TELEMETRY")).config.max_bytes

    assert on_bus(server.address, narrowed) == 1_000_000


def test_a_stream_of_an_earlier_version_is_given_the_subjects_that_it_lacks(server: BundledServer) -> None:
    subjects = ["esper.forge.compile.*", "esper.forge.evaluate.*"]

    async def widened(client: Client) -> tuple[list[str], set[str], int, int | None]:
        js = client.jetstream()
        await js.add_stream(
            name="FORGE",
            subjects=subjects,
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            allow_direct=True,
            max_bytes=1_000_000,
        )
        await js.publish("esper.forge.compile.cpu", b"kept")
        made = await ensure_streams(js)
        info = await js.stream_info("FORGE")
        return made, set(info.config.subjects or ()), info.state.messages, info.config.max_bytes

    made, found, messages, bytes_ = on_bus(server.address, widened)
    assert "FORGE" not in made
    assert found == {*subjects, "esper.forge.generate.*"}
    assert (messages, bytes_) == (1, 1_000_000)


def test_a_stream_with_subjects_of_somebody_else_is_left_as_it_is(server: BundledServer) -> None:
    async def foreign(client: Client) -> list[str] | None:
        js = client.jetstream()
        subjects = ["esper.library.events", "theirs"]
        await js.add_stream(name="LIBRARY", subjects=subjects, allow_direct=True)
        await js.add_stream(name="DEAD", subjects=["esper.dead.compile.*", "theirs.too"], allow_direct=True)
        with pytest.raises(BusError, match=r"LIBRARY exists, but|DEAD exists, but lacks the subjects"):
            await ensure_streams(js)
        return (await js.stream_info("DEAD")).config.subjects

    assert on_bus(server.address, foreign) == ["esper.dead.compile.*", "theirs.too"]


def test_a_stream_that_overlaps_is_named_and_left(server: BundledServer) -> None:
    async def overlapping(client: Client) -> list[str]:
        js = client.jetstream()
        await js.add_stream(name="MINE", subjects=["esper.run.>"])
        with pytest.raises(BusError, match=r"TELEMETRY cannot be made: the stream MINE has subjects"):
            await ensure_streams(js)
        return [str(info.config.name) for info in await js.streams_info()]

    assert on_bus(server.address, overlapping) == ["MINE"]


def test_a_stream_that_means_something_else_is_refused(server: BundledServer) -> None:
    async def contradicting(client: Client) -> None:
        js = client.jetstream()
        await js.add_stream(name="STATE", subjects=["esper.run.*.*.state"], allow_direct=True)
        with pytest.raises(BusError, match=r"STATE exists, but max_msgs_per_subject is .* instead of 1"):
            await ensure_streams(js)

    on_bus(server.address, contradicting)


def test_a_server_without_jetstream_is_told(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [find_server(), "-a", "127.0.0.1", "-p", str(port), "-l", str(tmp_path / "log")]
    )
    try:
        with pytest.raises(BusError, match="without JetStream"):
            on_bus(
                BusAddress(url=f"nats://127.0.0.1:{port}"),
                lambda client: ensure_streams(client.jetstream()),
            )
    finally:
        process.terminate()
        process.wait()
