"""What is made for a run, as plain objects: pure functions of the run, the attempt and the settings."""

import json
import math
from collections.abc import Mapping
from typing import Any

from esper_operator.kube import Object
from esper_operator.names import (
    ATTEMPT_LABEL,
    IDENTITY,
    IMAGE,
    QUEUE_LABEL,
    SHAPE,
    UID_LABEL,
    claim_name,
    head_of,
    job_name,
    labels_of,
    policy_name,
    secret_name,
)
from esper_operator.settings import Settings
from esper_runtime.contracts import KUBERNETES_ONLY, MorphogeneticRun
from esper_runtime.contracts.pods import Medium, Variable, Volume
from esper_runtime.planning import EXIT_BUDGET, shape_of

PORT = 29400
"""Where the ranks of a run find each other."""
METRICS_PORT = 9464
"""Where Prometheus asks a training how it stands."""
USER = 10001
CONTAINER = "training"
ENDING_SECONDS = 15
"""Added to the time for a last checkpoint before a pod is killed."""

_GPU = "nvidia.com/"


def needs_claim(run: MorphogeneticRun) -> bool:
    """Whether a run keeps anything on a claim: unless checkpoints and model have a place outside of the pod.

    Then the journal is kept with the checkpoints, and the run goes on from there.
    """
    places = (run.spec.checkpoint.uri, run.spec.output.uri)
    return not all(place is not None and _is_remote(place) for place in places)


def service_of(run: Object) -> Object:
    """The headless Service by which the ranks of a run find each other."""
    return {
        "metadata": head_of(run, run["metadata"]["name"]),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {UID_LABEL: run["metadata"]["uid"]},
            "ports": [{"name": "ranks", "port": PORT, "protocol": "TCP"}],
        },
    }


def claim_of(run: Object, manifest: MorphogeneticRun, settings: Settings) -> Object:
    """The claim that takes checkpoints and model where the manifest names no place."""
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.claim_size}},
    }
    if settings.storage_class:
        spec["storageClassName"] = settings.storage_class
    head = head_of(run, claim_name(run["metadata"]["name"]))
    head["annotations"] = {IMAGE: _image(manifest, settings)}
    return {"metadata": head, "spec": spec}


def secret_of(run: Object, attempt: int, files: Mapping[str, str]) -> Object:
    """An attempt's Secret: the manifest as ``esper run`` takes it, and the credentials of its pods.

    Args:
        run: the resource.
        attempt: its number.
        files: names and texts of what belongs to the bus.
    """
    spec = {key: value for key, value in run["spec"].items() if key not in _NOT_TRAINED}
    manifest = {
        "apiVersion": run["apiVersion"],
        "kind": run["kind"],
        "metadata": {"name": run["metadata"]["name"]},
        "spec": spec,
    }
    return {
        "metadata": head_of(run, secret_name(run, attempt)),
        "type": "Opaque",
        "immutable": True,
        "stringData": {**files, "manifest.yaml": json.dumps(manifest, indent=1) + "\n"},
    }


def network_policy_of(run: Object, settings: Settings) -> Object:
    """What the pods of a run may reach: each other, DNS, the bus, and what is no pod."""
    own = {"podSelector": {"matchLabels": {UID_LABEL: run["metadata"]["uid"]}}}
    bus = {"matchLabels": {"app.kubernetes.io/name": "esper", "app.kubernetes.io/component": "nats"}}
    release = {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}}
    egress: list[Object] = [
        {"to": [own]},
        {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
        {
            "to": [{"namespaceSelector": release, "podSelector": bus}],
            "ports": [{"port": 4222, "protocol": "TCP"}],
        },
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_PRIVATE)}}]},
    ]
    return {
        "metadata": head_of(run, policy_name(run)),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"ports": [{"port": METRICS_PORT, "protocol": "TCP"}]},
            ],
            "egress": egress,
        },
    }


def job_of(
    run: Object, manifest: MorphogeneticRun, attempt: int, identity: str, settings: Settings
) -> Object:
    """The Indexed Job of an attempt: one pod for each worker.

    Args:
        run: the resource.
        manifest: the same as the contracts read it.
        attempt: its number.
        identity: digest of what of the manifest never changes.
        settings: of the release.
    """
    spec = manifest.spec
    name = run["metadata"]["name"]
    count = spec.training.workers.count
    head = head_of(run, job_name(name, attempt))
    own = {ATTEMPT_LABEL: str(attempt)}
    head["labels"] |= own | ({QUEUE_LABEL: spec.queue_name} if spec.queue_name is not None else {})
    head["annotations"] = {SHAPE: shape_of(manifest), IDENTITY: identity}
    return {
        "metadata": head,
        "spec": {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": count,
            "backoffLimit": spec.retry.limit,
            "podReplacementPolicy": "Failed",
            "suspend": spec.queue_name is not None,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [75, 76]},
                    },
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": CONTAINER,
                            "operator": "In",
                            "values": [2, EXIT_BUDGET],
                        },
                    },
                ]
            },
            "template": {
                "metadata": {
                    "labels": {**spec.template.labels, **labels_of(run), **own},
                    "annotations": dict(spec.template.annotations),
                },
                "spec": _pod(run, manifest, attempt, settings),
            },
        },
    }


