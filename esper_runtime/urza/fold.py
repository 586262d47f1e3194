"""A kernel's record: a fold over what each role has said of it, in whatever order that arrived."""

from collections.abc import Iterable
from typing import Any

from esper_runtime.contracts import (
    Compiled,
    CompileFailed,
    KernelRecord,
    KernelState,
    KernelWish,
    Ruling,
    Verdict,
)
from esper_runtime.urza.words import Word


def fold(words: Iterable[Word], wish: KernelWish | None = None) -> KernelRecord | None:
    """The record of the one kernel that all ``words`` are about.

    Tezzeret's first artifact counts, and before any failure to make one; Urabrask's first verdict about the
    digest of that artifact counts; the planner's last ruling, by its time, counts once the kernel has passed.
    Words of one role are given in the order in which they were said; how those of different roles lie between
    each other makes no difference.

    Args:
        words: whose signatures were checked.
        wish: of a training; makes a record where nothing was said yet.

    Returns:
        None where nothing is known. The states Compiling and Benchmarking are those of work that is under
        way: the planner, which knows the queues, tells them from Pending and PendingBenchmark.
    """
    made: Word | None = None
    failed: CompileFailed | None = None
    verdicts: dict[str, tuple[Verdict, Word]] = {}
    rulings: list[Ruling] = []
    for word in words:
        match word.statement:
            case Compiled():
                made = made or word
            case CompileFailed() as said:
                failed = failed or said
            case Verdict() as said:
                verdicts.setdefault(said.digest, (said, word))
            case Ruling() as said:
                rulings.append(said)
    if made is None:
        return _without_artifact(failed, wish)
    compiled = made.statement
    assert isinstance(compiled, Compiled)
    record = KernelRecord(
        kernel=compiled.kernel,
        spec=compiled.spec,
        state=KernelState.PENDING_BENCHMARK,
        digest=compiled.digest,
        bytes=compiled.bytes,
        trains=compiled.trains,
        compiled=made.signed,
    )
    if compiled.digest not in verdicts:
        return record
    verdict, word = verdicts[compiled.digest]
    judged: dict[str, Any] = {"report": verdict.report, "verdict": word.signed}
    if not verdict.report.passed:
        why = "; ".join(f"{check.name}: {check.reason}" for check in verdict.report.failures)
        return record.model_copy(update=judged | {"state": KernelState.REJECTED, "reason": why})
    judged["state"] = KernelState.VALIDATED
    if rulings:
        last = max(rulings, key=lambda ruling: (ruling.time, ruling.state, ruling.reason))
        judged |= {"state": last.state, "reason": last.reason, "superseded_by": last.by}
    return record.model_copy(update=judged)


def _without_artifact(failed: CompileFailed | None, wish: KernelWish | None) -> KernelRecord | None:
    if failed is not None:
        return KernelRecord(
            kernel=failed.kernel, spec=failed.spec, state=KernelState.REJECTED, reason=failed.reason
        )
    if wish is not None:
        return KernelRecord(kernel=wish.spec.kernel_id, spec=wish.spec, state=KernelState.PENDING)
    return None
