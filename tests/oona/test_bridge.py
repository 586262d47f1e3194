import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from esper_runtime.contracts import (
    LOCAL_NAMESPACE,
    CloudEvent,
    EventType,
    InputError,
    Progress,
    StepTelemetry,
    canonical_json,
)
from esper_runtime.oona import (
    Bridge,
    BundledServer,
    BusAddress,
    consumer_name,
    ensure_consumer,
    ensure_streams,
    publish,
    publish_event,
)
from esper_runtime.oona.server import MAX_MESSAGE
from tests.oona.bus import Journal, eventually, free_port, kill, messages, on_bus

SUBJECT = f"esper.run.{LOCAL_NAMESPACE}.mine."


def bridge_to(address: BusAddress, journal: Path | None = None, **settings: int) -> Bridge:
    return Bridge(address, LOCAL_NAMESPACE, "mine", "/runs/local/mine", journal, **settings)


@pytest.fixture
def bridge(server: BundledServer) -> Iterator[Bridge]:
    with bridge_to(server.address) as bridge:
        eventually(lambda: bridge.status().connected)
        yield bridge


def samples(address: BusAddress) -> list[int]:
    """Numbers of all samples on the stream."""
    found = []
    for event in messages(address, "TELEMETRY"):
        if event["type"] == EventType.TELEMETRY:
            first = event["data"]["first"]
            found += range(first, first + len(event["data"]["samples"]))
    return found


def command(server: BundledServer, *payloads: CloudEvent | bytes) -> None:
    async def send(client: Client) -> None:
        for number, payload in enumerate(payloads):
            if isinstance(payload, bytes):
                await publish(client, SUBJECT + "directive", payload, f"raw {number}")
            else:
                await publish_event(client, SUBJECT + "directive", payload)

    on_bus(server.address, send)


def event(identity: str) -> CloudEvent:
    return CloudEvent.new("dev.esper.test.said.v1", "/test", {"word": identity}, identity)


def test_every_sample_arrives_once_in_order(server: BundledServer, bridge: Bridge) -> None:
    for step in range(3000):
        bridge.telemetry(StepTelemetry(step=step, loss=0.5, seconds=0.1))
    counts = bridge.close().telemetry
    assert (counts.produced, counts.delivered, counts.dropped, counts.waiting) == (3000, 3000, 0, 0)
    assert samples(server.address) == list(range(3000))


def test_the_last_words_say_what_became_of_the_samples(server: BundledServer, bridge: Bridge) -> None:
    bridge.telemetry({"step": 1})
    bridge.progress(Progress(step=1, total_steps=2))
    bridge.close()
    expected = {"produced": 1, "delivered": 1, "dropped": 0, "waiting": 0}
    last = messages(server.address, "TELEMETRY")[-1]
    assert (last["type"], last["data"]) == (EventType.TELEMETRY_ENDED, expected)
    (progress,) = messages(server.address, "PROGRESS")
    assert progress["data"]["telemetry"] == expected


def test_of_state_and_progress_the_last_one_is_kept(server: BundledServer, bridge: Bridge) -> None:
    for step in range(5):
        bridge.progress(Progress(step=step, total_steps=5))
        bridge.state({"step": step})
    bridge.close()
    assert [message["data"]["step"] for message in messages(server.address, "PROGRESS")] == [4]
    assert [message["data"]["step"] for message in messages(server.address, "STATE")] == [4]


def test_counts_add_up_through_an_outage_that_overflows_the_buffer(server: BundledServer) -> None:
    bridge = bridge_to(server.address, buffer=100)
    bridge.start()
    bridge.telemetry({"n": 0})
    eventually(lambda: bridge.counts().telemetry.delivered == 1)
    kill(server)
    eventually(lambda: not bridge.status().connected)
    for number in range(1, 1000):
        bridge.telemetry({"n": number})
    server.restart()
    eventually(lambda: bridge.counts().telemetry.waiting == 0)
    for number in range(1000, 1010):
        bridge.telemetry({"n": number})
    counts = bridge.close().telemetry
    assert counts.produced == counts.delivered + counts.dropped == 1010
    assert counts.dropped == 1010 - 111
    assert samples(server.address) == [0, *range(900, 1010)]


