"""The controller as a service: silent, dead, slow and lying ones, and how many decisions one process makes.

Every run is a real training with a real nats-server and a bridge to it; the honest service is `esper tamiyo
serve` in a process of its own, the slow and the lying ones answer over the same bus. What is counted is read
from the runs' journals.
"""

import asyncio
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.line import bar
from esper_runtime.contracts import (
    LOCAL_NAMESPACE,
    AnswerRefused,
    Channel,
    CloudEvent,
    ControllerChanged,
    Decided,
    EventType,
    Finished,
    GraftingPlan,
    Operation,
    Question,
    read_question,
    run_subject,
)
from esper_runtime.local.post import Post
from esper_runtime.nissa import explain, read_journal
from esper_runtime.oona import Bridge, BundledServer, BusAddress, connect, ensure_streams, publish_event
from esper_runtime.tamiyo import HeuristicController, RemoteController
from esper_runtime.tamiyo.service import decide
from esper_runtime.tolaria import Trainer
from tests.tamiyo.services import GROWTH, Service, wait_for
from tests.tamiyo.world import World, prospect
from tests.tolaria.runs import manifest

COMMAND = "python -m benchmarks.service"
STEPS, PATIENCE = 2000, 0.5
LONGEST_DECIDE = 0.1
"""Seconds that a call may take on a shared machine; it neither waits nor makes a system call."""
RUNS, SECONDS = 50, 10.0
GROWTH_OF_RUNS = {
    "controller": {"everySteps": 5, "placement": "Service", "patienceSeconds": PATIENCE, "deadline": 0.3},
    "slots": {"include": ["1..5"]},
    "blueprints": {"include": ["widen-linear-6", "widen-linear-12", "widen-linear-24"]},
    "budget": {"parameters": "2x"},
}

Responder = Callable[[Question], Awaitable[dict[str, Any] | None]]


class Decides:
    """Notes how long each call of `RemoteController.decide` takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note them within the block."""
        plain = RemoteController.decide

        def decide_timed(controller: RemoteController, state: Any) -> Any:
            here = controller.holder == "Service"
            started = time.perf_counter()
            decision = plain(controller, state)
            if here and controller.holder == "Service":
                self.seconds.append(time.perf_counter() - started)
            return decision

        RemoteController.decide = decide_timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            RemoteController.decide = plain  # type: ignore[method-assign]


class Impostor:
    """Answers questions over the bus as ``respond`` says, from a thread of its own."""

    def __init__(self, address: BusAddress, respond: Responder) -> None:
        self.sent = 0
        self._address, self._respond = address, respond
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        client = await connect(self._address, "impostor")
        answering: set[asyncio.Task[None]] = set()

        async def on_question(message: Any) -> None:
            task = asyncio.create_task(self._answer(client, message))
            answering.add(task)
            task.add_done_callback(answering.discard)

        await client.subscribe("esper.run.*.*.state", cb=on_question)
        await client.flush()
        self._ready.set()
        await self._end.wait()
        for task in answering:
            task.cancel()
        await client.close()

    async def _answer(self, client: Any, message: Any) -> None:
        question = read_question(CloudEvent.decoded(message.data).data)
        data = await self._respond(question)
        if data is None:
            return
        subject = run_subject(LOCAL_NAMESPACE, question.run, Channel.DIRECTIVE)
        await publish_event(client, subject, CloudEvent.new(EventType.ANSWER, "/impostor", data))
        self.sent += 1

    def __enter__(self) -> "Impostor":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()


def answer_of(question: Question) -> dict[str, Any]:
    """The honest answer as JSON."""
    return decide(question).model_dump(mode="json", by_alias=True)


def planting(slot: str, blueprint: str) -> dict[str, Any]:
    """A decision to plant, as JSON."""
    plan = GraftingPlan(grafting_steps=10).model_dump(mode="json", by_alias=True)
    directive = {"operation": Operation.GERMINATE, "slot": slot, "blueprint": blueprint, "plan": plan}
    return {"directives": [{**directive, "explanation": "because"}], "explanation": "because"}


async def slow(question: Question) -> dict[str, Any]:
    """Right, but too late."""
    await asyncio.sleep(3 * PATIENCE)
    return answer_of(question)


async def stale_epoch(question: Question) -> dict[str, Any]:
    """For an epoch that is over."""
    return {**answer_of(question), "epoch": question.epoch - 1}


async def unknown_slot(question: Question) -> dict[str, Any]:
    """Plants where there is no slot."""
    return {**answer_of(question), "decision": planting("nowhere", question.state.candidates[0].blueprint)}


async def over_budget(question: Question) -> dict[str, Any]:
    """Plants the largest there is."""
    largest = max(question.state.candidates, key=lambda c: c.parameters)
    return {**answer_of(question), "decision": planting(largest.slot, largest.blueprint)}


