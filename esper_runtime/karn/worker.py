"""The worker: takes work off the queue, and proposes blueprints to the planner."""

import asyncio
import logging
from dataclasses import dataclass

from nats.aio.client import Client

from esper_runtime.artifact import KeyRing, encode_signed
from esper_runtime.contracts import (
    PROPOSALS_SUBJECT,
    BusError,
    GenerateWork,
    GenerationError,
    Proposal,
    Role,
)
from esper_runtime.karn.propose import propose
from esper_runtime.oona import BusAddress, WorkItem, WorkQueue, connect, disconnect, publish
from esper_runtime.urza import KnownBlueprints

_PATIENCE = 10.0

_log = logging.getLogger(__name__)


@dataclass
class Proposed:
    """What a worker has done.

    Attributes:
        mutated: proposals that change a known blueprint.
        drawn: proposals that were drawn at random.
        failed: items for which nothing new was found, and that are given up.
        again: items that come again.
    """

    mutated: int = 0
    drawn: int = 0
    failed: int = 0
    again: int = 0


async def serve(
    address: BusAddress,
    keyring: KeyRing,
    target: str,
    *,
    stop: asyncio.Event | None = None,
    idle_seconds: float | None = None,
    done: Proposed | None = None,
) -> Proposed:
    """Propose blueprints for a target's queue until ``stop`` is set, or there is no more work.

    An item whose worker dies comes again, and yields the same proposals while the library holds the same.

    Args:
        address: of the bus with the library, as the role ``karn``.
        keyring: signs as Karn.
        target: name of the target whose trainings want blueprints.
        stop: ends the worker.
        idle_seconds: ends the worker that had nothing to do for so long; None: it waits for ever.
        done: is kept up to date; also returned.

    Raises:
        BusError: the bus cannot be reached at the start.
        ArtifactError: the keys may not be used.
    """
    stop = stop or asyncio.Event()
    keyring.ensure(Role.KARN)
    client = await connect(address, "karn", patience=30.0)
    done = done or Proposed()
    try:
        worker, queue = _Worker(client, keyring, done), WorkQueue(client, "generate", target)
        await queue.work_off(worker.do, stop, idle_seconds)
    finally:
        await disconnect(client)
    return done


class _Worker:
    def __init__(self, client: Client, keyring: KeyRing, done: Proposed) -> None:
        self._client, self._keyring, self._done = client, keyring, done
        self._known = KnownBlueprints(client)

    async def do(self, item: WorkItem) -> None:
        """Do one item; one that the bus was away for comes again."""
        try:
            await self._do(item)
        except BusError:
            self._done.again += 1
            raise

    async def _do(self, item: WorkItem) -> None:
        """Propose what an item asks for, then take it off the queue."""
        work = item.spec
        assert isinstance(work, GenerateWork)
        try:
            proposals = await asyncio.to_thread(propose, work, await self._known.ids())
        except GenerationError as error:
            self._done.failed += 1
            await item.give_up(str(error)[:2000])
            return
        for proposal in proposals:
            await self._say(proposal, work.seed)
        await item.done()

    async def _say(self, proposal: Proposal, seed: int) -> None:
        data = encode_signed(self._keyring.sign(Role.KARN, proposal))
        identity = f"proposal-{proposal.wish}-{seed}-{proposal.graph.name}"
        await publish(self._client, PROPOSALS_SUBJECT, data, identity, patience=_PATIENCE)
        if proposal.graph.provenance.parents:
            self._done.mutated += 1
        else:
            self._done.drawn += 1
