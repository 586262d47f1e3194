"""A run on a cluster: what to do next, from what is observed of its resource, its Jobs and its pods.

One Job is one *attempt*. It restarts its own pods; a new attempt follows a suspension, a changed template or
another number of workers. Nothing here remembers: the same observation gives the same plan.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from esper_runtime.contracts import MorphogeneticRun, canonical_json

EXIT_BUDGET = 77
"""Exit code of a trainer that has used up its budget: a checkpoint is left, and starting again is no use."""


def shape_of(run: MorphogeneticRun) -> str:
    """A digest of what of the manifest the pods are made of: another one needs another attempt.

    What the release adds (its image, its limits) is not in it, so that an upgrade restarts no run.
    """
    spec = run.spec
    made_of = {
        "template": spec.template.model_dump(mode="json", by_alias=True),
        "workers": spec.training.workers.model_dump(mode="json", by_alias=True),
        "queue": spec.queue_name,
        "grace": spec.checkpoint.grace_seconds,
        "retries": spec.retry.limit,
    }
    return hashlib.sha256(canonical_json(made_of)).hexdigest()[:16]


class JobEnd(StrEnum):
    """How a Job has ended."""

    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class JobSeen:
    """A Job with one of this run's names.

    Attributes:
        name: of the Job.
        uid: of the Job.
        owner: uid of its controller owner; None where it has none.
        attempt: its number.
        shape: `shape_of` of the spec that it was made for.
        created: seconds since the epoch.
        deleting: whether it is being deleted.
        suspended: whether it waits for admission.
        active: pods that are pending or running.
        ready: pods that are ready.
        ending: whether all of it is decided, and its end is not said yet.
        ended: how it ended; None while it goes on.
        exit_code: of the container that ended it, where that is known.
        reason: the Job controller's word for the failure.
    """

    name: str
    uid: str
    owner: str | None
    attempt: int
    shape: str
    created: float
    deleting: bool = False
    suspended: bool = False
    active: int = 0
    ready: int = 0
    ending: bool = False
    ended: JobEnd | None = None
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunSeen:
    """Everything observed of a run at one moment.

    Attributes:
        uid: of the resource.
        name: of the resource.
        spec: the manifest as the contracts read it; None where they refuse it.
        shape: `shape_of` of the spec as it is now.
        deleting: whether it is being deleted.
        jobs: Jobs with one of its names, whoever owns them.
        pods: pods of its Jobs that are not gone, those that are ending among them.
        service: whether the headless Service is there and its own.
        claim: whether the claim for journal, checkpoints and model is there, or none is needed.
        attempt: the last attempt that the status records.
        restarts: starts of the training that its journal records beyond the first one.
        ended: how the status says that the run ended; None while it goes on.
        ended_at: when that was, seconds since the epoch.
        started_at: when the first attempt was made, seconds since the epoch; None before.
        now: seconds since the epoch.
    """

    uid: str
    name: str
    spec: MorphogeneticRun | None
    shape: str
    now: float
    deleting: bool = False
    jobs: Sequence[JobSeen] = ()
    pods: int = 0
    service: bool = False
    claim: bool = False
    attempt: int = 0
    restarts: int = 0
    ended: JobEnd | None = None
    ended_at: float | None = None
    started_at: float | None = None


@dataclass(frozen=True)
class CreateService:
    """Make the headless Service that ranks find each other by."""


@dataclass(frozen=True)
class CreateClaim:
    """Make the claim that takes checkpoints and model where the manifest names no place."""


@dataclass(frozen=True)
class CreateAttempt:
    """Make credentials and Job of an attempt."""

    attempt: int


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job in the foreground, so that it is there until its pods are gone.

    ``uid`` is a precondition: a Job that was made again under the name stays.
    """

    name: str
    uid: str
    why: str


@dataclass(frozen=True)
class DeleteRun:
    """Delete the resource: its time after the end is over."""


RunAction = CreateService | CreateClaim | CreateAttempt | DeleteJob | DeleteRun


