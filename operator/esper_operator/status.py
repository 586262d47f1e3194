"""The status of a run: conditions from where it stands, one phase from these, what it says itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from esper_operator.kube import Object
from esper_operator.live import Live, seeds_summary
from esper_operator.observe import JobFacts, Read
from esper_operator.trouble import Trouble
from esper_runtime.contracts import GONE
from esper_runtime.contracts.resources import (
    STATUS_BYTES,
    Condition,
    RunCondition,
    RunPhase,
    RunResult,
    RunStatus,
    RunUsage,
)
from esper_runtime.planning import RunPlan, RunSeen, Standing, Truth, Verdict, conditions_after, rfc3339


@dataclass(frozen=True)
class Facts:
    """What a status is made from.

    Attributes:
        run: the resource.
        read: its manifest.
        seen: what the planner saw.
        plan: what it said.
        job: the Job of the last attempt; None where it is gone.
        live: what the run says itself; None where nothing was heard.
        trouble: what keeps it from moving.
        refusal: why the manifest is not accepted, where it is not; reason and message.
        identity: digest of what of the manifest never changes, as the run began.
        served: whether the release's pools make kernels for it; None where nobody would.
    """

    run: Object
    read: Read
    seen: RunSeen
    plan: RunPlan
    job: JobFacts | None = None
    live: Live | None = None
    trouble: Trouble | None = None
    refusal: Trouble | None = None
    identity: str = ""
    served: Verdict | None = None


def status_of(facts: Facts) -> Object:
    """The whole status, as the API has it; the same facts with the status that came of them give it again."""
    before = parsed_status(facts.run)
    generation = int(facts.run["metadata"].get("generation") or 0)
    known = conditions_after(
        before.conditions,
        {kind.value: verdict for kind, verdict in _conditions(facts, before).items()},
        RunCondition,
        generation=generation,
        now=facts.seen.now,
    )
    started = before.started_at
    if started is None and facts.job is not None:
        started = rfc3339(facts.job.seen.created)
    own = [job.attempt for job in facts.seen.jobs if job.owner == facts.seen.uid]
    attempt = max([before.attempt, *own])
    status = before.model_copy(
        update={
            "phase": phase_of(known),
            "observed_generation": generation,
            "conditions": known,
            "attempt": attempt,
            "started_at": started,
            "identity": before.identity or facts.identity or None,
            **_heard(facts.live),
            "usage": _usage(facts, before, attempt),
        }
    )
    if facts.plan.standing in (Standing.COMPLETE, Standing.FAILED) and status.result is None:
        status = status.model_copy(update={"result": RunResult(reason=facts.plan.message[:500])})
    return _within(status)


def parsed_status(run: Object) -> RunStatus:
    """The status that a resource has; an empty one where it has none, or one that is not the operator's."""
    try:
        return RunStatus.model_validate_json(json.dumps(run.get("status") or {}))
    except ValidationError:
        return RunStatus()


def phase_of(conditions: Sequence[Condition]) -> RunPhase:
    """One word for a run."""
    by_type: Mapping[str, Condition] = {condition.type: condition for condition in conditions}

    def has(kind: RunCondition, truth: Truth = "True", reason: str | None = None) -> bool:
        found = by_type.get(kind)
        return found is not None and found.status == truth and reason in (None, found.reason)

    for holds, phase in (
        (has(RunCondition.COMPLETE), RunPhase.SUCCEEDED),
        (has(RunCondition.FAILED), RunPhase.FAILED),
        (has(RunCondition.RUNNING), RunPhase.RUNNING),
        (has(RunCondition.ACCEPTED, "False"), RunPhase.REJECTED),
        (has(RunCondition.SUSPENDED), RunPhase.SUSPENDED),
        (has(RunCondition.SUSPENDED, "False", "Checkpointing"), RunPhase.SUSPENDING),
        (has(RunCondition.QUOTA_RESERVED, "False"), RunPhase.QUEUED),
        (has(RunCondition.ACCEPTED), RunPhase.STARTING),
    ):
        if holds:
            return phase
    return RunPhase.PENDING


