"""`esper-operator check`: the bus for real, a run in an API server in memory, rights against a real one."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.cluster_server import ClusterServer
from benchmarks.control_plane import ControlPlane
from esper_operator import trial
from esper_operator.bus import BusFiles
from esper_operator.kube import RUN, Kind, KubeApi, Object
from esper_operator.main import command
from esper_operator.rights import Right, Rights
from esper_operator.settings import Settings
from esper_operator.trial import CheckError, bus_round_trip, trial_run
from esper_runtime.contracts import BusError, InputError
from esper_runtime.oona import BusKeys
from tests.chart.rendering import NAMESPACE, find, objects, pods
from tests.operator.memory import Cluster

ROOT = Path(__file__).resolve().parents[2]


def test_a_message_goes_over_the_bus_and_back_and_leaves_nothing(tmp_path: Path) -> None:
    async def left(server: ClusterServer) -> int:
        async with server.keeper() as keeper:
            streams = (await keeper.namespace("esper")).jetstream()
            return (await streams.stream_info("PROGRESS")).state.messages

    with ClusterServer(tmp_path) as server:
        settings = Settings(namespace="esper", nats_url=server.url)
        line = asyncio.run(bus_round_trip(BusFiles(server.keys), settings, server.ca))
        assert server.url in line
        assert "there and back in" in line
        assert asyncio.run(left(server)) == 0
        stranger = BusFiles(BusKeys.generate())
        with pytest.raises(BusError, match="refuses"):
            asyncio.run(bus_round_trip(stranger, settings, server.ca))


def tried(
    answer: Callable[[Cluster], None], monkeypatch: pytest.MonkeyPatch, seconds: float = 5.0
) -> tuple[list[str], Cluster, str]:
    """A run is tried while ``answer`` does the operator's part, once; lines, cluster, and the verdict."""
    monkeypatch.setattr(trial, "_LOOK", 0.02)
    cluster, lines = Cluster(), list[str]()

    async def operator() -> None:
        while (RUN.name, "team", trial.NAME) not in cluster.objects:
            await asyncio.sleep(0.01)
        answer(cluster)

    async def main() -> str:
        task = asyncio.create_task(operator())
        try:
            return await trial_run(cluster, "team", "esper", lines.append, seconds)
        finally:
            await task

    try:
        verdict = asyncio.run(main())
    except CheckError as error:
        verdict = str(error)
    assert cluster.of(RUN) == [], "it is removed, however it ends"
    return lines, cluster, verdict


def says(**status: object) -> Callable[[Cluster], None]:
    def answer(cluster: Cluster) -> None:
        cluster.change(RUN, trial.NAME, status=status)

    return answer


def test_a_run_is_made_followed_to_its_end_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = {"summary": "1500/1500"}
    lines, cluster, verdict = tried(
        says(phase="Succeeded", progress=progress, result={"weightsDigest": "ab" * 32}), monkeypatch
    )
    assert "Succeeded 1500/1500" in lines[-1]
    assert verdict == "team/esper-test succeeded, weights abababababab; removed"
    assert len([made for made in cluster.made if made[0] == RUN.name]) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            {
                "phase": "Failed",
                "conditions": [
                    {
                        "type": "Failed",
                        "status": "True",
                        "reason": "OutOfMemory",
                        "message": "raise the limit",
                    }
                ],
            },
            r"it is Failed.*OutOfMemory\): raise the limit",
        ),
        ({"phase": "Starting"}, r"not done within 0 s at Starting"),
        ({}, r"nobody has looked at it: the operator does not run"),
        ({"phase": "Succeeded"}, r"does not say with what model"),
    ],
)
def test_a_run_that_does_not_succeed_is_told_of_with_its_reason_and_removed(
    status: Object, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, verdict = tried(says(**status), monkeypatch, seconds=0.2)
    assert re.search(text, verdict), verdict


def test_the_rights_are_those_that_the_chart_gives_and_nothing_on_secrets_but_create() -> None:
    (container,) = dict(pods(objects()))["esper-test-operator"]["containers"]
    (text,) = [e["value"] for e in container["env"] if e["name"] == "ESPER_CHECK_RIGHTS"]
    rights = Rights.read(text)
    assert Right("create", "", "secrets", "") in rights.given
    assert Right("patch", "esper.dev", "morphogeneticruns/status", "") in rights.given
    assert Right("get", "apps", "deployments", NAMESPACE, "esper-operator") in rights.given
    assert Right("get", "", "secrets", NAMESPACE) in rights.refused
    assert Right("list", "", "secrets", "") in rights.refused
    assert not set(rights.given) & set(rights.refused)
    for wrong in ("", "[]", "{}", '[{"namespace": "a"}]'):
        with pytest.raises(InputError, match="ESPER_CHECK_RIGHTS"):
            Rights.read(wrong)


def test_wrong_settings_and_unknown_parts_are_refused_before_anything_is_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["check", "everything"])
    assert ended.value.code == 2
    assert "'everything' is not one of 'rights', 'bus', 'run'" in capsys.readouterr().err
    monkeypatch.setenv("ESPER_OPERATOR_STATUS_WRITES", "many")
    with pytest.raises(SystemExit) as ended:
        command(["check", "bus"])
    assert ended.value.code == 2
    assert "STATUS_WRITES" in capsys.readouterr().err


