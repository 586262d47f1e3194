"""Evaluation from inside a restricted pod: what a kernel may not do is refused there by the sandbox alone."""

from pathlib import Path

import pytest

from tests.cluster.cluster import RUNS, SYSTEM, Cluster, Object

pytestmark = pytest.mark.cluster
NAME = "sandbox"
DEEDS = Path(__file__).resolve().parents[1] / "sandbox" / "deeds.py"

_RUN = """
import sys
from esper_runtime.sandbox import Limits, Sandbox
with Sandbox(["deeds"]) as sandbox:
    for line in sys.argv[1:]:
        deed, _, payload = line.partition(" ")
        outcome = sandbox.run(f"deeds:{deed}", payload.encode(), limits=Limits(memory=10**8))
        print(line, ",".join(outcome.layers), outcome.violation and outcome.violation.call, sep="|")
"""
REFUSED = {"echo hi": "None", "read /etc/passwd": "openat", "connect": "socket", "execute": "execve"}
"""Deeds, and the system call for which each is ended."""


def pod(image: str, pull: str) -> Object:
    """A pod that the `restricted` Pod Security Standard admits, as those of workers are."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": RUNS},
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
                    "name": NAME,
                    "image": image,
                    "imagePullPolicy": pull,
                    "command": ["python3", "-c", _RUN, *REFUSED],
                    "env": [
                        {"name": "PYTHONPATH", "value": "/deeds"},
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "ESPER_HOME", "value": "/tmp/esper"},
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "deeds", "mountPath": "/deeds"},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [
                {"name": "deeds", "configMap": {"name": NAME}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


@pytest.mark.deadline(300)
def test_sockets_programs_and_files_are_refused_by_the_sandbox_in_a_restricted_pod(cluster: Cluster) -> None:
    operator = cluster.get("deployment", "esper-operator", SYSTEM)
    assert operator is not None
    given = {
        item["name"]: item.get("value", "")
        for item in operator["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    head = {"name": NAME, "namespace": RUNS}
    deeds = {"deeds.py": DEEDS.read_text()}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": deeds})
    cluster.apply(pod(given["ESPER_OPERATOR_IMAGE"], given["ESPER_OPERATOR_PULL_POLICY"]))
    try:

        def ended() -> str | None:
            phase = str(((cluster.get("pod", NAME) or {}).get("status") or {}).get("phase"))
            return phase if phase in ("Succeeded", "Failed") else None

        cluster.until(ended, "the pod has ended", 240)
        said = cluster.kubectl("logs", NAME, f"--namespace={RUNS}")
        lines = [line.split("|") for line in said.splitlines() if line.count("|") == 2]
        assert {line[0]: line[2] for line in lines} == REFUSED, said
        assert all("seccomp" in line[1].split(",") for line in lines), said
        cluster.note("sandbox in a restricted pod", lines[0][1])
    finally:
        for kind in ("pod", "configmap"):
            cluster.kubectl("delete", kind, NAME, f"--namespace={RUNS}", "--ignore-not-found", "--now")
