"""A forge in memory that can lose messages and lets its planner and workers die at any moment."""

from dataclasses import dataclass, field, replace

from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    Check,
    CompileWork,
    DeadWork,
    EvaluateWork,
    KernelInterface,
    KernelNote,
    KernelRecord,
    KernelSpec,
    KernelState,
    KernelWish,
    Node,
    Pipeline,
    Target,
    ValidationReport,
    Work,
    WorkAttempt,
)
from esper_runtime.planning import (
    Action,
    Compile,
    Evaluate,
    ForgePolicy,
    ForgeState,
    GiveUpWork,
    Quarantine,
    QueueView,
    Reinstate,
    Retry,
    Supersede,
    plan_forge,
)

TARGET = Target(device="cpu", arch="avx512", torch="2.13.0")
CLASS = KernelInterface(kind="features", least_in=1, most_in=16, least_out=1, most_out=16)
GRAPH = Blueprint(
    name="one", interface="features", nodes=(Node(id="a", op="relu", inputs=("input",)),), output="a"
)
MOST_DELIVERIES = 3


def blueprint_id(number: int) -> str:
    return f"bp-{number:012x}"


def entry(number: int, archived: str | None = None) -> BlueprintEntry:
    return BlueprintEntry(
        blueprint=blueprint_id(number), graph=GRAPH, origin="User", entered="2026-01-01", archived=archived
    )


def spec(number: int, pipeline: Pipeline = Pipeline.FAST, **toolchain: str) -> KernelSpec:
    return KernelSpec(
        blueprint=blueprint_id(number),
        interface=CLASS,
        target=TARGET,
        pipeline=pipeline,
        toolchain=toolchain,
    )


def digest(number: int) -> str:
    return f"{number:064x}"


def record(
    of: KernelSpec, state: KernelState, *, trains: bool = True, speedup: float | None = None
) -> KernelRecord:
    made = None if state in (KernelState.PENDING, KernelState.COMPILING) else digest(7)
    report = None
    if speedup is not None:
        assert made is not None
        report = ValidationReport(
            kernel=of.kernel_id,
            digest=made,
            passed=True,
            checks=(Check(name="loads", passed=True),),
            numbers={"speedup": speedup},
            seconds=1,
        )
    return KernelRecord(kernel=of.kernel_id, spec=of, state=state, digest=made, trains=trains, report=report)


@dataclass
class Item:
    work: CompileWork | EvaluateWork
    deliveries: int = 0


