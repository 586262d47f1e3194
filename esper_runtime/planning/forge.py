"""The forge's next actions: what to compile, test, try again, give up, supersede, quarantine.

Everything is decided anew from what is observed. A message that was lost, a worker or a planner that died, an
action that was carried out twice: none of them is remembered here, and none of them changes the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from esper_runtime.contracts import (
    BlueprintEntry,
    CompileWork,
    DeadWork,
    EvaluateWork,
    FieldReport,
    KernelNote,
    KernelRecord,
    KernelSpec,
    KernelState,
    KernelWish,
    KernelWork,
    Target,
    WorkAttempt,
)
from esper_runtime.planning.rulings import Quarantine, QuarantineRule, Reinstate, Supersede, plan_rulings

_SETTLED = frozenset(
    {KernelState.VALIDATED, KernelState.REJECTED, KernelState.SUPERSEDED, KernelState.QUARANTINED}
)


@dataclass(frozen=True)
class ForgePolicy:
    """How patient the planner is.

    ``window`` bounds the items of one target that are in the queue at a time, so that what is urgent does not
    wait behind all the rest. The n-th new try of a work that was lost begins ``first_seconds`` * 2**(n-1)
    after the loss was seen, at most ``longest_seconds``; after ``most_attempts`` tries it is given up.
    """

    window: int = 16
    most_attempts: int = 5
    first_seconds: float = 2.0
    longest_seconds: float = 60.0
    quarantine: QuarantineRule = field(default_factory=QuarantineRule)

    def wait(self, failed: int) -> float:
        """Seconds between the loss of the ``failed``-th try and the next one."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(30, max(0, failed - 1)))


@dataclass(frozen=True)
class QueueView:
    """What the stream FORGE holds, by sequence; it must have been read before the records were.

    Attributes:
        present: not acknowledged yet, delivered or not.
        missing: published tries that are no longer there, with the time (Unix) since when that is known.
    """

    present: frozenset[int] = frozenset()
    missing: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ForgeState:
    """What is observed of the forge. ``queue`` is None where it could not be read: then no work is planned.

    Attributes:
        now: Unix time.
        blueprints: by id.
        wishes: by kernel id, in the order in which they were made.
        records: by kernel id.
        notes: of planners, by kernel id.
        queue: what waits and what is worked on.
        dead: works that were given up.
        reports: of trainings.
        revoked: digests that a person revoked.
    """

    now: float
    blueprints: Mapping[str, BlueprintEntry] = field(default_factory=dict)
    wishes: Mapping[str, KernelWish] = field(default_factory=dict)
    records: Mapping[str, KernelRecord] = field(default_factory=dict)
    notes: Mapping[str, KernelNote] = field(default_factory=dict)
    queue: QueueView | None = None
    dead: Sequence[DeadWork] = ()
    reports: Sequence[FieldReport] = ()
    revoked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Compile:
    """Publish work for Tezzeret; ``attempt`` is noted first."""

    kernel: str
    spec: KernelSpec
    entry: BlueprintEntry
    attempt: WorkAttempt
    urgent: bool


@dataclass(frozen=True)
class Evaluate:
    """Publish work for Urabrask; ``attempt`` is noted first."""

    kernel: str
    target: Target
    digest: str
    attempt: WorkAttempt
    urgent: bool


@dataclass(frozen=True)
class Retry:
    """Publish a work once more; ``reason`` says what became of the try before."""

    work: Compile | Evaluate
    reason: str


@dataclass(frozen=True)
class GiveUpWork:
    """Keep a work that was lost too often as a dead letter."""

    work: Compile | Evaluate
    reason: str


Action = Compile | Evaluate | Retry | GiveUpWork | Supersede | Quarantine | Reinstate


@dataclass(frozen=True)
class ForgePlan:
    """What to do now, in this order, and in how many seconds to look again at the latest (None: on news)."""

    actions: tuple[Action, ...] = ()
    wakes_in: float | None = None


def plan_forge(state: ForgeState, policy: ForgePolicy | None = None) -> ForgePlan:
    """Decide what the forge does next.

    Args:
        state: what is observed.
        policy: how patient to be.
    """
    policy = policy or ForgePolicy()
    pardons = {kernel: frozenset(note.pardoned) for kernel, note in state.notes.items()}
    records = state.records.values()
    rulings = plan_rulings(records, pardons, state.reports, state.revoked, policy.quarantine)
    if state.queue is None:
        return ForgePlan(rulings)
    return _Works(state, state.queue, policy).plan(rulings)


