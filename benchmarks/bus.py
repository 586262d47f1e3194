"""The bus: what survives kills, how fast telemetry arrives, and whether every sample is accounted for.

``python -m benchmarks.bus``. All against the bundled nats-server, on files, in a temporary folder.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import nats.errors
import nats.js.errors
import numpy as np
from nats.aio.msg import Msg

from benchmarks.line import bar
from esper_runtime.contracts import CloudEvent, EventType, InputError, canonical_json
from esper_runtime.oona import (
    Bridge,
    BundledServer,
    BusAddress,
    Receiver,
    connect,
    ensure_consumer,
    ensure_streams,
    publish_event,
)

COMMAND = "python -m benchmarks.bus"
MESSAGES, KILLS, WINDOW = 100_000, 3, 192
RATE, SECONDS, TICK = 10_000, 10, 0.001
SUBJECT = "esper.run.local.bench."


def kill(server: BundledServer) -> None:
    """End the server with SIGKILL and wait until it is gone."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    while server.is_alive():
        time.sleep(0.001)


async def survive(server: BundledServer) -> None:
    """Acknowledged messages through kills: none lost, effects once."""
    sender = await connect(server.address, "sender")
    reader = await connect(server.address, "reader")
    js = reader.jetstream()
    await ensure_streams(js)
    await ensure_consumer(js, "LIBRARY", "bench", "esper.library.events", ack_wait=2.0)
    acknowledged: list[int] = []
    effects: Counter[int] = Counter()
    numbers = iter(range(MESSAGES))
    receiver = Receiver("LIBRARY", "bench")
    await receiver.bind(js)

    async def send() -> None:
        for number in numbers:
            event = CloudEvent.new("dev.esper.bench.counted.v1", "/bench", {"n": number}, f"bench-{number}")
            await publish_event(sender, "esper.library.events", event)
            acknowledged.append(number)

    async def receive() -> None:
        while sum(effects.values()) < MESSAGES:
            try:
                found = await receiver.fetch(256, timeout=0.5)
            except (nats.errors.Error, nats.js.errors.APIError):
                await asyncio.sleep(0.05)  # the server is away
                continue
            for received in found:
                effects[received.event.data["n"]] += 1
                await received.acknowledge(reader)

    async def disturb() -> None:
        for number in range(1, KILLS + 1):
            while len(acknowledged) < number * MESSAGES // (KILLS + 1):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(kill, server)
            await asyncio.to_thread(server.restart)

    began = time.perf_counter()
    receiving = asyncio.create_task(receive())
    await asyncio.gather(disturb(), *(send() for _ in range(WINDOW)))
    sent = time.perf_counter() - began
    await asyncio.wait_for(receiving, 300)
    stored = (await js.stream_info("LIBRARY")).state.messages
    await sender.close()
    await reader.close()
    lost = len(set(acknowledged) - set(effects))
    twice = sum(count > 1 for count in effects.values())
    bar(
        "acknowledged messages through kill -9",
        command=COMMAND,
        figure={"acknowledged": len(acknowledged), "lost": lost, "effects more than once": twice},
        bound=f"{MESSAGES} acknowledged, {KILLS} kills, 0 lost, each effect once",
        passed=len(set(acknowledged)) == MESSAGES and lost == 0 and twice == 0 and len(effects) == MESSAGES,
        control={"stored in the stream": stored},
        detail={"messages a second": round(MESSAGES / sent), "copies told apart": receiver.duplicates},
    )


def watch(address: BusAddress, answer: Connection) -> None:
    """In a process of its own: how long each sample took from where it was made."""
    asyncio.run(_watch(address, answer))


async def _watch(address: BusAddress, answer: Connection) -> None:
    delays: dict[str, list[float]] = {"telemetry": [], "bare": []}
    over = asyncio.Event()

    async def note(message: Msg) -> None:
        now = time.monotonic()
        try:
            event = CloudEvent.decoded(message.data)
        except InputError:
            over.set()
            return
        if event.type == EventType.TELEMETRY:
            delays[message.subject.rsplit(".", 1)[1]] += [now - one["t"] for one in event.data["samples"]]

    client = await connect(address, "watcher")
    await client.subscribe(SUBJECT + ">", cb=note)
    await client.subscribe("bench.bare", cb=note)
    await client.flush()
    answer.send("ready")
    await over.wait()
    answer.send({name: found for name, found in delays.items() if found})
    await client.close()


def watched(address: BusAddress) -> tuple[Connection, multiprocessing.process.BaseProcess]:
    """A watching process that is ready."""
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=watch, args=(address, its))
    process.start()
    mine.recv()
    return mine, process


def paced(make: int) -> float:
    """The due times of a tick each, as seconds from now."""
    return make * TICK


def latency(server: BundledServer) -> None:
    """Delivery of batched telemetry, and of the same load by nats-py alone."""
    answer, process = watched(server.address)
    calls = []
    with Bridge(server.address, "local", "bench", "/runs/local/bench") as bridge:
        while not bridge.status().connected:
            time.sleep(0.01)
        began = time.monotonic()
        for tick in range(int(SECONDS / TICK)):
            wait = began + paced(tick) - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            for _ in range(int(RATE * TICK)):
                now = time.monotonic()
                bridge.telemetry({"t": now, "step": tick})
                calls.append(time.monotonic() - now)
        took = time.monotonic() - began
        counts = bridge.close(10).telemetry
    asyncio.run(_stop(server.address))
    found = np.array(answer.recv()["telemetry"]) * 1e3
    process.join()
    control = bare(server)
    p95 = float(np.percentile(found, 95))
    rate = counts.produced / took
    bar(
        "telemetry, maker to consumer, p95 in ms",
        command=COMMAND,
        figure=round(p95, 2),
        bound=f"<= 10 at {RATE} samples a second",
        passed=p95 <= 10 and len(found) == counts.delivered == counts.produced and rate >= 0.99 * RATE,
        control={"nats-py alone, batches of 20, no stream, p95": round(control, 2)},
        detail={
            "samples a second": round(rate),
            "p50": round(float(np.percentile(found, 50)), 2),
            "p99": round(float(np.percentile(found, 99)), 2),
            "samples": len(found),
            "call in the making thread, us, p50": round(float(np.percentile(calls, 50)) * 1e6, 2),
            "call in the making thread, us, p99.9": round(float(np.percentile(calls, 99.9)) * 1e6, 2),
        },
    )