@dataclass
class World:
    """What outlives everybody's death: library, notes, queue, dead letters; and a clock."""

    blueprints: dict[str, BlueprintEntry] = field(default_factory=dict)
    wishes: dict[str, KernelWish] = field(default_factory=dict)
    records: dict[str, KernelRecord] = field(default_factory=dict)
    notes: dict[str, KernelNote] = field(default_factory=dict)
    queue: dict[int, Item] = field(default_factory=dict)
    dead: list[DeadWork] = field(default_factory=list)
    now: float = 0.0
    last: int = 0
    known_missing: dict[int, float] = field(default_factory=dict)

    def wish(self, number: int, urgent: bool = False) -> str:
        self.blueprints.setdefault(blueprint_id(number), entry(number))
        wish = KernelWish(spec=spec(number), urgent=urgent)
        self.wishes[wish.spec.kernel_id] = wish
        return wish.spec.kernel_id

    def observe(self) -> ForgeState:
        present = frozenset(self.queue)
        noted = {
            attempt.sequence
            for note in self.notes.values()
            for attempt in (note.compile, note.evaluate)
            if attempt is not None and attempt.sequence is not None
        }
        self.known_missing = {
            sequence: self.known_missing.get(sequence, self.now) for sequence in noted - present
        }
        return ForgeState(
            now=self.now,
            blueprints=dict(self.blueprints),
            wishes=dict(self.wishes),
            records=dict(self.records),
            notes=dict(self.notes),
            queue=QueueView(present, dict(self.known_missing)),
            dead=tuple(self.dead),
        )

    def plan(self, policy: ForgePolicy | None = None) -> tuple[Action, ...]:
        return plan_forge(self.observe(), policy).actions

    def carry_out(self, action: Action, dies: bool = False) -> None:
        """Do one thing; ``dies``: its first half only."""
        match action:
            case Retry(work, _):
                self.carry_out(work, dies)
            case Compile() | Evaluate():
                self._publish(action, dies)
            case GiveUpWork(work, reason):
                self._bury(_item(work), reason)
            case Supersede(kernel, _, _):
                self._rule(kernel, KernelState.SUPERSEDED)
            case Quarantine(kernel, _):
                self._rule(kernel, KernelState.QUARANTINED)
            case Reinstate(kernel, _):
                self._rule(kernel, KernelState.VALIDATED)

    def _publish(self, action: Compile | Evaluate, dies: bool) -> None:
        work: Work = "compile" if isinstance(action, Compile) else "evaluate"
        note = self.notes.get(action.kernel) or KernelNote(kernel=action.kernel)
        self.notes[action.kernel] = note.with_attempt(work, action.attempt)
        if dies:
            return
        self.last += 1
        self.queue[self.last] = Item(_item(action))
        attempt = action.attempt.model_copy(update={"sequence": self.last})
        self.notes[action.kernel] = self.notes[action.kernel].with_attempt(work, attempt)

    def _bury(self, item: CompileWork | EvaluateWork, reason: str) -> None:
        work: Work = "compile" if isinstance(item, CompileWork) else "evaluate"
        if all(other.item != item for other in self.dead):
            letter = DeadWork(work=work, target="cpu", item=item, reason=reason, deliveries=0, time="now")
            self.dead.append(letter)

    def _rule(self, kernel: str, state: KernelState) -> None:
        self.records[kernel] = self.records[kernel].model_copy(update={"state": state})

    # Workers

    def take(self, sequence: int) -> bool:
        """A worker gets an item; False where it had too many before and becomes a dead letter."""
        item = self.queue[sequence]
        if item.deliveries >= MOST_DELIVERIES:
            self._bury(item.work, "handed out too often")
            del self.queue[sequence]
            return False
        self.queue[sequence] = replace(item, deliveries=item.deliveries + 1)
        return True

    def say_result(self, sequence: int, passes: bool = True) -> None:
        work = self.queue[sequence].work
        if isinstance(work, CompileWork):
            kernel = work.spec.kernel_id
            self.records.setdefault(kernel, record(work.spec, KernelState.PENDING_BENCHMARK))
            return
        before = self.records[work.kernel]
        if before.state is KernelState.PENDING_BENCHMARK:
            state = KernelState.VALIDATED if passes else KernelState.REJECTED
            self.records[work.kernel] = before.model_copy(update={"state": state})

    def finish(self, sequence: int, passes: bool = True) -> None:
        self.say_result(sequence, passes)
        del self.queue[sequence]

    def settled(self, kernel: str) -> bool:
        found = self.records.get(kernel)
        over = found is not None and found.state in (KernelState.VALIDATED, KernelState.REJECTED)
        return over or any(letter.item and _kernel_of(letter.item) == kernel for letter in self.dead)


def _item(action: Compile | Evaluate) -> CompileWork | EvaluateWork:
    number = action.attempt.number
    if isinstance(action, Compile):
        return CompileWork(spec=action.spec, graph=action.entry.graph, attempt=number)
    return EvaluateWork(kernel=action.kernel, digest=action.digest, attempt=number)


def _kernel_of(work: CompileWork | EvaluateWork) -> str:
    return work.spec.kernel_id if isinstance(work, CompileWork) else work.kernel


def forgive(note: KernelNote, work: Work) -> KernelNote:
    attempt = note.attempt(work)
    assert isinstance(attempt, WorkAttempt)
    return note.with_attempt(work, attempt.model_copy(update={"forgiven": attempt.number}))
