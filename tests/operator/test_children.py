"""What is made for a run: valid for every Kubernetes there is, restricted, and as the manifest says."""

from typing import Any

import kubernetes_validate
import pytest

from esper_operator.children import (
    claim_of,
    job_of,
    needs_claim,
    network_policy_of,
    secret_of,
    service_of,
)
from esper_operator.kube import CLAIM, JOB, NETWORK_POLICY, SECRET, SERVICE, Kind, Object
from esper_operator.settings import Settings
from esper_runtime.contracts import MorphogeneticRun, parse_run
from tests.operator.world import manifest

RICH: dict[str, Any] = {
    "training": {"steps": 60, "batchSize": 64, "workers": {"count": 4, "processesPerWorker": 2}},
    "checkpoint": {"graceSeconds": 44.5},
    "queueName": "team",
    "retry": {"limit": 7},
    "template": {
        "image": "mine:1",
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["pull"],
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": 1}},
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [
            {"name": "esper", "mountPath": "/data", "claim": "data", "readOnly": True},
            {"name": "b", "mountPath": "/config", "configMap": "c", "subPath": "x"},
            {"name": "c", "mountPath": "/secret", "secret": "s"},
            {"name": "d", "mountPath": "/scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "e", "mountPath": "/big", "ephemeral": {"size": "10Gi", "storageClassName": "fast"}},
        ],
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "secret": {"name": "s", "key": "k"}},
            {"name": "C", "configMap": {"name": "c", "key": "k"}},
        ],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "fsGroup": 2000,
        "sharedMemory": "8Gi",
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
    },
}
SETTINGS = Settings(
    image="runtime:1",
    image_cuda="cuda:1",
    pull_secrets=("release-pull",),
    priority_training="esper-training",
    storage_class="fast",
)


def resource(**spec: Any) -> Object:
    body = manifest(**spec)
    body["metadata"]["uid"] = "0123abcd-0000-4000-8000-000000000000"
    return body


def parsed(run: dict[str, Any]) -> MorphogeneticRun:
    head = {"name": run["metadata"]["name"]}
    return parse_run({**run, "metadata": head}, "x")


def job(settings: Settings = SETTINGS, **spec: Any) -> Object:
    run = resource(**spec)
    plain = {key: run[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "small"}}
    return job_of(run, parse_run(plain, "x"), 3, "f" * 16, settings)


