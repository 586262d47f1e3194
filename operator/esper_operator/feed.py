"""What runs say on the bus: heard over one connection for each namespace, folded into their statuses."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from esper_operator.live import Live
from esper_operator.names import RunKey
from esper_runtime.contracts import (
    BusError,
    CloudEvent,
    EsperError,
    EventType,
    JournalEntry,
    Progress,
    run_of_subject,
)

JOURNAL, PROGRESS = "esper-operator-journal", "esper-operator-progress"
"""Names of the operator's consumers in each namespace's account."""
AT_ONCE = 256
WAIT = 5.0
"""Seconds that one request for messages waits for the first."""
ACK_SECONDS = 120.0
"""A journal entry whose status was not written in this time comes again."""
AGAIN = 5.0
"""Seconds before a connection that failed is tried again."""

_log = logging.getLogger(__name__)

Lives = Callable[[RunKey, str], Live | None]


class Feed:
    """Hears the runs of all namespaces that it is told of.

    Journal entries are acknowledged once the status that says them is written, so that whoever comes after
    this process hears what was not shown yet. Malformed messages are counted and passed over.

    Args:
        connect: gives the connection to a namespace's streams; raises `BusError`.
        lives: what is known of a run, by key and short uid; None where there is no such run.
        changed: called with the key of a run that has said something.
    """

    def __init__(
        self,
        connect: Callable[[str], Awaitable[Client]],
        lives: Lives,
        changed: Callable[[RunKey], None],
    ) -> None:
        self._connect, self._lives, self._changed = connect, lives, changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.malformed = 0
        """Messages that were none of ours, or were said in another run's name."""
        self.heard = 0
        """Messages that were."""

    def hear(self, namespace: str) -> None:
        """Hear the runs of a namespace from now on; it must be prepared on the bus."""
        if namespace not in self._tasks:
            self._tasks[namespace] = asyncio.create_task(self._hear(namespace))

    async def stop(self) -> None:
        """Hear nothing any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    async def _hear(self, namespace: str) -> None:
        while True:
            try:
                client = await self._connect(namespace)
                js = client.jetstream()
                async with asyncio.TaskGroup() as group:
                    journal, progress = "esper.run.*.*.journal", "esper.run.*.*.progress"
                    group.create_task(self._follow(js, "EVENTS", JOURNAL, journal, self._take_entry))
                    group.create_task(self._follow(js, "PROGRESS", PROGRESS, progress, self._take_progress))
            except* (nats.errors.Error, BusError, OSError) as errors:
                _log.warning("namespace %s cannot be heard for now: %s", namespace, errors.exceptions[0])
            await asyncio.sleep(AGAIN)

    async def _follow(
        self, js: JetStreamContext, stream: str, name: str, subject: str, take: Callable[[Msg], None]
    ) -> None:
        await _ensure(js, stream, name, subject)
        consumer = await js.pull_subscribe_bind(consumer=name, stream=stream)
        try:
            while True:
                await self._take_some(consumer, take)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await consumer.unsubscribe()  # else the server gives its next messages to nobody

    async def _take_some(
        self, consumer: JetStreamContext.PullSubscription, take: Callable[[Msg], None]
    ) -> None:
        try:
            messages = await consumer.fetch(AT_ONCE, timeout=WAIT)
        except nats.errors.TimeoutError:
            return
        for message in messages:
            try:
                take(message)
                self.heard += 1
            except (EsperError, ValidationError) as error:
                self.malformed += 1
                _log.warning("%s: a message was passed over: %s", message.subject, error)
                await message.ack()

    def _take_progress(self, message: Msg) -> None:
        event = CloudEvent.decoded(message.data)
        found = self._of(message.subject)
        if found is None or event.type != EventType.PROGRESS:
            return
        key, live = found
        live.hear(Progress.model_validate(event.data), event.time)
        self._changed(key)

    def _take_entry(self, message: Msg) -> None:
        event = CloudEvent.decoded(message.data)
        found = self._of(message.subject)
        if found is None:
            asyncio.get_running_loop().create_task(message.ack())
            return
        key, live = found
        if event.type == EventType.JOURNAL:
            live.fold(JournalEntry.model_validate(event.data))
        live.after.append(message.ack)
        self._changed(key)

    def _of(self, subject: str) -> tuple[RunKey, Live] | None:
        """The run that a subject speaks of, where there is one of this uid."""
        namespace, word = run_of_subject(subject)
        name, _, uid = word.rpartition("-")
        key = RunKey(namespace, name)
        live = self._lives(key, uid)
        return None if live is None else (key, live)


async def _ensure(js: JetStreamContext, stream: str, name: str, subject: str) -> None:
    journal = stream == "EVENTS"
    try:
        await js.consumer_info(stream, name)
    except NotFoundError:
        await js.add_consumer(
            stream,
            ConsumerConfig(
                durable_name=name,
                filter_subject=subject,
                ack_policy=AckPolicy.EXPLICIT if journal else AckPolicy.NONE,
                deliver_policy=DeliverPolicy.ALL if journal else DeliverPolicy.LAST_PER_SUBJECT,
                ack_wait=ACK_SECONDS if journal else None,
                max_ack_pending=16_384 if journal else None,
            ),
        )
