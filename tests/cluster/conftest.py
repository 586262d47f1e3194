"""One installation for all of these tests, a time for each, and what the cluster says where one fails."""

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import CHART, RELEASE, RUNS, SYSTEM, Access, Cluster, CommandError
from tests.cluster.outcome import Outcome, outcome_of
from tests.cluster.runs import growing

REMEDY = (
    "needs a real cluster with pods: set ESPER_TEST_CONTEXT to the name of a context of your kubeconfig, and "
    "ESPER_TEST_REGISTRY to where its nodes find esper/operator and esper/runtime (docs/kubernetes.md: Tests)"
)
DEADLINE = 600.0
"""Seconds that a test may take which says nothing of its own."""
INSTALL_SECONDS = 240.0

_clusters: list[Cluster] = []


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, set[str]]]:
    """The cluster, and everything that was in it before the first test."""
    access = Access.given()
    if access is None:
        pytest.skip(REMEDY)
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl on PATH")
    cluster = Cluster(access, tmp_path_factory.mktemp("cluster"))
    _clusters.append(cluster)
    there = cluster.everything()
    ours = [line for line in there if "esper" in line]
    if ours and not (access.keep and cluster.is_installed()):
        pytest.fail(
            f"the cluster is not empty of Esper, and these tests would disturb it: {sorted(ours)[:10]}"
        )
    yield cluster, there
    if not access.keep:
        clear(cluster)
    cluster.pods.stop()


@pytest.fixture(scope="session")
def installed(bare: tuple[Cluster, set[str]]) -> Cluster:
    """The cluster with the chart installed and everything ready."""
    cluster, _ = bare
    began = time.monotonic()
    if cluster.access.keep and cluster.is_installed():
        with cluster.helm() as helm:
            helm.upgrade(CHART, RELEASE, cluster.values(), namespace=SYSTEM, timeout=int(INSTALL_SECONDS))
    else:
        with cluster.helm() as helm:
            helm.install(
                CHART,
                RELEASE,
                cluster.values(),
                namespace=SYSTEM,
                create_namespace=True,
                timeout=int(INSTALL_SECONDS),
            )
    for workload in ("deployment/esper-operator", "statefulset/esper-nats"):
        seconds = f"--timeout={INSTALL_SECONDS:.0f}s"
        cluster.kubectl(
            "rollout", "status", workload, f"--namespace={SYSTEM}", seconds, seconds=INSTALL_SECONDS
        )
    cluster.note("install to all ready", f"{time.monotonic() - began:.1f} s")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RUNS, "labels": labels}})
    return cluster


@pytest.fixture
def cluster(installed: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same with this test's deadline."""
    marker = request.node.get_closest_marker("deadline")
    began = time.monotonic()
    installed.deadline = began + (marker.args[0] if marker is not None else DEADLINE)
    yield installed
    installed.deadline = float("inf")


@pytest.fixture(scope="session")
def undisturbed(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the run of these tests comes to when nothing happens to it."""
    installed.deadline = time.monotonic() + DEADLINE
    began = time.monotonic()
    installed.apply(growing("undisturbed"))
    installed.reaches("undisturbed", "Succeeded", DEADLINE)
    installed.note("undisturbed run", f"{time.monotonic() - began:.0f} s")
    found = outcome_of(installed, "undisturbed", tmp_path_factory.mktemp("undisturbed") / "run")
    installed.remove("undisturbed")
    return found


def clear(cluster: Cluster) -> None:
    """Remove everything that these tests made."""
    for words in (
        ("delete", "mrun,blueprints,compiledkernels", "--all", f"--namespace={RUNS}"),
        ("delete", "mrun,blueprints,compiledkernels", "--all", f"--namespace={SYSTEM}"),
    ):
        _quietly(cluster, *words)
    if cluster.is_installed():
        with cluster.helm() as helm:
            helm.uninstall(RELEASE, timeout=120, wait="watcher")
    definitions = ("morphogeneticruns.esper.dev", "blueprints.esper.dev", "compiledkernels.esper.dev")
    _quietly(cluster, "delete", "crd", "--ignore-not-found", *definitions)
    _quietly(cluster, "delete", "namespace", "--ignore-not-found", RUNS, SYSTEM)


def _quietly(cluster: Cluster, *words: str) -> None:
    try:
        cluster.kubectl(*words, seconds=180)
    except CommandError as error:
        print(error)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The installation is checked first and removed last."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return {"test_installation.py": 0, "test_uninstallation.py": 2}.get(name, 1)

    ours = [item for item in items if "tests/cluster/" in item.path.as_posix()]
    ordered = iter(sorted(ours, key=place))
    items[:] = [next(ordered) if item in ours else item for item in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add what the cluster says to the report of a test that failed."""
    report: Any = yield
    if report.failed and _clusters and "cluster" in {mark.name for mark in item.iter_markers()}:
        report.sections.append(("the cluster", _clusters[0].diagnosis()))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was measured, one JSON object."""
    for cluster in _clusters:
        line = {"pods that ran": cluster.pods.counted()} | dict(cluster.figures)
        terminalreporter.write_line("cluster: " + json.dumps(line))
