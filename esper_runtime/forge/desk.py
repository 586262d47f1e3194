"""What a person asks of the forge: how it stands, try again, leave it."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client

from esper_runtime.artifact import Trust
from esper_runtime.contracts import (
    GenerateWork,
    InputError,
    KernelNote,
    KernelRecord,
    KernelState,
    nearest,
)
from esper_runtime.forge.act import forgiven
from esper_runtime.forge.letters import Letter
from esper_runtime.forge.observe import QUEUE, Observer
from esper_runtime.planning import ForgeState, plan_innovation
from esper_runtime.urza import Library


@dataclass(frozen=True)
class QueueDepth:
    """Items of one work for one target that wait or are worked on."""

    work: str
    target: str
    items: int


@dataclass(frozen=True)
class ForgeStatus:
    """How the forge stands.

    Attributes:
        states: kernels by state.
        queues: those that hold something.
        letters: dead letters.
        ignored: words in the library that do not count, by reason.
        invented: blueprints in the library that were invented, by origin.
        refused: proposals that were not entered, by reason, as far as they are kept.
    """

    states: dict[str, int]
    queues: tuple[QueueDepth, ...]
    letters: Sequence[Letter]
    ignored: dict[str, int]
    invented: dict[str, int]
    refused: dict[str, int]


class Desk:
    """Where questions about the forge are asked.

    Args:
        client: a connection of the planner's.
        library: over it.
        trust: whose revocations count.
    """

    def __init__(self, client: Client, library: Library, trust: Trust) -> None:
        self._client, self._library = client, library
        self._observer = Observer(client, library, trust)

    async def status(self) -> ForgeStatus:
        """How things stand now.

        Raises:
            BusError: the bus does not answer.
        """
        state = await self._observer.look()
        waiting = await self._observer.items()
        counts = Counter(_state(record, state) for record in state.records.values())
        counts.update({KernelState.PENDING: len(state.wishes.keys() - state.records.keys())})
        innovation = await self._observer.innovation(state)
        refused = Counter(plan_innovation(innovation).refused if innovation is not None else {})
        refused += self._observer.proposals.ignored
        invented = Counter(entry.origin for entry in state.blueprints.values() if entry.invented)
        return ForgeStatus(
            states={each.value: counts[each] for each in KernelState if counts[each]},
            queues=tuple(QueueDepth(*key, items) for key, items in sorted(waiting.items())),
            letters=self._observer.letters.all,
            ignored={fault.value: number for fault, number in self._library.ignored.items() if number},
            invented=dict(sorted(invented.items())),
            refused=dict(sorted(refused.items())),
        )

    async def retry(self, name: str) -> str:
        """Have a kernel made or tested again, or take it out of quarantine; returns what was done.

        Args:
            name: a kernel, or the number of a dead letter.

        Raises:
            InputError: there is nothing to try again.
            BusError: the bus does not answer.
        """
        state = await self._observer.look()
        letter = self._letter(name)
        if letter is not None and isinstance(letter.dead.item, GenerateWork):
            await self._observer.letters.remove(letter.number)
            return f"dead letter {letter.number}: blueprints are asked for again by the next forge that runs"
        kernel = self._kernel(name, state)
        record = state.records.get(kernel)
        if record is not None and record.state in (KernelState.VALIDATED, KernelState.SUPERSEDED):
            raise InputError(f"{kernel} is {record.state.value}: there is nothing to try again")
        if record is not None and record.state is KernelState.REJECTED:
            raise InputError(
                f"{kernel} was rejected ({record.reason}); the same kernel would be rejected again. Change "
                "the blueprint: it gets another id"
            )
        runs = sorted({report.run for report in state.reports if report.kernel == kernel})
        if record is not None and record.state is KernelState.QUARANTINED:
            await self._observer.notes.change(kernel, lambda note: _pardoned(note, runs))
            return f"{kernel}: the failures in {', '.join(runs) or 'no run'} no longer count"
        await self._observer.notes.change(kernel, forgiven)
        for letter in self._about(kernel):
            await self._observer.letters.remove(letter.number)
        return f"{kernel}: tried again by the next forge that runs"

    async def retry_all(self) -> list[str]:
        """`retry` for every dead letter that can be read; returns what was done.

        Raises:
            BusError: the bus does not answer.
        """
        await self._observer.letters.refresh()
        letters = self._observer.letters.all
        names = {letter.kernel: None for letter in letters if letter.kernel is not None}
        names |= {str(one.number): None for one in letters if isinstance(one.dead.item, GenerateWork)}
        return [await self.retry(name) for name in names]

    async def drop(self, name: str) -> str:
        """Take a dead letter off the list and have its kernel left alone; returns what was done.

        Args:
            name: a kernel, or the number of a dead letter.

        Raises:
            InputError: there is no such kernel or letter.
            BusError: the bus does not answer.
        """
        state = await self._observer.look()
        letter = self._letter(name)
        if letter is not None and isinstance(letter.dead.item, GenerateWork):
            raise InputError(
                f"dead letter {name} is about no kernel: while it is there nothing is invented for the run "
                f"that wants it; `esper forge retry {name}` asks again"
            )
        if letter is not None and letter.kernel is None:
            await self._observer.letters.remove(letter.number)
            return f"dead letter {letter.number}: dropped"
        kernel = self._kernel(name, state)
        note = await self._observer.notes.change(
            kernel, lambda note: note.model_copy(update={"dropped": "a person dropped it"})
        )
        for attempt in (note.compile, note.evaluate):
            if attempt is not None and attempt.sequence is not None:
                with contextlib.suppress(nats.errors.Error):  # where it is not in the queue any more
                    await self._client.jetstream().delete_msg(QUEUE, attempt.sequence)
        for each in self._about(kernel):
            await self._observer.letters.remove(each.number)
        return f"{kernel}: dropped; `esper forge retry {kernel}` takes it up again"

    def _about(self, kernel: str) -> list[Letter]:
        return [letter for letter in self._observer.letters.all if letter.kernel == kernel]

    def _letter(self, name: str) -> Letter | None:
        return next((each for each in self._observer.letters.all if str(each.number) == name), None)

    def _kernel(self, name: str, state: ForgeState) -> str:
        letter = self._letter(name)
        if letter is not None and letter.kernel is not None:
            return letter.kernel
        if letter is not None:
            raise InputError(
                f"dead letter {name} cannot be read, so that nothing can be tried again; drop it"
            )
        known = {*state.wishes, *state.records, *state.notes}
        known |= {letter.kernel for letter in self._observer.letters.all if letter.kernel is not None}
        if name in known:
            return name
        near = nearest(name, sorted(known))
        hint = f"; nearest: {near}" if near else ""
        raise InputError(f"there is no kernel or dead letter {name!r}{hint} (`esper forge status`)")


def _state(record: KernelRecord, state: ForgeState) -> KernelState:
    """The state of a kernel; only the queue tells what is under way from what waits."""
    note = state.notes.get(record.kernel)
    present = state.queue.present if state.queue is not None else frozenset()
    if note is not None:
        if record.state is KernelState.PENDING and note.compile and note.compile.sequence in present:
            return KernelState.COMPILING
        waits = record.state is KernelState.PENDING_BENCHMARK
        if waits and note.evaluate and note.evaluate.sequence in present:
            return KernelState.BENCHMARKING
    return record.state


def _pardoned(note: KernelNote, runs: Sequence[str]) -> KernelNote:
    return note.model_copy(update={"pardoned": tuple(sorted({*note.pardoned, *runs}))})
