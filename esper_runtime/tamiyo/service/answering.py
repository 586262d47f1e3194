"""The service joins the queue group, decides for whoever asks and publishes; bad questions do not end it."""

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from esper_runtime.contracts import (
    Answer,
    BusError,
    Channel,
    CheckpointError,
    CloudEvent,
    EventType,
    InputError,
    may_be_named,
    read_question,
    run_of_subject,
    run_subject,
)
from esper_runtime.oona import AccessRefusedError, BusAddress, connect, publish_event
from esper_runtime.tamiyo.service.decide import decide
from esper_runtime.tamiyo.service.metrics import ServiceMetrics

QUESTIONS = "esper.run.*.*.state"
QUEUE_GROUP = "esper-tamiyo"
"""Services with this group share the questions: each goes to one of them."""
MOST_WAITING, MOST_WAITING_BYTES = 4096, 256 * 2**20
"""Questions that may wait in a process; more are dropped, and their runs ask again."""
UNDERWAY = 8
"""Questions underway for each that is worked on: the others wait for their turn or for an acknowledgement."""
STUCK_SECONDS = 60.0
"""A decision that takes longer means that the process is to be replaced."""
BEAT, LATE_BEAT = 0.5, 5.0
PUBLISH_PATIENCE = 5.0
"""Seconds to try to publish an answer for; afterwards its run has asked again."""
RETRY, SLOW_RETRY = 0.5, 5.0
END_PATIENCE = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Decided:
    answer: Answer
    namespace: str
    run: str  # its name on the bus
    asked: CloudEvent


class ControllerService:
    """Decides for many runs and keeps nothing of them, so that any number of services can share the work.

    Args:
        address: of the bus.
        metrics: counts.
        concurrency: questions that are worked on at the same time; the rest wait in order.
    """

    def __init__(self, address: BusAddress, metrics: ServiceMetrics, concurrency: int = 2) -> None:
        self._address, self._metrics = address, metrics
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="decide")
        self._free = asyncio.Semaphore(UNDERWAY * concurrency)
        self._stopping = asyncio.Event()
        self._client: Client | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answering: dict[asyncio.Task[None], float] = {}
        self._beat_at = time.monotonic()
        self._error = "it was not tried yet"

    def stop(self) -> None:
        """End in order: take no more questions, finish those taken."""
        self._stopping.set()

    def problem(self) -> str | None:
        """Why the service does not work at present; None while it does. May be called from any thread."""
        now = time.monotonic()
        if now - self._beat_at > LATE_BEAT:
            return f"the process hangs: nothing has moved for {now - self._beat_at:.0f} s"
        client, reader = self._client, self._reader
        if client is None or not client.is_connected:
            return f"not connected to the bus at {self._address.url}: {self._error}"
        if reader is None or reader.done():
            return "the questions are not read: the subscription has ended"
        started = min(list(self._answering.values()), default=now)
        if now - started > STUCK_SECONDS:
            return f"a decision has been going on for {now - started:.0f} s"
        return None

    async def run(self) -> None:
        """Serve until `stop`, over as many connections as it takes."""
        beat = asyncio.create_task(self._beat())
        try:
            while not self._stopping.is_set():
                wait = RETRY
                try:
                    await self._session()
                except AccessRefusedError as error:
                    wait = SLOW_RETRY
                    self._note(error)
                except (BusError, InputError, OSError) as error:
                    self._note(error)
                await self._stopped_within(wait)
        finally:
            beat.cancel()
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _note(self, error: Exception) -> None:
        if str(error) != self._error:
            self._error = str(error)
            _log.warning("bus: %s", error)

    async def _stopped_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _beat(self) -> None:
        while True:
            self._beat_at = time.monotonic()
            self._metrics.connected.set(self._client is not None and self._client.is_connected)
            await asyncio.sleep(BEAT)

    async def _session(self) -> None:
        closed = asyncio.Event()

        async def on_closed() -> None:
            closed.set()

        client = await connect(self._address, "esper-tamiyo", on_closed=on_closed)
        self._client, self._error = client, "the connection was lost"
        _log.info("decides for the runs on %s", self._address.url)
        try:
            questions = await client.subscribe(
                QUESTIONS,
                queue=QUEUE_GROUP,
                pending_msgs_limit=MOST_WAITING,
                pending_bytes_limit=MOST_WAITING_BYTES,
            )
            self._reader = asyncio.create_task(self._read(client, questions))
            waiting = {self._reader, *(asyncio.create_task(e.wait()) for e in (closed, self._stopping))}
            done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await self._finish(questions)
            for task in rest:
                task.cancel()
            if self._reader in done:
                self._reader.result()
        finally:
            self._client = None
            await client.close()

    async def _finish(self, questions: Subscription) -> None:
        """Take no more questions; publish what is being decided."""
        await questions.unsubscribe()
        if self._answering:
            await asyncio.wait(list(self._answering), timeout=END_PATIENCE)

    async def _read(self, client: Client, questions: Subscription) -> None:
        async for message in questions.messages:
            await self._free.acquire()
            task = asyncio.create_task(self._answer(client, message))
            self._answering[task] = time.monotonic()
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.pop(task, None)
        self._free.release()

    async def _answer(self, client: Client, message: Msg) -> None:
        with self._metrics.in_flight.track_inprogress(), self._metrics.seconds.time():
            loop = asyncio.get_running_loop()
            try:
                decided = await loop.run_in_executor(self._workers, _decide, message.subject, message.data)
            except InputError as error:
                return self._refuse("malformed", message, error)
            except Exception as error:  # whatever one run's question holds, the others are still answered
                if not isinstance(error, CheckpointError):
                    _log.debug("a question could not be decided", exc_info=error)
                return self._refuse("undecidable", message, error)
            if decided is None:
                return None
            answer = decided.answer
            event = CloudEvent.new(
                EventType.ANSWER,
                f"/tamiyo/{answer.controller.lower()}",
                answer,
                f"{decided.asked.id}.answer"[-256:],
                decided.asked.traceparent,
            )
            subject = run_subject(decided.namespace, decided.run, Channel.DIRECTIVE)
            try:
                await publish_event(client, subject, event, patience=PUBLISH_PATIENCE)
            except BusError as error:
                return self._refuse("unsent", message, error)
            decision = answer.decision
            kind = "trials" if decision.probe else "directives" if decision.directives else "nothing"
            self._metrics.decisions.labels(kind).inc()
            self._metrics.saw(f"{decided.namespace}/{decided.run}")
        return None

    def _refuse(self, why: str, message: Msg, error: Exception) -> None:
        self._metrics.refused.labels(why).inc()
        _log.warning("%s: %s: %s", message.subject, why, str(error)[:500] or type(error).__name__)


def _decide(subject: str, payload: bytes) -> _Decided | None:
    """The answer to the question in a message; None where the message is something else.

    Raises:
        InputError: the message makes no sense.
        CheckpointError: the memory in the question makes no sense.
    """
    namespace, run = run_of_subject(subject)
    event = CloudEvent.decoded(payload)
    if event.type != EventType.QUESTION:
        return None
    try:
        question = read_question(event.data)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not may_be_named(question.run, run):
        raise InputError(f"the question is about run {question.run!r} and came from run {run!r}")
    return _Decided(decide(question), namespace, run, event)
