"""What the planner sees: the library, its own notes, the queue, dead letters and reports, read in this order
that no result can hide: the queue first, the library after it."""

import asyncio
import time
from collections.abc import Iterable
from typing import cast

import nats.errors
from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.artifact import Trust
from esper_runtime.contracts import BusError, CloudEvent, FieldReport, InputError, KernelNote, Work
from esper_runtime.forge.letters import DeadLetters
from esper_runtime.forge.notes import Notes
from esper_runtime.forge.proposals import Proposals
from esper_runtime.oona import Tail, get_kept
from esper_runtime.planning import ForgeState, InnovationState, QueueView
from esper_runtime.urza import Library

QUEUE = "FORGE"


class Observer:
    """Looks at everything that the planner decides by.

    Args:
        client: a connection of the planner's.
        library: connected.
        trust: whose revocations count.
    """

    def __init__(self, client: Client, library: Library, trust: Trust) -> None:
        self.notes = Notes(client)
        self.letters = DeadLetters(client)
        self.proposals = Proposals(client, trust)
        self._js = client.jetstream()
        self._library, self._trust = library, trust
        self._reports_tail = Tail(self._js, "REPORTS")
        self._reports: list[FieldReport] = []
        self._missing: dict[int, float] = {}

    async def look(self) -> ForgeState:
        """The state of now.

        Raises:
            BusError: the bus does not answer.
        """
        await self.notes.refresh()
        queue = await self._queue(self.notes.all.values())
        await self.letters.refresh()
        await self._read_reports()
        return ForgeState(
            now=time.time(),
            blueprints=await self._library.blueprints(),
            wishes=await self._library.wishes(),
            records=await self._library.records(),
            notes=self.notes.all,
            queue=queue,
            dead=[letter.dead for letter in self.letters.all],
            reports=tuple(self._reports),
            revoked=frozenset(self._trust.keys.revoked_digests),
        )

    async def innovation(self, state: ForgeState) -> InnovationState | None:
        """What there is of innovation beside ``state``; None where no training wants any.

        Raises:
            BusError: the bus does not answer.
            ArtifactError: the list of trusted keys may not be used.
        """
        wishes = await self._library.innovations()
        if not wishes:
            return None
        depths = await self.items()
        await self.proposals.refresh()  # after the queue: what a piece of work has yielded is not missed
        return InnovationState(
            now=state.now,
            wishes=wishes,
            proposals=self.proposals.judged(wishes),
            blueprints=await self._library.blueprints(),
            records=state.records,
            reports=state.reports,
            dead=state.dead,
            depths=depths,
        )

    async def items(self) -> dict[tuple[Work, str], int]:
        """How many items wait or are worked on, by work and target.

        Raises:
            BusError: the bus does not answer.
        """
        try:
            state = (await self._js.stream_info(QUEUE, ">")).state
        except (OSError, nats.errors.Error) as error:
            raise BusError(f"the queues cannot be read ({error})") from error
        words = {subject: subject.split(".") for subject in state.subjects or {}}
        return {
            (cast(Work, words[subject][2]), words[subject][3]): number
            for subject, number in (state.subjects or {}).items()
        }

    async def _queue(self, notes: Iterable[KernelNote]) -> QueueView:
        """Which of the published tries are still in the queue; what left it once does not come back."""
        noted = {
            attempt.sequence
            for note in notes
            for attempt in (note.compile, note.evaluate)
            if attempt is not None and attempt.sequence is not None
        }
        self._missing = {sequence: at for sequence, at in self._missing.items() if sequence in noted}
        asked = sorted(noted - self._missing.keys())
        try:
            found = await asyncio.gather(*(get_kept(self._js, QUEUE, sequence) for sequence in asked))
        except (OSError, nats.errors.Error) as error:
            raise BusError(f"the queue cannot be read ({error})") from error
        present = frozenset(kept.sequence for kept in found if kept is not None)
        now = time.time()
        self._missing |= dict.fromkeys(noted - self._missing.keys() - present, now)
        return QueueView(present, dict(self._missing))

    async def _read_reports(self) -> None:
        found = await self._reports_tail.read()
        if self._reports_tail.began_anew:
            self._reports.clear()
        for kept in found:
            try:
                self._reports.append(FieldReport.model_validate(CloudEvent.decoded(kept.data).data))
            except (InputError, ValidationError):
                continue  # not a report on a kernel
