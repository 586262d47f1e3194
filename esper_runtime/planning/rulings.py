"""Rulings on kernels that were validated once: superseded by better ones, quarantined, reinstated."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from esper_runtime.contracts import FieldReport, KernelRecord, KernelState, Pipeline

_ORDER = (Pipeline.FAST, Pipeline.STANDARD, Pipeline.AGGRESSIVE)


@dataclass(frozen=True)
class QuarantineRule:
    """When reports from trainings take a kernel out of use.

    It must have failed in ``least_runs`` distinct runs, and the share of runs in which it failed must be
    above ``tolerated`` with confidence: the lower end of Wilson's interval with ``z`` standard errors (1.96:
    95 %, Wilson 1927) is. Two failing runs of five are enough, two of six are not.
    """

    least_runs: int = 2
    tolerated: float = 0.1
    z: float = 1.96

    def convicts(self, failing: int, runs: int) -> bool:
        """Whether ``failing`` of ``runs`` are enough."""
        return failing >= self.least_runs and wilson_lower(failing, runs, self.z) > self.tolerated


@dataclass(frozen=True)
class Supersede:
    """``kernel`` is no longer chosen: ``by`` does the same, with newer tools."""

    kernel: str
    by: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """``kernel`` is not to run any more."""

    kernel: str
    reason: str


@dataclass(frozen=True)
class Reinstate:
    """What spoke against ``kernel`` is gone."""

    kernel: str
    reason: str


def wilson_lower(successes: int, trials: int, z: float) -> float:
    """Lower end of Wilson's score interval for a share; 0 where nothing was tried."""
    if trials == 0:
        return 0.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt((share * (1 - share) + z * z / (4 * trials)) / trials)
    return max(0.0, (centre - spread) / (1 + z * z / trials))


def plan_rulings(
    records: Iterable[KernelRecord],
    pardons: Mapping[str, frozenset[str]],
    reports: Sequence[FieldReport],
    revoked: frozenset[str],
    rule: QuarantineRule,
) -> tuple[Supersede | Quarantine | Reinstate, ...]:
    """What the planner has to say about kernels that were validated.

    A quarantine for failures ends only when a person pardons them (fewer than ``rule.least_runs`` are left),
    one for a revoked digest when it is no longer revoked. Better reports alone do not end it: a kernel that
    does not run gathers none.

    Args:
        records: of all kernels.
        pardons: for a kernel, the runs whose failures no longer count.
        reports: of trainings; those on another digest than the record's do not count.
        revoked: digests.
        rule: when reports convict.
    """
    failing: dict[tuple[str, str], set[str]] = {}
    runs: dict[tuple[str, str], set[str]] = {}
    for report in reports:
        key = report.kernel, report.digest
        runs.setdefault(key, set()).add(report.run)
        if report.failure is not None and report.run not in pardons.get(report.kernel, frozenset()):
            failing.setdefault(key, set()).add(report.run)
    actions: list[Supersede | Quarantine | Reinstate] = []
    sound: list[KernelRecord] = []
    for record in sorted(records, key=lambda record: record.kernel):
        if record.state not in (KernelState.VALIDATED, KernelState.SUPERSEDED, KernelState.QUARANTINED):
            continue
        key = record.kernel, record.digest or ""
        bad, all_runs = len(failing.get(key, ())), len(runs.get(key, ()))
        out = record.state is KernelState.QUARANTINED
        if record.digest in revoked:
            if not out:
                actions.append(Quarantine(record.kernel, "its digest is revoked"))
        elif out:
            if bad < rule.least_runs:
                actions.append(Reinstate(record.kernel, "what spoke against it was pardoned or lifted"))
        elif rule.convicts(bad, all_runs):
            actions.append(Quarantine(record.kernel, f"it failed in {bad} of {all_runs} runs"))
        else:
            sound.append(record)
    return (*actions, *_supersessions(sound))


def _supersessions(sound: Sequence[KernelRecord]) -> Iterable[Supersede | Reinstate]:
    groups: dict[str, list[KernelRecord]] = {}
    for record in sound:
        spec = record.spec
        same = spec.model_copy(update={"pipeline": Pipeline.FAST, "toolchain": {}})
        groups.setdefault(same.kernel_id, []).append(record)
    for group in groups.values():
        for record in group:
            better = [other for other in group if supersedes(other, record)]
            superseded = record.state is KernelState.SUPERSEDED
            if better and not superseded:
                by = next(other for other in better if not any(supersedes(third, other) for third in group))
                yield Supersede(record.kernel, by.kernel, f"{by.kernel} does the same with newer tools")
            elif superseded and not better:
                yield Reinstate(record.kernel, "nothing newer is in use any more")


def supersedes(new: KernelRecord, old: KernelRecord) -> bool:
    """Whether ``new`` takes the place of ``old``, both being of one blueprint, class of slots and target.

    No tool of it is older and its pipeline does no less, one of both is more, it can train where the old one
    can, and (compiled ones) it was measured to be as fast. A ``fast`` kernel is superseded by ``fast`` ones
    alone: compiled ones run beside it. This is a strict order, so that there is always one that stays.
    """
    if (new.spec.pipeline is Pipeline.FAST) is not (old.spec.pipeline is Pipeline.FAST):
        return False
    toolchain = _compare(new.spec.toolchain, old.spec.toolchain)
    pipeline = _ORDER.index(new.spec.pipeline) - _ORDER.index(old.spec.pipeline)
    if toolchain is None or toolchain < 0 or pipeline < 0 or (toolchain == 0 and pipeline == 0):
        return False
    if (old.trains or False) and not new.trains:
        return False
    return old.spec.pipeline is Pipeline.FAST or _as_fast(new, old)


def _as_fast(new: KernelRecord, old: KernelRecord) -> bool:
    before = old.report.numbers.get("speedup") if old.report else None
    after = new.report.numbers.get("speedup") if new.report else None
    return before is None or (after is not None and after >= before)


def _compare(new: Mapping[str, str], old: Mapping[str, str]) -> int | None:
    """1 where no version is older and one is newer, 0 where all are equal, -1 or None where neither holds."""
    if new.keys() != old.keys():
        return None
    signs = {_sign(_version(new[name]), _version(old[name])) for name in new if new[name] != old[name]}
    if 0 in signs or signs == {1, -1}:
        return None
    return signs.pop() if signs else 0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _sign(new: tuple[int, ...], old: tuple[int, ...]) -> int:
    for a, b in zip_longest(new, old, fillvalue=0):
        if a != b:
            return 1 if a > b else -1
    return 0