RBAC = "rbac.authorization.k8s.io/v1"
KINDS = {
    "ServiceAccount": Kind("v1", "ServiceAccount", "serviceaccounts"),
    "ClusterRole": Kind(RBAC, "ClusterRole", "clusterroles"),
    "ClusterRoleBinding": Kind(RBAC, "ClusterRoleBinding", "clusterrolebindings"),
    "Role": Kind(RBAC, "Role", "roles"),
    "RoleBinding": Kind(RBAC, "RoleBinding", "rolebindings"),
}


@pytest.mark.apiserver
def test_the_charts_account_has_its_rights_on_a_real_api_server_and_what_lacks_or_exceeds_is_named(
    plane: ControlPlane, tmp_path: Path
) -> None:
    found = objects()
    (container,) = dict(pods(found))["esper-test-operator"]["containers"]
    (rights,) = [e["value"] for e in container["env"] if e["name"] == "ESPER_CHECK_RIGHTS"]
    kubeconfig = tmp_path / "kubeconfig"

    async def prepared() -> None:
        api = await plane.api()
        try:
            await api.apply(Kind("v1", "Namespace", "namespaces"), {"metadata": {"name": NAMESPACE}})
            for document in found:
                if document["kind"] in KINDS:
                    await api.apply(KINDS[document["kind"]], document)
            kubeconfig.write_text(yaml.safe_dump(await as_account(api, plane, "esper-operator")))
        finally:
            await api.close()

    async def change(kind: str, body: Object) -> None:
        api = await plane.api()
        try:
            await api.apply(KINDS[kind], body)
        finally:
            await api.close()

    def checked() -> tuple[int, str]:
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "operator")]),
            "ESPER_CHECK_RIGHTS": rights,
        }
        done = subprocess.run(
            [sys.executable, "-m", "esper_operator", "check", "rights"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    asyncio.run(prepared())
    code, text = checked()
    assert (code, text[:10]) == (0, "ok      ri"), text
    role = find(found, "ClusterRole", "esper-operator")
    more = role["rules"] + [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    asyncio.run(change("ClusterRole", {**role, "rules": more}))
    code, text = checked()
    assert code == 1
    assert "may get secrets" in text
    assert "get secrets in all namespaces" in text
    less = [rule for rule in role["rules"] if "jobs" not in rule["resources"]]
    asyncio.run(change("ClusterRole", {**role, "rules": less}))
    code, text = checked()
    assert code == 1
    assert "may not get jobs.batch in all namespaces" in text
    assert "rbac.create=true" in text


async def as_account(api: KubeApi, plane: ControlPlane, account: str) -> Object:
    """A kubeconfig with a token of a service account."""
    path = KINDS["ServiceAccount"].path(NAMESPACE, account, "token")
    request = Kind("authentication.k8s.io/v1", "TokenRequest", "")
    body = {"apiVersion": request.version, "kind": request.name, "spec": {"expirationSeconds": 600}}
    answer = await api._call("POST", request, path, None, json.loads(json.dumps(body)))
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": plane.url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "test", "user": {"token": answer["status"]["token"]}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
