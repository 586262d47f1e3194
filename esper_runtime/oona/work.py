"""Work queues: each item is done by one worker, acknowledged when it is, and given up with a reason."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from pydantic import ValidationError

from esper_runtime.contracts import (
    BusError,
    CompileWork,
    DeadWork,
    EvaluateWork,
    GenerateWork,
    Work,
    WorkSpec,
    check_subject_word,
    forge_subject,
    utc_now,
)
from esper_runtime.oona.client import ATTEMPT, publish

STREAM = "FORGE"
MOST_DELIVERIES = 5
"""Tries that an item gets. Handed out as often without a word, it is given up by who gets it next."""
ACK_WAIT = 30.0
"""Seconds after which an item comes again, unless its worker says `WorkItem.in_progress`."""

_MODELS: dict[Work, type[WorkSpec]] = {
    "compile": CompileWork,
    "evaluate": EvaluateWork,
    "generate": GenerateWork,
}
_MORE = 0.005
_PATIENCE = 5.0

_POLL = 1.0
"""Seconds that a worker waits for an item, or for a bus that is away, before it looks at ``stop`` again."""
_log = logging.getLogger(__name__)


class WorkItem:
    """An item that was handed out. Exactly one of `done`, `retry` and `give_up` ends it.

    Attributes:
        spec: what is to be done.
        deliveries: how often it was handed out, this time included.
    """

    def __init__(self, queue: "WorkQueue", message: Msg, spec: WorkSpec) -> None:
        self.spec = spec
        self.deliveries = message.metadata.num_delivered
        self._queue = queue
        self._message = message

    async def in_progress(self) -> None:
        """Say that it is worked on: it does not come again for another `ACK_WAIT` seconds."""
        await self._message.in_progress()

    async def done(self) -> None:
        """Take it off the queue, and return once the server has done so.

        Raises:
            BusError: the server did not say so; the item may come again, and doing it twice must do no harm.
        """
        await self._queue.end(self._message, b"+ACK")

    async def retry(self, delay: float, reason: str) -> None:
        """Have it come again after ``delay`` seconds; given up where it had all its tries.

        Raises:
            BusError: as `done`.
        """
        if self.deliveries >= MOST_DELIVERIES:
            await self.give_up(f"{reason} (try {self.deliveries} of {MOST_DELIVERIES})")
            return
        _log.info("%s: again in %g s: %s", self._message.subject, delay, reason)
        self._queue.let_go(self._message)
        await self._message.nak(delay)

    async def give_up(self, reason: str) -> None:
        """Move it to the dead letters with its reason.

        Raises:
            BusError: as `done`.
        """
        await self._queue.bury(self._message, self.spec, reason)

    async def keep(self) -> None:
        """Say again and again that it is worked on, until cancelled."""
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            try:
                await self.in_progress()
            except (OSError, nats.errors.Error) as error:
                _log.info("the queue was not told that work goes on: %s", error)


class WorkQueue:
    """The items of one kind of work for one target, on the stream FORGE.

    The planner makes the consumer and publishes; workers fetch. Items that cannot be read, and those that
    were handed out `MOST_DELIVERIES` times without a word (they kill their workers), become dead letters.

    Args:
        client: a connection; the stream exists (`ensure_streams`).
        work: which kind.
        target: name of the target.

    Raises:
        InputError: the target cannot stand in a subject.
    """

    def __init__(self, client: Client, work: Work, target: str) -> None:
        self._client = client
        self._js = client.jetstream()
        self.work: Work = work
        self.target = check_subject_word(target, "target")
        self.subject = forge_subject(work, target)
        self.durable = f"{work}-{target}"
        self._consumer: JetStreamContext.PullSubscription | None = None
        self._held: set[int] = set()

    async def work_off(
        self, do: Callable[[WorkItem], Awaitable[None]], stop: asyncio.Event, idle_seconds: float | None
    ) -> None:
        """Do one item after the other until ``stop`` is set, or there is no more work.

        Args:
            do: does an item; where it raises `BusError` the item comes again.
            stop: ends it after the item in hand.
            idle_seconds: ends it when there was nothing to do for so long; None: it waits for ever.
        """
        busy = time.monotonic()
        while not stop.is_set():
            try:
                for item in await self.fetch(1, _POLL):
                    await do(item)
                    busy = time.monotonic()
                if idle_seconds is not None and time.monotonic() - busy >= idle_seconds:
                    break
            except BusError as error:
                _log.warning("%s; going on", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await stop.wait()

    async def ensure(self) -> None:
        """Make the consumer where it lacks; for who may make consumers on FORGE.

        Raises:
            BusError: it cannot be made.
        """
        config = ConsumerConfig(
            durable_name=self.durable,
            filter_subject=self.subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT,
            max_deliver=-1,  # who gets an item too often buries it: nothing is lost when nobody listens
            max_ack_pending=1024,
        )
        try:
            try:
                await self._js.consumer_info(STREAM, self.durable)
            except nats.js.errors.NotFoundError:
                await self._js.add_consumer(STREAM, config)
        except (OSError, nats.errors.Error) as error:
            raise BusError(f"{self.subject}: the consumer cannot be made ({error})") from error

    async def publish(self, item: WorkSpec, identity: str, *, patience: float | None = None) -> int:
        """Put an item on the queue; one with an identity that came within 120 s is stored once.

        Args:
            item: of this queue's kind.
            identity: kernel id and attempt, or wish and seed.
            patience: seconds to try for; None: for ever.

        Returns:
            Its sequence in the stream.

        Raises:
            BusError: it is not acknowledged in time, or the stream refuses it.
        """
        if not isinstance(item, _MODELS[self.work]):
            raise BusError(f"{self.subject}: {type(item).__name__} is no work of this queue")
        data = item.model_dump_json(by_alias=True).encode()
        return await publish(self._client, self.subject, data, f"{self.work}-{identity}", patience=patience)

    async def fetch(self, most: int = 1, timeout: float = 1.0) -> list[WorkItem]:
        """The next items, none when there are none within ``timeout`` seconds, or no planner made the queue.

        Raises:
            BusError: an item that nobody can do could not be moved to the dead letters.
        """
        messages = await self._pull(1, timeout)
        if messages and most > 1:
            messages += await self._pull(most - 1, _MORE)
        items = []
        for message in messages:
            item = await self._judge(message)
            if item is not None:
                items.append(item)
        return items

    async def depth(self) -> int | None:
        """Items that wait or are being done; None where that cannot be told."""
        try:
            info = await self._js.consumer_info(STREAM, self.durable)
        except (OSError, nats.errors.Error):
            return None
        if info.num_pending is None or info.num_ack_pending is None:
            return None
        return int(info.num_pending) + int(info.num_ack_pending)

    async def bury(self, message: Msg, item: WorkSpec | None, reason: str) -> None:
        """Keep an item on the dead letters, then take it off the queue (see `WorkItem.give_up`)."""
        payload = None if item is not None else message.data.decode(errors="replace")[:65_536]
        letter = DeadWork(
            work=self.work,
            target=self.target,
            item=item,
            payload=payload,
            reason=reason[:2000],
            deliveries=message.metadata.num_delivered,
            time=utc_now(),
        )
        await publish(
            self._client,
            f"esper.dead.{self.work}.{self.target}",
            letter.model_dump_json(by_alias=True).encode(),
            f"dead-{_sequence(message)}",
            patience=_PATIENCE,
        )
        await self.end(message, b"+TERM")

    async def end(self, message: Msg, word: bytes) -> None:
        """Say the last word on an item, until the server has answered (see `WorkItem.done`)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        self.let_go(message)
        while True:
            try:
                await self._client.request(message.reply, word, timeout=ATTEMPT)
                return
            except (OSError, nats.errors.Error) as error:
                if loop.time() > deadline or self._client.is_closed:
                    said = word.decode()
                    raise BusError(f"{self.subject}: the server did not confirm {said} ({error})") from error
                if not isinstance(error, nats.errors.TimeoutError):
                    await asyncio.sleep(0.1)

    def let_go(self, message: Msg) -> None:
        """The item is no longer ours: it may come again."""
        self._held.discard(_sequence(message))

    async def _pull(self, most: int, timeout: float) -> list[Msg]:
        try:
            if self._consumer is None:
                self._consumer = await self._js.pull_subscribe_bind(consumer=self.durable, stream=STREAM)
            return await self._consumer.fetch(most, timeout=timeout)
        except TimeoutError:  # nats-py's own is one, and it raises plain ones too
            return []
        except (nats.errors.NoRespondersError, nats.js.errors.APIError):
            await asyncio.sleep(min(timeout, 0.5))  # no such queue yet, or the server is starting
            return []

    async def _judge(self, message: Msg) -> WorkItem | None:
        sequence = _sequence(message)
        if sequence in self._held:  # a copy of what is in hand
            return None
        deliveries = message.metadata.num_delivered
        try:
            spec = _MODELS[self.work].model_validate_json(message.data, by_alias=True, by_name=False)
        except ValidationError as error:
            first: Any = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "item"
            await self.bury(message, None, f"cannot be read: {place}: {first['msg']}")
            return None
        if deliveries > MOST_DELIVERIES:
            await self.bury(
                message, spec, f"handed out {deliveries - 1} times, and no worker said what became of it"
            )
            return None
        self._held.add(sequence)
        return WorkItem(self, message, spec)


def _sequence(message: Msg) -> int:
    return int(message.metadata.sequence.stream)