async def other_run(question: Question) -> dict[str, Any]:
    """For a run of another name."""
    return {**answer_of(question), "run": "another"}


async def malformed(question: Question) -> dict[str, Any]:
    """No answer at all."""
    return {"run": question.run, "decision": "grow!"}


def train(address: BusAddress, folder: Path, name: str, during: Callable[[], None] | None = None) -> Path:
    """One run to its end; ``during`` is called from another thread while it trains."""
    bridge = Bridge(address, LOCAL_NAMESPACE, name, f"/runs/local/{name}")
    with bridge:
        post = Post(bridge, name)
        growth = GROWTH_OF_RUNS | ({"budget": {"parameters": "1.7x"}} if name == "over-budget" else {})
        trainer = Trainer(
            manifest(STEPS, name=name, growth=growth), folder / name, commands=post, link=post.link
        )
        other = threading.Thread(target=during) if during is not None else None
        if other is not None:
            other.start()
        trainer.run()
        if other is not None:
            other.join()
    return folder / name / "journal.jsonl"


def what_came_of(journal: Path, dead_since: str = "9999") -> dict[str, Any]:
    """What the journal says of who decided; ``dead_since`` is the time from which on there was no service."""
    entries = read_journal(journal)
    events = [entry.event for entry in entries]
    obeyed, too_late, holder = 0, 0, "Service"
    for entry in entries:
        event = entry.event
        if isinstance(event, ControllerChanged):
            holder = event.after
        if isinstance(event, Decided) and event.directives and event.controller.endswith("(service)"):
            obeyed += len(event.directives)
            too_late += len(event.directives) if entry.time > dead_since else 0
    refused = [event for event in events if isinstance(event, AnswerRefused)]
    text = explain(entries)
    return {
        "complete": any(isinstance(e, Finished) and e.outcome == "Complete" for e in events),
        "obeyed": obeyed,
        "obeyedOfTheDead": too_late,
        "refused": sum(event.count for event in refused),
        "explained": all(event.reason for event in refused),
        "told": not refused or "not obeyed" in text,
        "reasons": sorted({event.reason for event in refused}, key=len)[:2],
        "handovers": [event.after for event in events if isinstance(event, ControllerChanged)],
        "last": holder,
    }


def unruly(address: BusAddress, address_file: Path, folder: Path, decides: Decides) -> bool:
    """The bar of silent, dead, slow and lying services."""
    found: dict[str, dict[str, Any]] = {}
    with decides.timed():
        with Service(address_file).until_healthy():
            control = what_came_of(train(address, folder, "honest"))
        found["silent"] = what_came_of(train(address, folder, "silent"))
        with Service(address_file).until_healthy() as service:
            killed = ""

            def kill() -> None:
                nonlocal killed
                wait_for(lambda: service.metric("esper_tamiyo_decision_seconds_count") >= 10, 60)
                service.process.send_signal(signal.SIGSTOP)
                time.sleep(PATIENCE / 2)  # what it has sent arrives; it sends no more
                killed = datetime.now(UTC).isoformat(timespec="milliseconds")
                service.kill()

            journal = train(address, folder, "dead", kill)
            found["dead"] = what_came_of(journal, killed)
        liars = (slow, stale_epoch, unknown_slot, over_budget, other_run, malformed)
        for respond in liars:
            name = respond.__name__.replace("_", "-")
            with Impostor(address, respond) as impostor:
                found[name] = what_came_of(train(address, folder, name))
            found[name]["answers"] = impostor.sent
    wrong = [f for name, f in found.items() if name != "dead" and f["obeyed"]]
    good = (
        all(f["complete"] and f["explained"] and f["told"] for f in found.values())
        and not wrong
        and found["dead"]["obeyedOfTheDead"] == 0
        and "Embedded" in found["dead"]["handovers"]
        and all(f["last"] == "Embedded" for f in found.values())
        and all(f["refused"] for name, f in found.items() if name not in ("silent", "dead"))
    )
    bar(
        "service: silent, dead (kill -9), slow and lying (stale epoch, unknown slot, over budget, other run, "
        "malformed)",
        command=COMMAND,
        figure={
            "runs": len(found),
            "complete": sum(f["complete"] for f in found.values()),
            "directivesObeyed": sum(f["obeyed"] for name, f in found.items() if name != "dead"),
            "directivesObeyedAfterTheKill": found["dead"]["obeyedOfTheDead"],
            "answersRefused": sum(f["refused"] for f in found.values()),
        },
        bound="all complete, 0 directives obeyed, each refusal explained in the journal, embedded takes over",
        passed=good,
        control={"honest": control},
        detail=found,
    )
    return good