class Standing(StrEnum):
    """Where a run stands, from which conditions and phase follow."""

    REFUSED = "Refused"
    NAME_TAKEN = "NameTaken"
    STARTING = "Starting"
    QUEUED = "Queued"
    PENDING = "Pending"
    RUNNING = "Running"
    REPLACING = "Replacing"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class RunPlan:
    """What to do now, where the run stands, and when to look again though nothing happens.

    Attributes:
        actions: in order; after the last one it is observed again.
        standing: where the run stands before they are done.
        reason: one word for a condition.
        message: what a person should know, and do.
        attempt: the number that the status is to record.
        look_again: seconds until a time limit passes; None where there is none.
    """

    actions: tuple[RunAction, ...]
    standing: Standing
    reason: str
    message: str
    attempt: int
    look_again: float | None = None


def plan_run(seen: RunSeen) -> RunPlan:
    """What follows from what is seen.

    At most one Job of a run is not being deleted; a new attempt is made only when no Job and no pod of an
    earlier one is left, so that two trainers never write to one checkpoint.
    """
    own = [job for job in seen.jobs if job.owner == seen.uid]
    attempt = max((job.attempt for job in own), default=0)
    attempt = max(attempt, seen.attempt)
    if seen.deleting:
        return RunPlan((), Standing.SUSPENDING, "Deleting", "the run is being deleted", attempt)
    if seen.ended is not None:
        return _after_the_end(seen, own, attempt)
    if seen.spec is None:
        return RunPlan(_removals(own, "the manifest is refused"), Standing.REFUSED, "Invalid", "", attempt)
    current = max((job for job in own if not job.deleting), key=lambda job: job.attempt, default=None)
    stale = [job for job in own if not job.deleting and job is not current]
    if stale:
        why = "a later attempt is there"
        return RunPlan(_removals(stale, why), Standing.REPLACING, "Replacing", why, attempt)
    if current is None:
        return _without_a_job(seen, own, attempt)
    return _with_a_job(seen, current, attempt)


def _removals(jobs: Sequence[JobSeen], why: str) -> tuple[DeleteJob, ...]:
    return tuple(DeleteJob(job.name, job.uid, why) for job in jobs if not job.deleting)


def _after_the_end(seen: RunSeen, own: Sequence[JobSeen], attempt: int) -> RunPlan:
    """The end is recorded, so the Job may go; later the run itself, where its manifest says so."""
    assert seen.ended is not None
    standing = Standing.COMPLETE if seen.ended is JobEnd.COMPLETE else Standing.FAILED
    actions: tuple[RunAction, ...] = _removals(own, "its end is recorded")
    ttl = None if seen.spec is None else seen.spec.spec.ttl_seconds_after_finished
    left = None
    if ttl is not None and seen.ended_at is not None:
        left = seen.ended_at + ttl - seen.now
        if left <= 0:
            return RunPlan((*actions, DeleteRun()), standing, "", "", attempt)
    return RunPlan(actions, standing, "", "", attempt, left)


def _without_a_job(seen: RunSeen, own: Sequence[JobSeen], attempt: int) -> RunPlan:
    assert seen.spec is not None
    spec = seen.spec.spec
    going = bool(own) or seen.pods > 0
    if spec.suspend:
        if going:
            text = "pods are writing a checkpoint and ending"
            return RunPlan((), Standing.SUSPENDING, "Checkpointing", text, attempt)
        text = "no pod is left; set spec.suspend to false to go on from the last checkpoint"
        return RunPlan((), Standing.SUSPENDED, "Suspended", text, attempt)
    over = _over(seen)
    if over is not None:
        return RunPlan((), Standing.FAILED, *over, attempt)
    if going:
        return RunPlan((), Standing.REPLACING, "Replacing", "pods of the attempt before are ending", attempt)
    following = attempt + 1
    taken = next((job for job in seen.jobs if job.attempt == following), None)
    if taken is not None:
        text = f"the Job {taken.name} belongs to somebody else; delete it, or give the run another name"
        return RunPlan((), Standing.NAME_TAKEN, "NameTaken", text, attempt)
    actions: list[RunAction] = []
    if not seen.service:
        actions.append(CreateService())
    if not seen.claim:
        actions.append(CreateClaim())
    actions.append(CreateAttempt(following))
    text = "the first attempt is being made" if attempt == 0 else f"attempt {following} is being made"
    return RunPlan(tuple(actions), Standing.STARTING, "Starting", text, following, _until_over(seen))


