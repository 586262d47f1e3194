"""A pod through which a run's claim is read: one that still trains, else a small one that only sleeps."""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from esper_runtime.contracts import ClusterError, EsperError, InputError
from esper_runtime.local.cluster.kubectl import Kubectl
from esper_runtime.local.pod import DATA

READER_SECONDS = 3600
"""A reader that was left behind is ended by Kubernetes after so long."""
USER = 10001
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Reader:
    """A container that has the run's claim at `DATA`."""

    pod: str
    container: str


def reader_pod(run: str, name: str, image: str, pull_secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    """The manifest of a reader: it satisfies the `restricted` Pod Security Standard.

    Args:
        run: name of the run, whose claim is ``<run>-data``.
        name: of the pod.
        image: that has `tar` and `sleep`.
        pull_secrets: names of Secrets with which the image is fetched.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "esper",
                "app.kubernetes.io/component": "reader",
                "app.kubernetes.io/managed-by": "esper-pull",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": READER_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "imagePullSecrets": [{"name": secret} for secret in pull_secrets],
            "containers": [
                {
                    "name": "reader",
                    "image": image,
                    "command": ["sleep", str(READER_SECONDS)],
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "32Mi"},
                        "limits": {"memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "data", "mountPath": str(DATA), "readOnly": True}],
                }
            ],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": f"{run}-data", "readOnly": True}}
            ],
        },
    }


@contextlib.contextmanager
def reader_of(
    kubectl: Kubectl, run: str, image: str | None, say: Callable[[str], None], seconds: float
) -> Iterator[Reader]:
    """Inside, there is a container that can read the run's claim; one that was started here is removed again.

    Args:
        kubectl: reaches the cluster.
        run: name of the run.
        image: of a reader that has to be started; None: that of the run's last Job, or named by its claim.
        say: prints a line.
        seconds: a reader may take to start.

    Raises:
        InputError: the image cannot be told.
        ClusterError: the pod does not start; the text says why.
    """
    pods = kubectl.read("get", "pods", f"--selector=esper.dev/run={run}")["items"]
    living = running(pods)
    if living is not None:
        yield living
        return
    claim = f"{run}-data"
    kubectl.run("get", "persistentvolumeclaim", claim)
    found, pull_secrets = _image(kubectl, run) if image is None else (image, ())
    name = f"esper-pull-{run}-{secrets.token_hex(3)}"
    kubectl.run("create", "--filename=-", given=json.dumps(reader_pod(run, name, found, pull_secrets)))
    try:
        say(f"no pod of the run is left; {name} reads its claim {claim}")
        try:
            kubectl.run(
                "wait",
                "--for=condition=Ready",
                f"pod/{name}",
                f"--timeout={seconds:g}s",
                seconds=seconds + 15,
            )
        except ClusterError:
            raise ClusterError(_why(kubectl, name, seconds)) from None
        yield Reader(name, "reader")
    finally:
        with contextlib.suppress(EsperError):  # it ends by its deadline then
            kubectl.run("delete", "pod", name, "--wait=false", "--ignore-not-found")


def running(pods: list[dict[str, Any]]) -> Reader | None:
    """A training pod that can be read through; None where none runs."""
    for pod in pods:
        if pod.get("status", {}).get("phase") != "Running" or "deletionTimestamp" in pod["metadata"]:
            continue
        ready = {each["name"] for each in pod["status"].get("containerStatuses", ()) if each.get("ready")}
        mounts = {
            container["name"]
            for container in pod["spec"]["containers"]
            if any(mount["mountPath"] == str(DATA) for mount in container.get("volumeMounts", ()))
        }
        if "training" in ready & mounts:
            return Reader(pod["metadata"]["name"], "training")
    return None


def _image(kubectl: Kubectl, run: str) -> tuple[str, tuple[str, ...]]:
    jobs = kubectl.read("get", "jobs", f"--selector=esper.dev/run={run}")["items"]
    jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp", "")))
    for job in reversed(jobs):
        pod = job["spec"]["template"]["spec"]
        pull_secrets = tuple(each["name"] for each in pod.get("imagePullSecrets", ()))
        return str(pod["containers"][0]["image"]), pull_secrets
    claims = kubectl.read("get", "persistentvolumeclaims", f"--selector=esper.dev/run={run}")["items"]
    for claim in claims:
        if image := claim["metadata"].get("annotations", {}).get("esper.dev/image"):
            return str(image), ()
    raise InputError(
        f"neither a Job nor a claim of run {run!r} names its image; give one that has `tar` and that the "
        f"cluster can fetch, such as your release's runtime image: --image NAME"
    )


def _why(kubectl: Kubectl, name: str, seconds: float) -> str:
    """Why a pod is not ready, from its status."""
    status = kubectl.read("get", "pod", name).get("status", {})
    reasons = [
        f"{each['reason']}: {each.get('message', '')}".rstrip(": ")
        for container in status.get("containerStatuses", ())
        for each in container.get("state", {}).values()
        if each.get("reason")
    ]
    reasons += [
        f"{each.get('reason', each['type'])}: {each['message']}"
        for each in status.get("conditions", ())
        if each.get("status") != "True" and each.get("message")
    ]
    found = "; ".join(dict.fromkeys(reasons)) or f"its phase is {status.get('phase', 'unknown')}"
    return f"pod {name} was not ready within {seconds:g} s: {found}"