def recorded() -> list[Question]:
    """The questions of a run with 24 slots and 12 blueprints each, from its first boundary to its last."""
    total = 2000
    prospects = [
        prospect(f"layer{slot}", f"kind{kind}", 60 + 5 * kind, 0.01 + 0.001 * ((slot * 7 + kind * 3) % 40))
        for slot in range(24)
        for kind in range(12)
    ]
    world, controller = World(prospects, total=total, limit=2000), HeuristicController(GROWTH, total)
    questions: list[Question] = []

    class Asked:
        def decide(self, state: Any) -> Any:
            base = Question(
                run="x", asker="x", incarnation=0, epoch=1, number=1, growth=GROWTH, total_steps=total,
                state=state, memory=controller.state(),
            )  # fmt: skip
            questions.append(base)
            return controller.decide(state)

    world.run(Asked())  # type: ignore[arg-type]
    return questions


async def load(address: BusAddress, questions: list[Question], pause: float) -> tuple[float, list[float]]:
    """``RUNS`` runs ask one question after the other; decisions per second, and seconds to each answer.

    Args:
        address: of the bus.
        questions: asked in turn.
        pause: seconds from one question of a run to its next.
    """
    client = await connect(address, "load")
    latencies: list[float] = []
    payloads = [q.model_dump(mode="json", by_alias=True) for q in questions]
    end = time.perf_counter() + SECONDS

    async def run(index: int) -> None:
        name = f"load-{index}"
        answers = await client.subscribe(run_subject(LOCAL_NAMESPACE, name, Channel.DIRECTIVE))
        state = run_subject(LOCAL_NAMESPACE, name, Channel.STATE)
        await asyncio.sleep(pause * index / RUNS)
        turn = index
        while time.perf_counter() < end:
            data = {**payloads[turn % len(payloads)], "run": name}
            event = CloudEvent.new(EventType.QUESTION, f"/runs/local/{name}", data).encoded()
            started = time.perf_counter()
            await client.publish(state, event)
            await answers.next_msg(timeout=30)
            latencies.append(time.perf_counter() - started)
            turn += 1
            await asyncio.sleep(max(0.0, pause - latencies[-1]))

    started = time.perf_counter()
    await asyncio.gather(*(run(index) for index in range(RUNS)))
    rate = len(latencies) / (time.perf_counter() - started)
    await client.close()
    return rate, latencies


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]


def throughput(address: BusAddress, address_file: Path) -> bool:
    """The bar of 50 runs that ask one service."""
    questions = recorded()
    started = time.perf_counter()
    for question in questions:
        decide(question)
    alone = (time.perf_counter() - started) / len(questions)
    with Service(address_file).until_healthy() as service:
        asyncio.run(load(address, questions, 1.0))
        _, paced = asyncio.run(load(address, questions, 1.0))
        most, _ = asyncio.run(load(address, questions, 0.0))
        refused = sum(
            service.metric(f'esper_tamiyo_refused_questions_total{{why="{why}"}}')
            for why in ("malformed", "undecidable", "unsent")
        )
    p95 = percentile(paced, 0.95)
    good = p95 <= 0.25 and refused == 0
    bar(
        f"service: {RUNS} runs with {24 * 12} candidates each, one question a second from each",
        command=COMMAND,
        figure={"answerSecondsP95": round(p95, 4), "answerSecondsMedian": round(statistics.median(paced), 4)},
        bound="p95 from question to answer <= 0.25 s over the bus, 0 refused",
        passed=good,
        control={"decideSecondsInProcess": round(alone, 5)},
        detail={"decisionsPerSecondAtMost": round(most, 1), "refused": refused, "answers": len(paced)},
    )
    return good


def main() -> int:
    """Print the lines; 1 when a bound is missed."""
    torch.set_num_threads(1)
    decides = Decides()
    with tempfile.TemporaryDirectory() as scratch, BundledServer(Path(scratch) / "bus") as server:

        async def make() -> None:
            client = await connect(server.address, "bench")
            await ensure_streams(client.jetstream())
            await client.close()

        asyncio.run(make())
        good = unruly(server.address, server.address_file, Path(scratch), decides)
        longest = max(decides.seconds)
        quick = longest <= LONGEST_DECIDE
        bar(
            "service: longest call of decide() while the service decides",
            command=COMMAND,
            figure=round(longest, 5),
            bound=f"<= {LONGEST_DECIDE} s: it never waits",
            passed=quick,
            control={"median": round(statistics.median(decides.seconds), 6), "calls": len(decides.seconds)},
            detail={"p99": round(percentile(decides.seconds, 0.99), 5)},
        )
        good = throughput(server.address, server.address_file) and good
    return 0 if good and quick else 1


if __name__ == "__main__":
    sys.exit(main())