def pod(made: Object) -> Object:
    spec: Object = made["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("spec", [{}, RICH], ids=["plain", "rich"])
def test_every_child_is_valid(version: str, spec: dict[str, Any]) -> None:
    run = resource(**spec)
    children: list[tuple[Kind, Object]] = [
        (JOB, job(**spec)),
        (SERVICE, service_of(run)),
        (CLAIM, claim_of(run, parsed(run), SETTINGS)),
        (SECRET, secret_of(run, 3, {"bus.json": "{}"})),
        (NETWORK_POLICY, network_policy_of(run, SETTINGS)),
    ]
    for kind, body in children:
        kubernetes_validate.validate(
            {"apiVersion": kind.version, "kind": kind.name, **body}, version, strict=True
        )


@pytest.mark.parametrize("spec", [{}, RICH], ids=["plain", "rich"])
def test_pods_are_restricted_and_hold_no_token(spec: dict[str, Any]) -> None:
    made = pod(job(**spec))
    security = made["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10001, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["automountServiceAccountToken"] is False
    for forbidden in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert forbidden not in made
    for container in made["containers"]:
        own = container["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    allowed = {"name", "secret", "persistentVolumeClaim", "emptyDir", "configMap", "ephemeral"}
    assert all(set(volume) <= allowed for volume in made["volumes"])


def test_the_failure_policy_spends_no_retry_on_resumption_and_disruption_and_stops_what_cannot_work() -> None:
    made = job(**RICH)["spec"]
    assert made["backoffLimit"] == 7
    assert made["podReplacementPolicy"] == "Failed"
    rules = made["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onExitCodes"] == {"containerName": "training", "operator": "In", "values": [75, 76]}
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[2]["onExitCodes"]["values"] == [2, 77]
    assert "ttlSecondsAfterFinished" not in made
    assert pod(job(**RICH))["restartPolicy"] == "Never"


def test_one_pod_for_each_worker_that_finds_the_first_one_by_name() -> None:
    made = job(**RICH)
    assert (made["spec"]["completions"], made["spec"]["parallelism"]) == (4, 4)
    assert made["spec"]["completionMode"] == "Indexed"
    env = {item["name"]: item.get("value") for item in pod(made)["containers"][0]["env"]}
    assert env["ESPER_MASTER"] == "small-3-0.small"
    assert pod(made)["subdomain"] == service_of(resource())["metadata"]["name"] == "small"
    alone = {item["name"] for item in pod(job())["containers"][0]["env"]}
    assert "ESPER_MASTER" not in alone


def test_a_pod_has_time_for_its_last_checkpoint() -> None:
    assert pod(job(**RICH))["terminationGracePeriodSeconds"] == 60
    assert pod(job())["terminationGracePeriodSeconds"] == 45


def test_a_queue_gets_the_job_suspended() -> None:
    made = job(**RICH)
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert job()["spec"]["suspend"] is False


def test_the_image_is_the_manifests_or_the_releases_one_for_its_resources() -> None:
    def image(settings: Settings = SETTINGS, **spec: Any) -> str:
        return str(pod(job(settings, **spec))["containers"][0]["image"])

    gpu = {"template": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
    assert image(**RICH) == "mine:1"
    assert image() == "runtime:1"
    assert image(**gpu) == "cuda:1"
    assert image(Settings(image="runtime:1"), **gpu) == "runtime:1"


def test_labels_of_the_template_do_not_replace_ours() -> None:
    labels = job(**RICH)["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "a"
    assert labels["esper.dev/run"] == "small"
    assert labels["esper.dev/attempt"] == "3"


@pytest.mark.parametrize(
    ("checkpoint", "output", "needed"),
    [
        (None, None, True),
        ("s3://bucket/a", None, True),
        ("s3://bucket/a", "gs://bucket/b", False),
        ("file:///data/a", "s3://bucket/b", True),
        ("/data/a", "/data/b", True),
    ],
)
def test_a_claim_is_made_unless_everything_goes_to_object_stores(
    checkpoint: str | None, output: str | None, needed: bool
) -> None:
    spec = {
        name: {"uri": uri}
        for name, uri in (("checkpoint", checkpoint), ("output", output))
        if uri is not None
    }
    run = resource(**spec)
    plain = {key: run[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "small"}}
    assert needs_claim(parse_run(plain, "x")) is needed
    data = next(volume for volume in pod(job(**spec))["volumes"] if volume["name"] == "data")
    assert ("persistentVolumeClaim" in data) is needed


def test_pods_of_one_run_reach_each_other_and_no_pod_of_another_run() -> None:
    run = resource()
    body = network_policy_of(run, SETTINGS)
    own = {"podSelector": {"matchLabels": {"esper.dev/run-uid": run["metadata"]["uid"]}}}
    assert body["spec"]["podSelector"] == own["podSelector"]
    labels = job()["spec"]["template"]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    assert body["spec"]["ingress"][0] == {"from": [own]}
    assert body["spec"]["egress"][0] == {"to": [own]}
    others = [peer for rule in body["spec"]["egress"] for peer in rule.get("to", ()) if peer != own]
    assert all("namespaceSelector" in peer or "except" in peer["ipBlock"] for peer in others)


def test_owned_by_the_run_and_never_blocking_its_deletion() -> None:
    for body in (
        job(),
        service_of(resource()),
        claim_of(resource(), parsed(resource()), SETTINGS),
        secret_of(resource(), 1, {}),
        network_policy_of(resource(), SETTINGS),
    ):
        owner = body["metadata"]["ownerReferences"][0]
        assert owner["uid"] == resource()["metadata"]["uid"]
        assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, False)
        assert "finalizers" not in body["metadata"]
