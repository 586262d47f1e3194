"""The Jobs of the forge's workers as plain objects, and what is read of them again."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from esper_operator.children import METRICS_PORT, USER
from esper_operator.kube import Object
from esper_operator.names import COMPONENT_LABEL, FAILURES, POOL_LABEL, SHAPE, WORKER_LABEL
from esper_operator.observe import pod_seen, seconds
from esper_operator.pools import Pool
from esper_operator.settings import Settings
from esper_operator.trouble import Trouble
from esper_runtime.contracts import WorkerFacts
from esper_runtime.planning import CreateWorker, JobEnd, WorkerSeen

CONTAINER = "worker"
ENDING_SECONDS = 30
"""For a worker to hand back what it has in hand before it is killed."""
_ENDS = {end.value: end for end in JobEnd}


def worker_image(pool: Pool, settings: Settings) -> str:
    """What the workers of a pool run."""
    return settings.image_cuda if pool.device == "cuda" and settings.image_cuda else settings.image


def job_name(role: str, pool: str, number: int) -> str:
    """Name of a worker's Job."""
    return f"esper-{role}-{pool}-{number}"


def worker_job(
    action: CreateWorker,
    pool: Pool,
    shape: str,
    secret: str | None,
    settings: Settings,
    owner: Object | None,
) -> Object:
    """The Job of a worker: one pod, which has the Secret of its role and no other rights.

    Args:
        action: role, pool and number.
        pool: the same pool.
        shape: digest of what its pods are made of.
        secret: name of the Secret of its role; None for one that does not get on the bus.
        settings: of the release.
        owner: an owner reference, so that the Job goes with the release.
    """
    labels = {
        "app.kubernetes.io/name": "esper",
        COMPONENT_LABEL: action.role,
        "app.kubernetes.io/managed-by": "esper-operator",
        POOL_LABEL: pool.name,
        WORKER_LABEL: str(action.number),
    }
    head: Object = {
        "name": job_name(action.role, pool.name, action.number),
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": {SHAPE: shape, FAILURES: str(action.failures)},
    }
    if owner is not None:
        head["ownerReferences"] = [owner]
    return {
        "metadata": head,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
                ]
            },
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": _pod(action.role, pool, secret, settings),
            },
        },
    }


def _pod(role: str, pool: Pool, secret: str | None, settings: Settings) -> Object:
    mounted = {"secretName": secret, "defaultMode": 0o440}
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ENDING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            *([{"name": "esper", "secret": mounted}] if secret else []),
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        ],
        "containers": [_container(role, pool, settings, secret is not None)],
    }
    optional: Object = {
        "imagePullSecrets": [{"name": name} for name in settings.pull_secrets],
        "priorityClassName": settings.priority_workers,
    }
    return pod | pool.pod() | {key: value for key, value in optional.items() if value}


def _container(role: str, pool: Pool, settings: Settings, on_bus: bool) -> Object:
    values = {
        "ESPER_LISTEN": f"0.0.0.0:{METRICS_PORT}",
        "ESPER_HOME": "/tmp/esper-home",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": "/tmp/.cache",
    }
    resources = pool.resources.model_dump(mode="json", by_alias=True)
    mount = {"name": "esper", "mountPath": "/etc/esper", "readOnly": True}
    return {
        "name": CONTAINER,
        "image": worker_image(pool, settings),
        "imagePullPolicy": settings.pull_policy,
        "command": ["esper", "pod", role],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}] if on_bus else [],
        "env": [{"name": key, "value": value} for key, value in values.items()],
        "resources": {key: value for key, value in resources.items() if value},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *([mount] if on_bus else []),
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def worker_seen(job: Object, pods: Sequence[Object]) -> WorkerSeen | None:
    """A worker's Job as the planner sees it; None for one of another kind.

    Args:
        job: the Job.
        pods: those that it controls.
    """
    head = job["metadata"]
    labels, notes = head.get("labels") or {}, head.get("annotations") or {}
    number, failures = str(labels.get(WORKER_LABEL, "")), str(notes.get(FAILURES, ""))
    if POOL_LABEL not in labels or not number.isdigit():
        return None
    conditions = [
        item
        for item in (job.get("status") or {}).get("conditions") or ()
        if item.get("status") == "True" and item.get("type") in _ENDS
    ]
    ended = _ENDS[conditions[0]["type"]] if conditions else None
    return WorkerSeen(
        name=head["name"],
        uid=head["uid"],
        role=str(labels.get(COMPONENT_LABEL, "")),
        pool=str(labels[POOL_LABEL]),
        number=int(number),
        shape=str(notes.get(SHAPE, "")),
        failures=int(failures) if failures.isdigit() else 0,
        deleting=head.get("deletionTimestamp") is not None,
        ended=ended,
        ended_at=seconds(conditions[0].get("lastTransitionTime")) if conditions else 0.0,
        facts=next((facts for pod in pods if (facts := _told(pod)) is not None), None),
    )


def _told(pod: Object) -> WorkerFacts | None:
    """What a pod has left as its last words."""
    for item in (pod.get("status") or {}).get("containerStatuses") or ():
        message = ((item.get("state") or {}).get("terminated") or {}).get("message") or ""
        try:
            return WorkerFacts.model_validate(json.loads(message), by_alias=True, by_name=False)
        except (ValueError, ValidationError):
            continue
    return None


def trouble_of_workers(pods: Sequence[Object], failing: Sequence[WorkerSeen]) -> Trouble | None:
    """What keeps the forge's workers from working: a pod that does not start, or workers that fail."""
    for pod in pods:
        seen = pod_seen(pod, CONTAINER)
        if seen.living and seen.unschedulable:
            return Trouble(
                "Unschedulable",
                f"pod {seen.name} waits for a node: {seen.unschedulable}; change the pool's nodeSelector, "
                "tolerations or resources in the chart's values (pools), or add nodes",
            )
        if seen.living and seen.waiting not in ("", "ContainerCreating", "PodInitializing"):
            return Trouble(
                "PodsDoNotStart",
                f"pod {seen.name}: {seen.waiting}: {seen.waiting_for or 'why is not said'}; check the "
                "chart's values image.runtime and image.runtimeCuda, and that the workers' Secrets are there",
            )
    if failing:
        last = max(failing, key=lambda worker: worker.ended_at)
        return Trouble(
            "WorkersFail",
            f"{last.failures + 1} workers in a row failed; see `kubectl logs job/{last.name}` in the "
            "release's namespace; the next one is tried after a while",
        )
    return None