def _pod(run: Object, manifest: MorphogeneticRun, attempt: int, settings: Settings) -> Object:
    template = manifest.spec.template
    group = template.fs_group or USER
    pod: Object = {
        "restartPolicy": "Never",
        "subdomain": run["metadata"]["name"],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(manifest.spec.checkpoint.grace_seconds) + ENDING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": _volumes(run, manifest, attempt),
        "containers": [_container(run, manifest, attempt, settings)],
    }
    secrets = dict.fromkeys([*template.image_pull_secrets, *settings.pull_secrets])
    priority = template.priority_class_name or settings.priority_training
    optional: Object = {
        "imagePullSecrets": [{"name": name} for name in secrets],
        "nodeSelector": dict(template.node_selector),
        "tolerations": [
            item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in template.tolerations
        ],
        "runtimeClassName": template.runtime_class_name,
        "priorityClassName": priority,
    }
    return pod | {key: value for key, value in optional.items() if value}


def _container(run: Object, manifest: MorphogeneticRun, attempt: int, settings: Settings) -> Object:
    template = manifest.spec.template
    resources = template.resources.model_dump(mode="json", by_alias=True)
    return {
        "name": CONTAINER,
        "image": _image(manifest, settings),
        "imagePullPolicy": template.image_pull_policy if template.image else settings.pull_policy,
        "command": ["esper", "pod", "train"],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "env": _environment(run, manifest, attempt) + [_variable(item) for item in template.env],
        "resources": {key: value for key, value in resources.items() if value},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "esper", "mountPath": "/etc/esper", "readOnly": True},
            {"name": "data", "mountPath": "/var/esper"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *(_mount(index, item) for index, item in enumerate(template.volumes)),
        ],
    }


def _image(manifest: MorphogeneticRun, settings: Settings) -> str:
    template = manifest.spec.template
    if template.image is not None:
        return template.image
    asked = {*template.resources.limits, *template.resources.requests}
    if settings.image_cuda and any(key.startswith(_GPU) for key in asked):
        return settings.image_cuda
    return settings.image


def _environment(run: Object, manifest: MorphogeneticRun, attempt: int) -> list[Object]:
    name = run["metadata"]["name"]
    values = {
        "ESPER_BUS": "/etc/esper/bus.json",
        "ESPER_LIBRARY": "/etc/esper/bus.json",
        "ESPER_NAMESPACE": run["metadata"]["namespace"],
        "ESPER_RUN": name,
        "ESPER_RUN_UID": run["metadata"]["uid"],
        "ESPER_ATTEMPT": str(attempt),
        "ESPER_LISTEN": f"0.0.0.0:{METRICS_PORT}",
        "ESPER_HOME": "/tmp/esper-home",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": "/tmp/.cache",
    }
    if manifest.spec.training.workers.count > 1:
        values["ESPER_MASTER"] = f"{job_name(name, attempt)}-0.{name}"
    return [{"name": key, "value": value} for key, value in values.items()]


def _variable(item: Variable) -> Object:
    if item.value is not None:
        return {"name": item.name, "value": item.value}
    source = item.secret or item.config_map
    assert source is not None
    kind = "secretKeyRef" if item.secret is not None else "configMapKeyRef"
    return {"name": item.name, "valueFrom": {kind: {"name": source.name, "key": source.key}}}


def _volumes(run: Object, manifest: MorphogeneticRun, attempt: int) -> list[Object]:
    template = manifest.spec.template
    claim = {"persistentVolumeClaim": {"claimName": claim_name(run["metadata"]["name"])}}
    return [
        {"name": "esper", "secret": {"secretName": secret_name(run, attempt), "defaultMode": 0o440}},
        {"name": "data", **(claim if needs_claim(manifest) else {"emptyDir": {}})},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": template.shared_memory or "1Gi"}},
        *({"name": _volume_name(index), **_source(item)} for index, item in enumerate(template.volumes)),
    ]


def _source(item: Volume) -> Object:
    if item.claim is not None:
        return {"persistentVolumeClaim": {"claimName": item.claim, "readOnly": item.read_only}}
    if item.config_map is not None:
        return {"configMap": {"name": item.config_map}}
    if item.secret is not None:
        return {"secret": {"secretName": item.secret}}
    if item.empty_dir is not None:
        medium = {"medium": "Memory"} if item.empty_dir.medium is Medium.MEMORY else {}
        limit = {} if item.empty_dir.size_limit is None else {"sizeLimit": item.empty_dir.size_limit}
        return {"emptyDir": medium | limit}
    assert item.ephemeral is not None
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": item.ephemeral.size}},
    }
    if item.ephemeral.storage_class_name is not None:
        spec["storageClassName"] = item.ephemeral.storage_class_name
    return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}


def _mount(index: int, item: Volume) -> Object:
    mount: Object = {"name": _volume_name(index), "mountPath": item.mount_path, "readOnly": item.read_only}
    return mount | ({} if item.sub_path is None else {"subPath": item.sub_path})


def _volume_name(index: int) -> str:
    """Names of a manifest's volumes are its own; in the pod they must not meet ours."""
    return f"template-{index}"


def _is_remote(place: str) -> bool:
    scheme, separator, _ = place.partition("://")
    return bool(separator) and scheme not in ("file", "local", "memory")


_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")
"""Where pods, nodes and a cloud's metadata are."""

_NOT_TRAINED = {
    MorphogeneticRun.model_fields["spec"].annotation.model_fields[name].alias or name  # type: ignore[union-attr]
    for name in KUBERNETES_ONLY
}
