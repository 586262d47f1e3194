"""What keeps a run from moving, as one reason and one sentence with the remedy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from esper_operator.kube import KubeError
from esper_operator.observe import PodSeen


@dataclass(frozen=True)
class Trouble:
    """A condition's reason and message."""

    reason: str
    message: str


OF_EVENTS = ("QuotaExceeded", "PodsForbidden")
"""Reasons that only the events of a Job tell of."""

_QUOTA = re.compile(r"exceeded quota", re.IGNORECASE)
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError")


def trouble_of_pods(pods: Sequence[PodSeen]) -> Trouble | None:
    """The trouble of the living pods, or of the last one that ended for lack of memory."""
    for pod in pods:
        if not pod.living:
            continue
        if pod.unschedulable:
            return Trouble("Unschedulable", unschedulable(pod.name, pod.unschedulable))
        if pod.waiting in _IMAGE:
            return Trouble(
                "ImageCannotBePulled",
                f"pod {pod.name}: {pod.waiting}: {pod.waiting_for or 'the image cannot be pulled'}; check "
                "spec.template.image and spec.template.imagePullSecrets, or the image of the release",
            )
        if pod.waiting in _CONFIG:
            return Trouble(
                "MissingConfig",
                f"pod {pod.name}: {pod.waiting_for or pod.waiting}; make what is missing in this namespace, "
                "or correct spec.template.env and spec.template.volumes",
            )
    ended = sorted((pod for pod in pods if pod.out_of_memory), key=lambda pod: pod.created)
    later = [pod for pod in pods if ended and pod.created > ended[-1].created and pod.living]
    if ended and not any(pod.waiting == "" and pod.unschedulable == "" for pod in later):
        return out_of_memory(ended[-1].name)
    return None


def out_of_memory(pod: str) -> Trouble:
    """The trouble of a pod that was killed for lack of memory."""
    return Trouble(
        "OutOfMemory",
        f"pod {pod} was killed because it used more memory than it may; raise "
        "spec.template.resources.limits.memory, or lower spec.training.batchSize or raise "
        "spec.training.accumulate",
    )


def unschedulable(pod: str, said: str) -> str:
    """The scheduler's words about a pod, with what to do."""
    remedy = "lower spec.template.resources.requests, or add nodes"
    text = said.lower()
    if "affinity" in text or "selector" in text:
        remedy = "correct spec.template.nodeSelector, or label a node"
    elif "taint" in text:
        remedy = "add the taint to spec.template.tolerations, or add nodes"
    elif "persistentvolumeclaim" in text or "volume" in text:
        remedy = (
            "see `kubectl describe pvc`: the cluster may have no default StorageClass; name one in the "
            "chart's values (runs.storageClassName), or give checkpoint.uri and output.uri"
        )
    elif "nvidia.com" in text:
        remedy = "lower the GPUs in spec.template.resources, or add nodes with GPUs"
    return f"no node takes pod {pod}: {said[:400]}; {remedy}"


def trouble_of_error(what: str, error: KubeError) -> Trouble:
    """The trouble that the API server's refusal of a child means."""
    said = error.message[:500]
    if _QUOTA.search(said):
        return quota(f"{what}: {said}")
    if error.code == 403:
        return Trouble(
            "Forbidden",
            f"{what}: {said}; a policy of the cluster or a missing right of the operator forbids it",
        )
    return Trouble("Refused", f"{what}: the API server refuses it: {said}; correct spec.template")


def quota(said: str) -> Trouble:
    """The trouble of a namespace whose quota is used up."""
    return Trouble(
        "QuotaExceeded",
        f"{said[:600]}; lower spec.template.resources, end something else in this namespace, or have its "
        "ResourceQuota raised",
    )


def trouble_of_events(messages: Sequence[str]) -> Trouble | None:
    """The trouble in what the Job controller said of a Job that has no pods, newest last."""
    for said in reversed(messages):
        if _QUOTA.search(said):
            return quota(said)
        if "forbidden" in said.lower():
            return Trouble("PodsForbidden", f"{said[:600]}; a policy of this namespace forbids the pods")
    return None
