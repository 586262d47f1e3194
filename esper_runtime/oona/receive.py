"""Receiving CloudEvents from a durable consumer: acknowledged explicitly, copies told, rubbish survived."""

import logging
from collections import OrderedDict
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from esper_runtime.contracts import CloudEvent, InputError

REMEMBERED = 65_536
"""Ids of this many last events are known, to recognise copies."""

_MORE = 0.005
"""Seconds to wait for more events once there is one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """An event and the message that brought it, which is to be acknowledged once the event had its effect."""

    event: CloudEvent
    subject: str
    message: Msg
    receiver: "Receiver"

    async def acknowledge(self, client: Client) -> None:
        """Say that it had its effect, also over a later connection than the one that brought it.

        Where this is lost, the event comes again and is recognised.
        """
        self.receiver.mark_handled(self.event.id)
        await client.publish(self.message.reply, b"+ACK")


class Receiver:
    """Reads one durable consumer, across connections.

    Malformed messages are acknowledged, counted and logged; copies of an event that this object has handed
    out before are counted, and acknowledged if that one was. After a new connection `bind` is called again.

    Args:
        stream: e.g. ``EVENTS``.
        durable: name of the consumer.
    """

    def __init__(self, stream: str, durable: str) -> None:
        self.malformed = 0
        self.duplicates = 0
        self.stream, self.durable = stream, durable
        self._seen: OrderedDict[str, bool] = OrderedDict()
        self._consumer: JetStreamContext.PullSubscription | None = None

    async def bind(self, js: JetStreamContext) -> None:
        """Use the consumer over this connection; it must exist (see `ensure_consumer`)."""
        self._consumer = await js.pull_subscribe_bind(consumer=self.durable, stream=self.stream)

    async def fetch(self, most: int = 64, timeout: float = 1.0) -> list[Received]:
        """The next events, none when there are none within ``timeout`` seconds."""
        assert self._consumer is not None, "bind comes first"
        messages = await self._pull(1, timeout)
        if messages and most > 1:
            # A pull for several waits for all of them: first one, then what else is there already.
            messages += await self._pull(most - 1, _MORE)
        found = []
        for message in messages:
            received = await self._judge(message)
            if received is not None:
                found.append(received)
        return found

    async def _pull(self, most: int, timeout: float) -> list[Msg]:
        assert self._consumer is not None
        try:
            return await self._consumer.fetch(most, timeout=timeout)
        except nats.errors.TimeoutError:
            return []

    async def _judge(self, message: Msg) -> Received | None:
        try:
            event = CloudEvent.decoded(message.data)
        except InputError as error:
            self.malformed += 1
            _log.warning("%s: ignored a message: %s", message.subject, error)
            await message.ack()
            return None
        if event.id in self._seen:
            self.duplicates += 1
            if self._seen[event.id]:
                await message.ack()
            return None
        self._seen[event.id] = False
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return Received(event, message.subject, message, self)

    def mark_handled(self, identity: str) -> None:
        """Note that the event with this id had its effect: copies of it are acknowledged from now on."""
        if identity in self._seen:
            self._seen[identity] = True


async def ensure_consumer(
    js: JetStreamContext,
    stream: str,
    durable: str,
    subject: str,
    *,
    only_new: bool = False,
    ack_wait: float = 30.0,
    idle: float | None = None,
) -> bool:
    """Make the durable pull consumer where it lacks.

    Args:
        js: of a connection that may make consumers.
        stream: to read from.
        durable: name; no dots or spaces.
        subject: which of the stream's subjects, wildcards allowed.
        only_new: a consumer made now begins with what comes from now on, else with the oldest.
        ack_wait: seconds after which an event that was not acknowledged comes again.
        idle: seconds after which the server removes it where nobody asked for anything; None: it stays.

    Returns:
        Whether it was made.
    """
    try:
        await js.consumer_info(stream, durable)
    except NotFoundError:
        await js.add_consumer(
            stream,
            ConsumerConfig(
                durable_name=durable,
                filter_subject=subject,
                ack_policy=AckPolicy.EXPLICIT,
                deliver_policy=DeliverPolicy.NEW if only_new else DeliverPolicy.ALL,
                ack_wait=ack_wait,
                max_ack_pending=1024,
                inactive_threshold=idle,
            ),
        )
        return True
    return False
