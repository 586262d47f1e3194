"""The chart on an empty cluster: everything is ready, and `helm test` says so and leaves nothing."""

import pytest
from helm_python import HelmError

from tests.cluster.cluster import RELEASE, SYSTEM, Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.deadline(300)
def test_an_installation_is_ready_and_restarts_nothing(cluster: Cluster) -> None:
    for name, kind in (("esper-operator", "deployment"), ("esper-nats", "statefulset")):
        workload = cluster.get(kind, name, SYSTEM)
        assert workload is not None
        assert workload["status"]["readyReplicas"] == workload["spec"]["replicas"]
    pods = cluster.items("pods", SYSTEM, "app.kubernetes.io/name=esper")
    components = [pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods]
    assert {"operator", "nats"} <= set(components)
    restarts = [item["restartCount"] for pod in pods for item in pod["status"]["containerStatuses"]]
    assert set(restarts) == {0}
    version = cluster.kubectl("get", "nodes", "--output=jsonpath={.items[*].status.nodeInfo.kubeletVersion}")
    storage = cluster.kubectl("get", "storageclass", "--output=jsonpath={.items[*].provisioner}")
    cluster.note("nodes", version)
    cluster.note("storage", storage)


@pytest.mark.deadline(420)
def test_helm_test_finds_rights_bus_and_a_run_in_order_and_leaves_nothing(cluster: Cluster) -> None:
    with cluster.helm() as helm:
        said = str(helm.test(RELEASE, timeout=300, logs=True)["logs"])
    lines = [line for line in said.splitlines() if line.startswith(("ok", "FAILED"))]
    assert [line.split(":")[0].split() for line in lines] == [
        ["ok", "rights"],
        ["ok", "bus"],
        ["ok", "run"],
    ], said
    cluster.note("helm test", lines[-1])
    assert cluster.get("morphogeneticruns", "esper-test", SYSTEM) is None
    labels = "app.kubernetes.io/component=test"
    cluster.until(lambda: cluster.items("pods", SYSTEM, labels) == [], "the test pods are gone", 60)
    for kind in ("jobs", "services", "persistentvolumeclaims", "secrets", "networkpolicies"):
        cluster.until(
            lambda kind=kind: (
                not [
                    item
                    for item in cluster.items(kind, SYSTEM, "esper.dev/run=esper-test")
                    if item["metadata"].get("deletionTimestamp") is None
                ]
            ),
            f"{kind} of the run that was tried",
            60,
        )
    assert len(cluster.pods.seen(component="test")) == 2
    assert len(cluster.pods.seen(run="esper-test")) == 1


@pytest.mark.deadline(300)
def test_helm_test_names_what_is_wrong(cluster: Cluster) -> None:
    """The right to make Jobs is taken away: the check of rights says so, and no run is tried."""
    role = cluster.get("clusterrole", "esper-operator")
    assert role is not None
    kept = [rule for rule in role["rules"] if "jobs" not in rule["resources"]]
    cluster.patch("clusterrole", "esper-operator", {"rules": kept})
    try:
        with cluster.helm() as helm, pytest.raises(HelmError):
            helm.test(RELEASE, timeout=120)
        said = cluster.kubectl("logs", "esper-test-operator", f"--namespace={SYSTEM}")
    finally:
        cluster.patch("clusterrole", "esper-operator", {"rules": role["rules"]})
        cluster.kubectl("delete", "pod", "esper-test-operator", f"--namespace={SYSTEM}", "--ignore-not-found")
    assert "may not get jobs.batch in all namespaces" in said
    assert "rbac.create=true" in said
    assert cluster.get("morphogeneticruns", "esper-test", SYSTEM) is None
