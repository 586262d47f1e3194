"""Evaluation from inside a restricted pod: what a kernel may not do is refused there by the sandbox alone."""

from pathlib import Path

import pytest

from tests.cluster.cluster import RUNS, Cluster
from tests.cluster.restricted import last_words, restricted

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


@pytest.mark.deadline(300)
def test_sockets_programs_and_files_are_refused_by_the_sandbox_in_a_restricted_pod(cluster: Cluster) -> None:
    head = {"name": NAME, "namespace": RUNS}
    deeds = {"deeds.py": DEEDS.read_text()}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": deeds})
    pod = restricted(
        cluster,
        NAME,
        ["python3", "-c", _RUN, *REFUSED],
        mounts={"/deeds": {"configMap": {"name": NAME}}},
        environment={"PYTHONPATH": "/deeds"},
    )
    try:
        said = last_words(cluster, pod, 240)
        lines = [line.split("|") for line in said.splitlines() if line.count("|") == 2]
        assert {line[0]: line[2] for line in lines} == REFUSED, said
        assert all("seccomp" in line[1].split(",") for line in lines), said
        cluster.note("sandbox in a restricted pod", lines[0][1])
    finally:
        cluster.kubectl("delete", "configmap", NAME, f"--namespace={RUNS}", "--ignore-not-found", "--now")