async def _stop(address: BusAddress) -> None:
    client = await connect(address, "stop")
    await client.publish("bench.bare", b"over")
    await client.close()


def bare(server: BundledServer) -> float:
    """p95 in ms of publish and subscribe without Esper: batches of 20, 500 a second."""
    answer, process = watched(server.address)

    async def send() -> None:
        client = await connect(server.address, "bare")
        began = time.monotonic()
        for tick in range(0, int(SECONDS / TICK), 2):
            wait = began + paced(tick) - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            now = time.monotonic()
            samples = [{"t": now, "step": tick}] * 20
            event = CloudEvent.new(EventType.TELEMETRY, "/bench", {"samples": samples})
            await client.publish("bench.bare", event.encoded())
        await client.close()

    asyncio.run(send())
    asyncio.run(_stop(server.address))
    found = answer.recv()["bare"]
    process.join()
    return float(np.percentile(found, 95)) * 1e3


def outage(server: BundledServer) -> None:
    """More samples than the buffer holds are made while the server is dead."""
    with Bridge(server.address, "local", "outage", "/runs/local/outage", buffer=20_000) as bridge:
        for round_ in range(3):
            for _ in range(200):
                for step in range(100):
                    bridge.telemetry({"step": step, "round": round_})
                time.sleep(0.002)
            kill(server)
            for step in range(30_000):
                bridge.telemetry({"step": step, "round": round_})
            server.restart()
        counts = bridge.close(30).telemetry
    numbers = asyncio.run(_stored(server.address))
    bar(
        "telemetry accounted for through outages",
        command=COMMAND,
        figure=counts.model_dump(),
        bound="produced = delivered + dropped, dropped > 0, and the stream holds each delivered one once",
        passed=counts.produced == counts.delivered + counts.dropped
        and counts.dropped > 0
        and len(numbers) == len(set(numbers)) == counts.delivered,
        control={"different samples in the stream": len(set(numbers))},
    )


def turns(server: BundledServer, folder: Path) -> None:
    """How long the bridge's thread runs without letting another one have the interpreter."""
    journal = folder / "journal.jsonl"
    with journal.open("wb") as file:
        for number in range(3000):
            pad = "x" * (600_000 if number % 500 == 0 else 500)
            entry = {
                "digest": f"{number:064x}",
                "event": {"pad": pad},
                "sequence": number,
                "step": 0,
                "time": "",
            }
            file.write(canonical_json(entry) + b"\n")
    took: list[float] = []
    turn = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def timed(loop: asyncio.BaseEventLoop) -> None:
        began = time.thread_time()
        turn(loop)
        took.append(time.thread_time() - began)

    asyncio.BaseEventLoop._run_once = timed  # type: ignore[attr-defined]
    try:
        with Bridge(server.address, "local", "turns", "/runs/local/turns", journal) as bridge:
            for tick in range(500):
                for step in range(100):
                    bridge.telemetry({"step": step, "loss": 0.5, "seconds": 0.01})
                if tick % 10 == 0:
                    bridge.state({"slots": [{"slot": f"layers.{n}", "state": "Dormant"} for n in range(500)]})
                time.sleep(0.01)
            counts = bridge.close(60)
    finally:
        asyncio.BaseEventLoop._run_once = turn  # type: ignore[attr-defined]
    found = np.array(took) * 1e3
    bar(
        "longest turn of the bridge's thread, ms of processor time",
        command=COMMAND,
        figure=round(float(found.max()), 2),
        bound="<= 5, with 10,000 samples a second, a journal of 5 MB to copy, and states of 500 slots",
        passed=float(found.max()) <= 5 and counts.journal == 2999,
        detail={"turns": len(found), "p99": round(float(np.percentile(found, 99)), 2)},
    )


async def _stored(address: BusAddress) -> list[int]:
    client = await connect(address, "count")
    js = client.jetstream()
    subject = "esper.run.local.outage.telemetry"
    consumer = await js.pull_subscribe(subject, stream="TELEMETRY")
    left = (await js.stream_info("TELEMETRY", subjects_filter=subject)).state.subjects
    count = sum((left or {}).values())
    numbers: list[int] = []
    while count:
        for message in await consumer.fetch(min(count, 200), timeout=5):
            data = json.loads(message.data)["data"]
            if "samples" in data:
                numbers += range(data["first"], data["first"] + len(data["samples"]))
            await message.ack()
            count -= 1
    await client.close()
    return numbers


def main() -> int:
    """Measure; returns 0."""
    with tempfile.TemporaryDirectory() as folder, BundledServer(Path(folder) / "bus") as server:
        turns(server, Path(folder))
        latency(server)
        outage(server)
        asyncio.run(survive(server))
    return 0


if __name__ == "__main__":
    sys.exit(main())