class _Works:
    """One decision about all works; made for each look and thrown away."""

    def __init__(self, state: ForgeState, queue: QueueView, policy: ForgePolicy) -> None:
        self._state, self._queue, self._policy = state, queue, policy
        self._given_up: dict[tuple[str, KernelWork], int] = {}
        for letter in state.dead:
            match letter.item:
                case CompileWork(spec=lost, attempt=attempt):
                    self._give_up((lost.kernel_id, "compile"), attempt)
                case EvaluateWork(kernel=kernel, attempt=attempt):
                    self._give_up((kernel, "evaluate"), attempt)
        self._wakes: list[float] = []

    def _give_up(self, key: tuple[str, KernelWork], attempt: int) -> None:
        self._given_up[key] = max(self._given_up.get(key, 0), attempt)

    def plan(self, rulings: tuple[Action, ...]) -> ForgePlan:
        wanted: list[Compile | Evaluate | Retry] = []
        ended: list[GiveUpWork] = []
        for kernel, spec in self._kernels():
            step = self._next(kernel, spec)
            if isinstance(step, GiveUpWork):
                ended.append(step)
            elif step is not None:
                wanted.append(step)
        wanted.sort(key=lambda step: _rank(_work_of(step)))  # stable: else in the order of the wishes
        actions = (*rulings, *ended, *self._within_window(wanted))
        return ForgePlan(actions, max(0.0, min(self._wakes)) if self._wakes else None)

    def _kernels(self) -> Iterator[tuple[str, KernelSpec]]:
        """Every kernel that is wished for, then those that somebody else had compiled; each once."""
        seen = {kernel: wish.spec for kernel, wish in self._state.wishes.items()}
        for kernel, record in self._state.records.items():
            if record.state not in _SETTLED and record.digest is not None:
                seen.setdefault(kernel, record.spec)
        yield from seen.items()

    def _next(self, kernel: str, spec: KernelSpec) -> Compile | Evaluate | Retry | GiveUpWork | None:
        record = self._state.records.get(kernel)
        note = self._state.notes.get(kernel) or KernelNote(kernel=kernel)
        entry = self._state.blueprints.get(spec.blueprint)
        if record is not None and record.state in _SETTLED:
            return None
        if note.dropped is not None or (entry is not None and entry.archived is not None):
            return None
        wish = self._state.wishes.get(kernel)
        urgent = wish is not None and wish.urgent
        if record is not None and record.digest is not None:
            digest = record.digest
            before = note.evaluate
            if before is None or before.digest != digest:
                number = 1 if before is None else before.number + 1
                first = WorkAttempt(number=number, digest=digest, forgiven=number - 1)
                return Evaluate(kernel, spec.target, digest, first, urgent)
            return self._again(Evaluate(kernel, spec.target, digest, before, urgent))
        if entry is None:
            return None
        if note.compile is None:
            return Compile(kernel, spec, entry, WorkAttempt(number=1), urgent)
        return self._again(Compile(kernel, spec, entry, note.compile, urgent))

    def _again(self, work: Compile | Evaluate) -> Compile | Evaluate | Retry | GiveUpWork | None:
        """What becomes of a work that was noted before and has no result yet."""
        attempt, kind = work.attempt, _kind(work)
        given_up = self._given_up.get((work.kernel, kind), 0) == attempt.number > attempt.forgiven
        if attempt.sequence is None:
            return None if given_up else work
        if attempt.sequence in self._queue.present or given_up:
            return None
        following = WorkAttempt(number=attempt.number + 1, digest=attempt.digest, forgiven=attempt.forgiven)
        again = _with_attempt(work, following)
        failed = attempt.number - attempt.forgiven
        if failed <= 0:
            return Retry(again, "a person wants it tried again")
        if failed >= self._policy.most_attempts:
            reason = f"{failed} tries left the queue without a result"
            return GiveUpWork(work, reason)
        since = self._queue.missing.get(attempt.sequence, self._state.now)
        left = since + self._policy.wait(failed) - self._state.now
        if left > 0:
            self._wakes.append(left)
            return None
        return Retry(again, f"try {attempt.number} left the queue without a result")

    def _within_window(self, wanted: Sequence[Compile | Evaluate | Retry]) -> Iterator[Action]:
        """What may be published now; urgent things always, the rest while its target has room."""
        outstanding: dict[str, int] = {}
        for kernel, note in self._state.notes.items():
            target = self._target_of(kernel)
            for attempt in (note.compile, note.evaluate):
                if target is not None and attempt is not None and attempt.sequence in self._queue.present:
                    outstanding[target] = outstanding.get(target, 0) + 1
        for step in wanted:
            work = _work_of(step)
            target = _target(work)
            if work.urgent or outstanding.get(target, 0) < self._policy.window:
                outstanding[target] = outstanding.get(target, 0) + 1
                yield step

    def _target_of(self, kernel: str) -> str | None:
        record = self._state.records.get(kernel)
        if record is not None:
            return record.spec.target.name
        wish = self._state.wishes.get(kernel)
        return wish.spec.target.name if wish is not None else None


def _work_of(step: Compile | Evaluate | Retry) -> Compile | Evaluate:
    return step.work if isinstance(step, Retry) else step


def _kind(work: Compile | Evaluate) -> KernelWork:
    return "compile" if isinstance(work, Compile) else "evaluate"


def _target(work: Compile | Evaluate) -> str:
    return (work.spec.target if isinstance(work, Compile) else work.target).name


def _with_attempt(work: Compile | Evaluate, attempt: WorkAttempt) -> Compile | Evaluate:
    if isinstance(work, Compile):
        return Compile(work.kernel, work.spec, work.entry, attempt, work.urgent)
    return Evaluate(work.kernel, work.target, work.digest, attempt, work.urgent)


def _rank(work: Compile | Evaluate) -> tuple[bool, bool]:
    """Urgent ones first, and tests before compiles: what is nearly done is of use sooner."""
    return not work.urgent, isinstance(work, Compile)
