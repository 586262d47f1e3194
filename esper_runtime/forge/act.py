"""Carrying out what the planner decides: each action may be done twice, and broken off anywhere."""

from collections.abc import Callable

from nats.aio.client import Client

from esper_runtime.contracts import (
    BlueprintEntry,
    CompileWork,
    DeadWork,
    EvaluateWork,
    KernelNote,
    KernelState,
    KernelWork,
    Ruling,
    Signed,
    Work,
    WorkAttempt,
    utc_now,
)
from esper_runtime.forge.notes import PATIENCE, Notes
from esper_runtime.oona import WorkQueue, publish
from esper_runtime.planning import (
    Action,
    Compile,
    EnterProposal,
    Evaluate,
    Generate,
    GiveUpWork,
    Quarantine,
    Reinstate,
    Retry,
    Supersede,
)
from esper_runtime.urza import Library


class Actor:
    """Does what the planner decided.

    Args:
        client: a connection of the planner's.
        library: takes the planner's rulings.
        sign: signs them, with the planner's key.
        notes: of planners.
    """

    def __init__(
        self, client: Client, library: Library, sign: Callable[[Ruling], Signed], notes: Notes
    ) -> None:
        self._client, self._library, self._sign, self._notes = client, library, sign, notes
        self._queues: dict[tuple[Work, str], WorkQueue] = {}

    async def queue(self, work: Work, target: str) -> WorkQueue:
        """The queue of a work and a target, made where it lacks.

        Raises:
            BusError: it cannot be made.
        """
        key = work, target
        if key not in self._queues:
            queue = WorkQueue(self._client, work, target)
            await queue.ensure()
            self._queues[key] = queue
        return self._queues[key]

    async def carry_out(self, action: Action | EnterProposal | Generate) -> None:
        """Do one thing.

        Raises:
            EsperError: it could not be done, or nobody knows whether it was.
        """
        match action:
            case Retry(work, _):
                await self._publish(work)
            case Compile() | Evaluate():
                await self._publish(action)
            case GiveUpWork(work, reason):
                await self._bury(work, reason)
            case Supersede(kernel, by, reason):
                await self._rule(Ruling(kernel=kernel, state=KernelState.SUPERSEDED, reason=reason, by=by))
            case Quarantine(kernel, reason):
                await self._rule(Ruling(kernel=kernel, state=KernelState.QUARANTINED, reason=reason))
            case Reinstate(kernel, reason):
                await self._rule(Ruling(kernel=kernel, state=KernelState.VALIDATED, reason=reason))
            case Generate(work, target):
                queue = await self.queue("generate", target)
                await queue.publish(work, f"{work.wish}-{work.seed}", patience=PATIENCE)
            case EnterProposal(proposed):
                graph = proposed.proposal.graph
                entry = BlueprintEntry(
                    blueprint=proposed.blueprint,
                    graph=graph,
                    origin=graph.provenance.origin.value,
                    entered=utc_now(),
                    wish=proposed.proposal.wish,
                )
                await self._library.put_entry(entry)

    async def _publish(self, action: Compile | Evaluate) -> None:
        work = _kind(action)
        mine = action.attempt

        def begin(note: KernelNote) -> KernelNote:
            there = note.attempt(work)
            return (
                note if there is not None and there.number >= mine.number else note.with_attempt(work, mine)
            )

        noted = (await self._notes.change(action.kernel, begin)).attempt(work)
        if noted is None or noted.number != mine.number or noted.sequence is not None:
            return  # another planner was here meanwhile
        queue = await self.queue(work, _target(action))
        identity = f"{action.kernel}-{mine.number}"
        sequence = await queue.publish(_item(action), identity, patience=PATIENCE)

        def published(note: KernelNote) -> KernelNote:
            there = note.attempt(work)
            if there is None or there.number != mine.number:
                return note
            return note.with_attempt(work, there.model_copy(update={"sequence": sequence}))

        await self._notes.change(action.kernel, published)

    async def _bury(self, action: Compile | Evaluate, reason: str) -> None:
        work, target = _kind(action), _target(action)
        dead = DeadWork(
            work=work, target=target, item=_item(action), reason=reason, deliveries=0, time=utc_now()
        )
        await publish(
            self._client,
            f"esper.dead.{work}.{target}",
            dead.model_dump_json(by_alias=True).encode(),
            f"lost-{work}-{action.kernel}-{action.attempt.number}",
            patience=PATIENCE,
        )

    async def _rule(self, ruling: Ruling) -> None:
        await self._library.publish(self._sign(ruling))


def forgiven(note: KernelNote) -> KernelNote:
    """A note whose tries so far no longer count, and which no longer says that it was dropped."""
    changes = {
        work: attempt.model_copy(update={"forgiven": attempt.number})
        for work in ("compile", "evaluate")
        if isinstance(attempt := getattr(note, work), WorkAttempt)
    }
    return note.model_copy(update={"dropped": None, **changes})


def _kind(action: Compile | Evaluate) -> KernelWork:
    return "compile" if isinstance(action, Compile) else "evaluate"


def _target(action: Compile | Evaluate) -> str:
    return (action.spec.target if isinstance(action, Compile) else action.target).name


def _item(action: Compile | Evaluate) -> CompileWork | EvaluateWork:
    number = action.attempt.number
    if isinstance(action, Compile):
        return CompileWork(spec=action.spec, graph=action.entry.graph, attempt=number)
    return EvaluateWork(kernel=action.kernel, digest=action.digest, attempt=number)