def test_nothing_is_raised_or_awaited_while_the_bus_is_away(tmp_path: Path) -> None:
    bridge = bridge_to(BusAddress(url=f"nats://127.0.0.1:{free_port()}"), tmp_path / "journal", buffer=10)
    bridge.start()
    for step in range(100):
        bridge.telemetry({"step": step})
        bridge.state({"step": step})
        bridge.progress(Progress(step=step, total_steps=100))
        assert bridge.received() == []
    eventually(lambda: bridge.status().error is not None)
    assert "cannot be reached" in (bridge.status().error or "")
    counts = bridge.close(deadline=0.1).telemetry
    assert (counts.produced, counts.delivered, counts.dropped, counts.waiting) == (100, 0, 100, 0)


def test_a_bus_that_comes_late_is_used(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(3)
    address = BusAddress(url=f"nats://127.0.0.1:{free_port()}", token="t")
    with bridge_to(address, journal.path) as bridge:
        bridge.telemetry({"step": 0})
        eventually(lambda: bridge.status().error is not None)
        (tmp_path / "bus").mkdir()
        address.store(tmp_path / "bus" / "bus.json")
        with BundledServer(tmp_path / "bus"):
            eventually(lambda: bridge.counts().journal == 2)
            assert bridge.close().telemetry.delivered == 1


def test_a_wrong_token_is_told_and_does_no_harm(server: BundledServer) -> None:
    with bridge_to(BusAddress(url=server.address.url, token="wrong")) as bridge:
        bridge.telemetry({"step": 0})
        eventually(lambda: "refuses this token" in (bridge.status().error or ""))
        assert bridge.close(deadline=0.05).telemetry.dropped == 1


def test_what_json_cannot_hold_is_dropped_and_counted(server: BundledServer, bridge: Bridge) -> None:
    for item in ({"loss": 1.0}, {"loss": math.nan}, {"loss": object()}, {"loss": 2.0}):
        bridge.telemetry(item)
    bridge.state({"loss": math.inf})
    counts = bridge.close()
    assert counts.unusable == 2
    assert (counts.telemetry.delivered, counts.telemetry.dropped) == (2, 2)
    assert samples(server.address) == [0, 3]


def test_an_event_is_received_once_whatever_comes_with_it(server: BundledServer, bridge: Bridge) -> None:
    command(server, event("a"), event("a"), b"rubbish", b"{}", b'{"specversion": "0.3"}', event("b"))
    got: list[str] = []

    def both() -> bool:
        got.extend(event.id for event in bridge.received())
        return len(got) >= 2

    eventually(both)
    assert got == ["a", "b"]
    counts = bridge.close()
    assert (counts.received, counts.malformed) == (2, 3)


def test_copies_that_the_stream_stored_are_told_apart(server: BundledServer, bridge: Bridge) -> None:
    said = event("again").encoded()
    command(server, said, said, said)  # each under a message id of its own
    eventually(lambda: bridge.counts().duplicates == 2)
    assert [event.id for event in bridge.received()] == ["again"]


def test_what_was_not_handled_comes_again_in_the_next_process(server: BundledServer) -> None:
    def unhandled(close_with: bool) -> tuple[list[str], int]:
        with bridge_to(server.address) as bridge:
            eventually(lambda: bridge.status().connected)
            if not close_with:
                command(server, event("one"))
            got: list[CloudEvent] = []
            eventually(lambda: got.extend(bridge.received()) or got)
            bridge.close(handled=close_with)

        async def pending(client: Client) -> int:
            info = await client.jetstream().consumer_info("EVENTS", consumer_name(LOCAL_NAMESPACE, "mine"))
            return info.num_ack_pending or 0

        return [event.id for event in got], on_bus(server.address, pending)

    async def impatient(client: Client) -> None:
        await ensure_streams(client.jetstream())
        name = consumer_name(LOCAL_NAMESPACE, "mine")
        await ensure_consumer(client.jetstream(), "EVENTS", name, SUBJECT + "directive", ack_wait=0.3)

    on_bus(server.address, impatient)
    assert unhandled(close_with=False) == (["one"], 1)
    assert unhandled(close_with=True) == (["one"], 0)


def test_the_journal_is_complete_after_kills(server: BundledServer, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with bridge_to(server.address, journal.path) as bridge:
        for _ in range(3):
            journal.grow(150)
            eventually(lambda: bridge.counts().journal >= len(journal.entries) - 100)
            kill(server)
            journal.grow(50)
            server.restart()
        bridge.close(deadline=10)
    copied = messages(server.address, "EVENTS", SUBJECT + "journal")
    assert [message["data"]["digest"] for message in copied] == journal.digests
    assert [message["id"] for message in copied] == journal.digests


def test_the_copy_goes_on_where_an_earlier_process_stopped(server: BundledServer, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for count in (5, 7):
        journal.grow(count)
        with bridge_to(server.address, journal.path) as bridge:
            assert bridge.close().journal == len(journal.entries) - 1
    assert [message["data"]["digest"] for message in messages(server.address, "EVENTS")] == journal.digests


def test_a_new_run_of_the_same_name_is_copied_from_its_start(server: BundledServer, tmp_path: Path) -> None:
    journals = [Journal(tmp_path / "old.jsonl", " old"), Journal(tmp_path / "new.jsonl")]
    for journal in journals:
        journal.grow(4)
        with bridge_to(server.address, journal.path) as bridge:
            bridge.close()
    copied = [message["data"]["digest"] for message in messages(server.address, "EVENTS")]
    assert copied == journals[0].digests + journals[1].digests


def test_torn_lines_are_left_out_of_the_copy(server: BundledServer, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(2)
    whole = journal.path.read_bytes()
    with bridge_to(server.address, journal.path) as bridge:
        journal.path.write_bytes(whole + whole[:200])
        eventually(lambda: bridge.counts().journal == 1)
        with journal.path.open("ab") as file:
            file.write(b"\n")
        journal.grow(2)
        eventually(lambda: bridge.counts().journal == 3)
    assert [message["data"]["digest"] for message in messages(server.address, "EVENTS")] == journal.digests


def test_a_server_that_hangs_is_noticed_and_nothing_is_lost(server: BundledServer) -> None:
    assert server.pid is not None
    with bridge_to(server.address) as bridge:
        eventually(lambda: bridge.status().connected)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.perf_counter()
            for step in range(500):
                bridge.telemetry({"step": step})
                bridge.received()
            assert time.perf_counter() - began < 1.0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert bridge.close(deadline=10).telemetry.delivered == 500
    assert samples(server.address) == list(range(500))


def test_streams_that_contradict_are_told_and_telemetry_waits(server: BundledServer) -> None:
    async def contradict(client: Client) -> None:
        await client.jetstream().add_stream(name="MINE", subjects=["esper.run.>"])

    on_bus(server.address, contradict)
    with bridge_to(server.address) as bridge:
        bridge.telemetry({"step": 0})
        eventually(lambda: "the stream MINE has subjects" in (bridge.status().error or ""))
        assert not bridge.status().connected
        assert bridge.counts().telemetry.waiting == 1
        bridge.close(deadline=0.05)


def test_names_that_cannot_stand_in_a_subject_are_refused(server: BundledServer) -> None:
    for namespace, run in (("local", "a.b"), ("local", "*"), ("", "run"), ("local", "Upper")):
        with pytest.raises(InputError, match="cannot stand in a bus subject"):
            Bridge(server.address, namespace, run, "/test")


def test_an_entry_larger_than_a_message_does_not_stop_the_copy(server: BundledServer, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(1)
    huge = canonical_json(
        {"digest": "f" * 64, "event": {"pad": "x" * MAX_MESSAGE}, "sequence": 1, "step": 0, "time": ""}
    )
    with journal.path.open("ab") as file:
        file.write(huge + b"\n")
    with bridge_to(server.address, journal.path) as bridge:
        assert bridge.close(20).journal == 1
    told = messages(server.address, "EVENTS")
    assert [message["type"] for message in told] == [EventType.JOURNAL, EventType.JOURNAL_OMITTED]
    assert told[1]["data"] == {"sequence": 1, "digest": "f" * 64, "bytes": len(huge)}


def test_copying_the_journal_resumes_after_an_omitted_entry(server: BundledServer, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.grow(1)
    with journal.path.open("ab") as file:
        pad = {"digest": "f" * 64, "event": {"pad": "x" * MAX_MESSAGE}, "sequence": 1, "step": 0, "time": ""}
        file.write(canonical_json(pad) + b"\n")
    for _ in range(2):
        with bridge_to(server.address, journal.path) as bridge:
            assert bridge.close(20).journal == 1
    assert len(messages(server.address, "EVENTS")) == 2
