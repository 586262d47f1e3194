"""From the API's objects to what the planner and the status look at, and nothing more than that."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from esper_operator.children import CONTAINER, needs_claim
from esper_operator.kube import Object
from esper_operator.names import ATTEMPT_LABEL, IDENTITY, SHAPE, UID_LABEL, controller_of
from esper_operator.shortcomings import shortcomings
from esper_runtime.contracts import ManifestError, MorphogeneticRun, canonical_json, parse_run
from esper_runtime.planning import JobEnd, JobSeen, RunSeen, shape_of

_ENDED_PHASES = ("Succeeded", "Failed")
_ENDING = frozenset({"SuccessCriteriaMet", "FailureTarget"})
"""Conditions by which a Job says that it is about to end."""


@dataclass(frozen=True)
class PodSeen:
    """A training pod.

    Attributes:
        name: of the pod.
        uid: of the pod.
        job: uid of its Job; None where it has none.
        run_uid: of the run that its label names.
        attempt: its number.
        created: seconds since the epoch.
        living: whether its processes may still run.
        exit_code: of the container, once it has ended.
        out_of_memory: whether it ended for lack of memory.
        unschedulable: the scheduler's words, where no node takes it.
        waiting: the kubelet's word for why the container does not start.
        waiting_for: and its explanation.
    """

    name: str
    uid: str
    job: str | None
    run_uid: str
    attempt: int
    created: float
    living: bool
    exit_code: int | None = None
    out_of_memory: bool = False
    unschedulable: str = ""
    waiting: str = ""
    waiting_for: str = ""


@dataclass(frozen=True)
class JobFacts:
    """A Job: what the planner sees of it, and what only the status shows.

    Attributes:
        seen: for the planner.
        identity: digest of what of the manifest never changes, when the Job was made.
        retries: pods that failed and counted.
    """

    seen: JobSeen
    identity: str
    retries: int


@dataclass(frozen=True)
class Read:
    """A run's manifest as the contracts read it, or why they do not.

    Attributes:
        manifest: None where it is refused.
        shape: digest of what its pods are made of.
        identity: digest of what of it never changes.
        refusal: what is wrong, where, and what is allowed.
    """

    manifest: MorphogeneticRun | None
    shape: str = ""
    identity: str = ""
    refusal: str = ""


def seconds(text: str | None) -> float:
    """A time of the API in seconds since the epoch; 0 where there is none."""
    if not text:
        return 0.0
    return datetime.fromisoformat(text).timestamp()


def job_facts(job: Object) -> JobFacts:
    """What is seen of a Job."""
    head, status = job["metadata"], job.get("status") or {}
    notes, labels = head.get("annotations") or {}, head.get("labels") or {}
    conditions = [item for item in status.get("conditions") or () if item.get("status") == "True"]
    ends = {item["type"]: item for item in conditions if item["type"] in set(JobEnd)}
    ended = next((JobEnd(kind) for kind in ends), None)
    number = str(labels.get(ATTEMPT_LABEL) or head["name"].rpartition("-")[2])
    seen = JobSeen(
        name=head["name"],
        uid=head["uid"],
        owner=controller_of(job),
        attempt=int(number) if number.isdigit() else 0,
        shape=str(notes.get(SHAPE, "")),
        created=seconds(head.get("creationTimestamp")),
        deleting=head.get("deletionTimestamp") is not None,
        suspended=bool((job.get("spec") or {}).get("suspend")),
        active=int(status.get("active") or 0),
        ready=int(status.get("ready") or 0),
        ending=_is_ending(job),
        ended=ended,
        reason=str(ends[ended].get("reason", "")) if ended is not None else "",
    )
    return JobFacts(seen, str(notes.get(IDENTITY, "")), int(status.get("failed") or 0))


def _is_ending(job: Object) -> bool:
    """Whether all pods of a Job have done their work, or it has given up: its end is a second away."""
    spec, status = job.get("spec") or {}, job.get("status") or {}
    conditions = status.get("conditions") or ()
    if any(item.get("type") in _ENDING and item.get("status") == "True" for item in conditions):
        return True
    uncounted = (status.get("uncountedTerminatedPods") or {}).get("succeeded") or ()
    done = int(status.get("succeeded") or 0) + len(uncounted)
    return done >= int(spec.get("completions") or 1)


def pod_seen(pod: Object, container: str = CONTAINER) -> PodSeen:
    """What is seen of a pod, and of its container of that name."""
    head, status = pod["metadata"], pod.get("status") or {}
    labels = head.get("labels") or {}
    number = str(labels.get(ATTEMPT_LABEL, ""))
    containers = [item for item in status.get("containerStatuses") or () if item.get("name") == container]
    state = (containers[0].get("state") or {}) if containers else {}
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    scheduled = [item for item in status.get("conditions") or () if item.get("type") == "PodScheduled"]
    unschedulable = [item for item in scheduled if item.get("reason") == "Unschedulable"]
    return PodSeen(
        name=head["name"],
        uid=head["uid"],
        job=controller_of(pod),
        run_uid=str(labels.get(UID_LABEL, "")),
        attempt=int(number) if number.isdigit() else 0,
        created=seconds(head.get("creationTimestamp")),
        living=status.get("phase") not in _ENDED_PHASES,
        exit_code=int(ended["exitCode"]) if "exitCode" in ended else None,
        out_of_memory=ended.get("reason") == "OOMKilled",
        unschedulable=str(unschedulable[0].get("message", "")) if unschedulable else "",
        waiting=str(waiting.get("reason", "")),
        waiting_for=str(waiting.get("message", ""))[:300],
    )


def read_manifest(run: Object) -> Read:
    """The manifest in a resource."""
    return _read(
        run["metadata"]["namespace"], run["metadata"]["name"], canonical_json(run.get("spec")), run["kind"]
    )


@lru_cache(maxsize=32)
def _read(namespace: str, name: str, spec: bytes, kind: str) -> Read:
    data = {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": json.loads(spec),
    }
    try:
        manifest = parse_run(data, f"{namespace}/{name}")
    except ManifestError as error:
        return Read(None, refusal=str(error))
    wrong = shortcomings(manifest)
    if wrong:
        return Read(None, refusal="\n  ".join([f"{namespace}/{name}: the pods cannot be made", *wrong]))
    return Read(manifest, shape_of(manifest), identity_of(manifest))


def identity_of(manifest: MorphogeneticRun) -> str:
    """Digest of what of a run never changes: host, task and random seed, with their free-form arguments."""
    spec = manifest.spec
    never = {
        "host": spec.host.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "task": spec.task.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "randomSeed": spec.training.random_seed,
    }
    return hashlib.sha256(canonical_json(never)).hexdigest()[:16]


def run_seen(
    run: Object,
    read: Read,
    jobs: Sequence[JobFacts],
    pods: Sequence[PodSeen],
    *,
    service: str | None,
    claim: str | None,
    restarts: int,
    now: float,
) -> RunSeen:
    """What the planner sees of a run.

    Args:
        run: the resource.
        read: its manifest.
        jobs: Jobs with one of its names.
        pods: with its labels.
        service: uid of the controller owner of the Service of its name; None where there is none.
        claim: the same of its claim.
        restarts: as far as known.
        now: seconds since the epoch.
    """
    head, status = run["metadata"], run.get("status") or {}
    uid = head["uid"]
    own = {facts.seen.uid for facts in jobs if facts.seen.owner == uid}
    codes = {job: _exit_code([pod for pod in pods if pod.job == job]) for job in own}
    ends = {
        item["type"]: item
        for item in status.get("conditions") or ()
        if item.get("status") == "True" and item["type"] in set(JobEnd)
    }
    ended = next((JobEnd(kind) for kind in ends), None)
    return RunSeen(
        uid=uid,
        name=head["name"],
        spec=read.manifest,
        shape=read.shape,
        now=now,
        deleting=head.get("deletionTimestamp") is not None,
        jobs=tuple(_with_code(facts.seen, codes.get(facts.seen.uid)) for facts in jobs),
        pods=sum(pod.living for pod in pods),
        service=service == uid,
        claim=claim == uid or (read.manifest is not None and not needs_claim(read.manifest)),
        attempt=int(status.get("attempt") or 0),
        restarts=restarts,
        ended=ended,
        ended_at=None if ended is None else seconds(ends[ended].get("lastTransitionTime")),
        started_at=seconds(status["startedAt"]) if status.get("startedAt") else None,
    )


def _with_code(job: JobSeen, code: int | None) -> JobSeen:
    return job if job.ended is not JobEnd.FAILED or code is None else replace(job, exit_code=code)


def _exit_code(pods: Sequence[PodSeen]) -> int | None:
    """The exit code that tells most: of the last pod that failed; 137 where memory was lacking."""
    failed = sorted((pod for pod in pods if pod.exit_code), key=lambda pod: pod.created)
    if not failed:
        return None
    return 137 if failed[-1].out_of_memory else failed[-1].exit_code