def _conditions(facts: Facts, before: RunStatus) -> dict[RunCondition, Verdict]:
    plan, standing = facts.plan, facts.plan.standing
    kinds = {condition.type for condition in before.conditions}
    found: dict[RunCondition, Verdict] = {}
    if facts.seen.ended is None:
        found[RunCondition.ACCEPTED] = _accepted(facts)
        found[RunCondition.RUNNING] = _running(facts)
        queued = _quota(facts)
        if queued is not None or RunCondition.QUOTA_RESERVED in kinds:
            unset = Verdict("Unknown", "NoQueue", "spec.queueName is not set")
            found[RunCondition.QUOTA_RESERVED] = queued or unset
        suspended = _suspended(facts)
        if suspended is not None:
            found[RunCondition.SUSPENDED] = suspended
        elif RunCondition.SUSPENDED in kinds:
            found[RunCondition.SUSPENDED] = Verdict("False", "Resumed", "")
        if standing is Standing.COMPLETE:
            found[RunCondition.COMPLETE] = Verdict("True", plan.reason, plan.message)
        if standing is Standing.FAILED:
            found[RunCondition.FAILED] = Verdict("True", plan.reason, plan.message)
    ended = facts.seen.ended is not None or standing in (Standing.COMPLETE, Standing.FAILED)
    trouble = None if ended else facts.trouble
    if trouble is not None:
        found[RunCondition.DEGRADED] = Verdict("True", trouble.reason, trouble.message)
    elif RunCondition.DEGRADED in kinds:
        found[RunCondition.DEGRADED] = Verdict("False", "AsExpected", "")
    served = facts.served
    if served is not None and not ended and (served.truth != "True" or RunCondition.SERVED in kinds):
        found[RunCondition.SERVED] = served
    live = facts.live
    if live is not None and live.heard:
        growing = sum(count for stage, count in live.seeds.items() if stage not in _SETTLED)
        text = "" if ended else seeds_summary(live.seeds)
        found[RunCondition.GROWING] = (
            Verdict("True", "SeedsAlive", text)
            if growing and not ended
            else Verdict("False", "NoSeeds", text)
        )
        if live.checkpoint is not None:
            found[RunCondition.CHECKPOINTED] = Verdict("True", "Checkpointed", f"step {live.checkpoint.step}")
    return found


_SETTLED = {stage.value for stage in GONE} | {"Fossilized"}


def _accepted(facts: Facts) -> Verdict:
    if facts.refusal is not None:
        return Verdict("False", facts.refusal.reason, facts.refusal.message)
    if facts.read.manifest is None:
        return Verdict("False", "Invalid", facts.read.refusal)
    if facts.plan.standing is Standing.NAME_TAKEN:
        return Verdict("False", facts.plan.reason, facts.plan.message)
    return Verdict("True", "Valid", "")


def _running(facts: Facts) -> Verdict:
    plan = facts.plan
    if plan.standing is Standing.RUNNING:
        return Verdict("True", plan.reason, plan.message)
    if plan.standing is Standing.REFUSED:
        return Verdict("False", plan.reason, "the manifest is not accepted")
    return Verdict("False", plan.reason or plan.standing.value, plan.message)


def _quota(facts: Facts) -> Verdict | None:
    manifest = facts.read.manifest
    if manifest is None or manifest.spec.queue_name is None:
        return None
    if facts.plan.standing is Standing.QUEUED:
        return Verdict("False", facts.plan.reason, facts.plan.message)
    if facts.job is not None and not facts.job.seen.suspended:
        return Verdict("True", "Admitted", "")
    return Verdict("Unknown", "NoJob", "there is no Job to admit now")


def _suspended(facts: Facts) -> Verdict | None:
    plan = facts.plan
    if plan.standing is Standing.SUSPENDED:
        return Verdict("True", plan.reason, plan.message)
    if plan.standing is Standing.SUSPENDING:
        return Verdict("False", plan.reason, plan.message)
    return None


def _heard(live: Live | None) -> dict[str, Any]:
    """What the run said of itself; what was not heard stays as it is."""
    if live is None:
        return {}
    found: dict[str, Any] = {}
    for name in ("progress", "parameters", "checkpoint", "result"):
        said = getattr(live, name)
        if said is not None:
            found[name] = said
    if live.progress is not None:
        found |= {"seeds": dict(live.seeds), "seeds_summary": seeds_summary(live.seeds)}
    if live.adaptations:
        found["adaptations"] = tuple(live.adaptations)
    return found


def _usage(facts: Facts, before: RunStatus, attempt: int) -> RunUsage:
    live, usage = facts.live, before.usage
    update: dict[str, Any] = {"attempts": attempt, "restarts": max(usage.restarts, facts.seen.restarts)}
    if facts.job is not None:
        update["retries"] = facts.job.retries
    if live is not None and live.wall_seconds is not None:
        update |= {"wall_seconds": live.wall_seconds, "device_seconds": live.device_seconds}
    return usage.model_copy(update=update)


def _within(status: RunStatus) -> Object:
    """The status in JSON, without its oldest adaptations where it would be larger than a status may be."""
    while True:
        data: Object = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        if not status.adaptations or len(json.dumps(data, ensure_ascii=False).encode()) <= STATUS_BYTES:
            return data
        status = status.model_copy(update={"adaptations": status.adaptations[1:]})