def _with_a_job(seen: RunSeen, job: JobSeen, attempt: int) -> RunPlan:
    assert seen.spec is not None
    if job.ended is JobEnd.COMPLETE:
        return RunPlan((), Standing.COMPLETE, "Complete", "all ranks have ended well", attempt)
    if job.ended is JobEnd.FAILED:
        return RunPlan((), Standing.FAILED, *_failure(seen, job), attempt)
    if seen.spec.spec.suspend:
        removal = _removals([job], "the run is suspended")
        text = "pods are told to write a checkpoint and end"
        return RunPlan(removal, Standing.SUSPENDING, "Checkpointing", text, attempt)
    over = _over(seen)
    if over is not None:
        return RunPlan(_removals([job], over[1]), Standing.FAILED, *over, attempt)
    if job.shape != seen.shape:
        why = "template, workers or queue were changed: the next attempt goes on from the checkpoint"
        return RunPlan(_removals([job], why), Standing.REPLACING, "SpecChanged", why, attempt)
    actions: list[RunAction] = []
    if not seen.service:
        actions.append(CreateService())
    if not seen.claim:
        actions.append(CreateClaim())
    again = _until_over(seen)
    if job.suspended:
        text = f"Kueue has not admitted the Job {job.name} yet; `kubectl describe workloads` says why"
        return RunPlan(tuple(actions), Standing.QUEUED, "WaitingForQuota", text, attempt, again)
    if job.ready == 0 and job.ending:
        text = "the pods have ended; the Job is about to say how"
        return RunPlan(tuple(actions), Standing.RUNNING, "PodsEnded", text, attempt, again)
    if job.ready == 0:
        pending = seen.spec.spec.deadlines.pending_seconds
        waits = seen.now - job.created
        if pending is not None and waits >= pending and seen.restarts == 0:
            text = f"no pod was ready within deadlines.pendingSeconds ({pending} s)"
            removal = _removals([job], text)
            return RunPlan(removal, Standing.FAILED, "PendingDeadlineExceeded", text, attempt)
        if pending is not None and seen.restarts == 0:
            again = min(again, pending - waits) if again is not None else pending - waits
        text = "pods are starting"
        return RunPlan(tuple(actions), Standing.PENDING, "PodsStarting", text, attempt, again)
    text = f"{job.ready} of {seen.spec.spec.training.workers.count} pods are ready"
    return RunPlan(tuple(actions), Standing.RUNNING, "PodsReady", text, attempt, again)


def _over(seen: RunSeen) -> tuple[str, str] | None:
    """Reason and text where a limit of the run as a whole has passed."""
    assert seen.spec is not None
    spec = seen.spec.spec
    active = spec.deadlines.active_seconds
    if active is not None and seen.started_at is not None and seen.now - seen.started_at >= active:
        return "DeadlineExceeded", f"deadlines.activeSeconds ({active} s) have passed since the first start"
    if seen.restarts > spec.retry.restarts:
        return (
            "TooManyRestarts",
            f"it was started again {seen.restarts} times, retry.restarts allows {spec.retry.restarts}; the "
            "trainer's log says why it ended, and the checkpoints are kept",
        )
    return None


def _until_over(seen: RunSeen) -> float | None:
    assert seen.spec is not None
    active = seen.spec.spec.deadlines.active_seconds
    if active is None:
        return None
    return active if seen.started_at is None else seen.started_at + active - seen.now


def _failure(seen: RunSeen, job: JobSeen) -> tuple[str, str]:
    assert seen.spec is not None
    match job.exit_code:
        case 2:
            return "WrongInput", "the manifest cannot work; the trainer's log says what would"
        case code if code == EXIT_BUDGET:
            return "BudgetUsed", "spec.budget is used up; a checkpoint is left"
        case 137:
            return (
                "OutOfMemory",
                "the trainer was killed, most likely for memory; raise template.resources.limits.memory, or "
                "lower training.batchSize",
            )
        case _:
            limit = seen.spec.spec.retry.limit
            ended = "" if job.exit_code is None else f", the last time with exit code {job.exit_code}"
            return (
                job.reason or "Failed",
                f"the training failed more than {limit} times{ended}; the trainer's log says why",
            )
