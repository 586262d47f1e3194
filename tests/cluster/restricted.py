"""A pod of the tests' own with the image of trainings, as the Pod Security Standard `restricted` wants it."""

from collections.abc import Mapping

from tests.cluster.cluster import RUNS, SYSTEM, Cluster, Object


def restricted(
    cluster: Cluster,
    name: str,
    command: list[str],
    *,
    mounts: Mapping[str, Object],
    environment: Mapping[str, str] | None = None,
) -> Object:
    """The pod, as workers' are; it has a folder /tmp, and its root is read-only.

    Args:
        cluster: with Esper installed.
        name: of the pod.
        command: it runs.
        mounts: source of a volume, by the folder where it is mounted.
        environment: variables.
    """
    operator = cluster.get("deployment", "esper-operator", SYSTEM)
    assert operator is not None
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    given = {item["name"]: item.get("value", "") for item in container["env"]}
    folders = {"/tmp": {"emptyDir": {}}, **mounts}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": RUNS},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": name,
                    "image": given["ESPER_OPERATOR_IMAGE"],
                    "imagePullPolicy": given["ESPER_OPERATOR_PULL_POLICY"],
                    "command": command,
                    "env": [
                        {"name": key, "value": value}
                        for key, value in {
                            "HOME": "/tmp",
                            "ESPER_HOME": "/tmp/esper",
                            **(environment or {}),
                        }.items()
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": f"v{number}", "mountPath": folder} for number, folder in enumerate(folders)
                    ],
                }
            ],
            "volumes": [{"name": f"v{number}", **folders[folder]} for number, folder in enumerate(folders)],
        },
    }


def last_words(cluster: Cluster, pod: Object, seconds: float) -> str:
    """Run a pod to its end, and take it away again; returns its log.

    Raises:
        AssertionError: it did not end well in time.
    """
    name = pod["metadata"]["name"]
    cluster.apply(pod)
    try:

        def ended() -> str | None:
            phase = str(((cluster.get("pod", name) or {}).get("status") or {}).get("phase"))
            return phase if phase in ("Succeeded", "Failed") else None

        phase = cluster.until(ended, f"the pod {name} has ended", seconds)
        said = cluster.kubectl("logs", name, f"--namespace={RUNS}")
        assert phase == "Succeeded", said
        return said
    finally:
        cluster.kubectl("delete", "pod", name, f"--namespace={RUNS}", "--ignore-not-found", "--now")
