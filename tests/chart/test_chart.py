"""The chart, rendered with many value sets: valid, restricted, and nothing in it points nowhere."""

import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import HelmError, lint

from esper_operator.main import command
from esper_operator.settings import Settings, bytes_of
from esper_runtime.contracts import crd_documents
from esper_runtime.planning import TARGET, WORKERS
from tests.chart.rendering import CHART, NAMESPACE, ROOT, Document, find, objects, pods, rendered, rules

CUDA_POOL = {
    "name": "a100",
    "device": "cuda",
    "tezzeret": 2,
    "urabrask": 2,
    "karn": 0,
    "nodeSelector": {"gpu": "a100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}},
}
DIGEST = "sha256:" + "0" * 64
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "namespaced": {"watch": {"namespaces": ["team-a", "team-b"]}},
    "three-servers": {"nats": {"replicas": 3, "storage": {"kind": "Claim", "storageClassName": "fast"}}},
    "no-claim": {"nats": {"storage": {"kind": "EmptyDir", "size": "12Gi"}}},
    "own-bus": {"nats": {"deploy": False, "url": "tls://nats.example.com:4333", "busSecret": "my-bus"}},
    "mirror": {
        "image": {
            "registry": "registry.example.com:5000/mirror",
            "pullSecrets": ["regcred"],
            "operator": {"digest": DIGEST},
            "runtime": {"tag": "v9"},
        }
    },
    "pools": {"pools": [{"name": "cpu", "device": "cpu"}, CUDA_POOL]},
    "placed": {
        "operator": {
            "replicas": 2,
            "nodeSelector": {"role": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podLabels": {"team": "ml"},
            "podAnnotations": {"note": "x"},
            "priorityClassName": "high",
        },
        "nats": {"nodeSelector": {"role": "system"}, "tolerations": [{"operator": "Exists"}], "tls": False},
    },
    "nothing-extra": {
        "crds": {"install": False},
        "rbac": {"create": False, "aggregate": False},
        "serviceAccount": {"create": False, "name": "given"},
        "networkPolicies": {"enabled": False},
        "priorityClasses": {"create": False, "training": "t", "workers": "w"},
        "metrics": {"serviceMonitor": False, "podMonitor": False, "rules": False, "dashboard": False},
    },
    "crds-go-too": {"crds": {"keep": False}},
}
every = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


@every
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_object_is_valid(values: dict[str, Any], version: str) -> None:
    found = objects(values)
    assert len(found) >= 5
    for document in found:
        if not document["apiVersion"].startswith("monitoring.coreos.com"):
            kubernetes_validate.validate(document, version, strict=True)


def test_helm_finds_nothing_to_complain_about() -> None:
    messages = lint(CHART, strict=True, kube_version="v1.30.0")["messages"]
    assert [m["error"] for m in messages] == ["icon is recommended"]


@every
def test_every_pod_is_restricted(values: dict[str, Any]) -> None:
    """What the `restricted` Pod Security Standard asks for, and a root file system that cannot be written."""
    seen = 0
    for name, spec in pods(objects(values)):
        seen += 1
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all(set(v) <= {"name", "secret", "emptyDir", "configMap"} for v in spec["volumes"]), name
        assert ("serviceAccountName" in spec) == spec["automountServiceAccountToken"], name
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
    assert seen >= 1


@every
def test_on_secrets_the_operator_may_create_and_nothing_else(values: dict[str, Any]) -> None:
    for role, rule in rules(objects(values)):
        assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"], role
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["create"], role


def test_no_right_of_the_operator_reaches_past_the_watched_namespaces() -> None:
    found = objects(VALUE_SETS["namespaced"])
    roles = {d["metadata"]["namespace"] for d in found if d["kind"] == "Role"}
    assert roles == {NAMESPACE, "team-a", "team-b"}
    assert not [d for d in found if d["kind"] == "ClusterRoleBinding"]


@every
def test_what_is_referred_to_is_there(values: dict[str, Any]) -> None:
    found = objects(values)
    accounts = {d["metadata"]["name"] for d in found if d["kind"] == "ServiceAccount"} | {"given"}
    classes = {d["metadata"]["name"] for d in found if d["kind"] == "PriorityClass"} | {"high", "t", "w"}
    named = {(d["kind"], d["metadata"]["name"]): d for d in found}
    for _, spec in pods(found):
        assert spec.get("serviceAccountName") in accounts | {None}
        assert spec.get("priorityClassName") in classes | {None}
        volumes = {volume["name"] for volume in spec["volumes"]}
        if "volumeClaimTemplates" in named.get(("StatefulSet", "esper-nats"), {}).get("spec", {}):
            volumes.add("data")
        for container in spec["containers"]:
            ports = {port["name"] for port in container.get("ports", [])}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            probes = [container[p] for p in container if p.endswith("Probe")]
            assert {probe["httpGet"]["port"] for probe in probes} <= ports
    for document in found:
        if document["kind"] == "Service":
            assert _selected(document["spec"]["selector"], found), document["metadata"]["name"]
        if document["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert (document["roleRef"]["kind"], document["roleRef"]["name"]) in named
        if document["kind"] == "StatefulSet":
            assert ("Service", document["spec"]["serviceName"]) in named


def _selected(labels: dict[str, str], found: list[Document]) -> list[Document]:
    templates = [d["spec"]["template"] for d in found if d["kind"] in ("Deployment", "StatefulSet")]
    return [t for t in templates if labels.items() <= t["metadata"]["labels"].items()]


def test_commands_and_images_are_those_of_the_project() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    commands = {c["command"][0] for _, spec in pods(objects()) for c in spec["containers"]}
    assert commands == {"esper-operator", "nats-server"}
    assert "esper-operator" in scripts
    dockerfile = (ROOT / "images" / "Dockerfile").read_text()
    for name in ("operator", "runtime", "runtime-cuda"):
        assert f" AS {name}\n" in dockerfile


def test_the_operator_knows_every_variable_that_the_chart_sets() -> None:
    (container,) = dict(pods(objects()))["esper-operator"]["containers"]
    given = {e["name"]: e.get("value", "some-pod") for e in container["env"]}
    settings = Settings.from_environment(given)
    assert settings.nats_url == "tls://esper-nats.esper-system.svc:4222"
    assert settings.pools[0].name == "cpu"


def test_a_digest_wins_over_a_tag_and_a_registry_goes_first() -> None:
    (container,) = dict(pods(objects(VALUE_SETS["mirror"])))["esper-operator"]["containers"]
    assert container["image"] == f"registry.example.com:5000/mirror/esper/operator@{DIGEST}"
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["ESPER_OPERATOR_IMAGE"] == "registry.example.com:5000/mirror/esper/runtime:v9"
    assert environment["ESPER_OPERATOR_PULL_SECRETS"] == "regcred"


def test_the_definitions_are_those_of_the_contracts_and_stay() -> None:
    found = {d["metadata"]["name"]: d for d in objects() if d["kind"] == "CustomResourceDefinition"}
    assert len(found) == 3
    for wanted in crd_documents().values():
        chart = found[wanted["metadata"]["name"]]
        assert chart["spec"] == wanted["spec"]
        assert chart["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    gone = [d for d in objects(VALUE_SETS["crds-go-too"]) if d["kind"] == "CustomResourceDefinition"]
    assert len(gone) == 3
    assert not any(d["metadata"].get("annotations") for d in gone)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"natz": {}}, "natz"),
        ({"operator": {"replica": 2}}, "replica"),
        ({"operator": {"statusWritesPerSecond": 50}}, "statusWritesPerSecond"),
        ({"nats": {"replicas": 2}}, "replicas"),
        ({"nats": {"deploy": False}}, "url"),
        ({"nats": {"url": "http://x"}}, "url"),
        ({"pools": [{"name": "x"}]}, "device"),
        ({"pools": [{"name": "x", "device": "tpu"}]}, "device"),
        ({"image": {"operator": {"digest": "sha256:12"}}}, "digest"),
        ({"watch": {"namespaces": ["Team A"]}}, "namespaces"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        rendered(values)


def test_every_value_is_used_and_every_default_passes_the_schema() -> None:
    text = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    for group, values in yaml.safe_load((CHART / "values.yaml").read_text()).items():
        for name in values if isinstance(values, dict) else ():
            assert f"Values.{group}.{name}" in text, f"{group}.{name}"


def test_the_notes_say_how_to_watch_and_what_stays() -> None:
    notes = rendered()["esper/templates/NOTES.txt"]
    assert "kubectl get mrun -w" in notes
    assert "helm uninstall esper -n esper-system" in notes
    no_claim = rendered(VALUE_SETS["no-claim"])["esper/templates/NOTES.txt"]
    assert "emptyDir" in no_claim
    assert "claims of the bus" not in no_claim


def test_the_notes_say_that_the_size_of_the_bus_counts_once_and_where_to_read_how_to_enlarge_it() -> None:
    bigger = rendered({"nats": {"storage": {"kind": "Claim", "size": "20Gi"}}})["esper/templates/NOTES.txt"]
    assert "Each server of the bus has 20Gi" in bigger
    assert "counts at the first start only" in bigger
    assert "docs/kubernetes.md (The bus's storage)" in bigger
    assert "### The bus's storage" in (ROOT / "docs" / "kubernetes.md").read_text()
    for name in ("no-claim", "own-bus"):
        assert "first start only" not in rendered(VALUE_SETS[name])["esper/templates/NOTES.txt"]


def test_operator_bus_and_a_worker_of_each_role_fit_on_a_node_of_two_cpus_and_4_gib() -> None:
    """With room for what each cluster runs itself, and a training that asks for nothing."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    (pool,) = values["pools"]
    asked = [values["operator"]["resources"]["requests"], values["nats"]["resources"]["requests"]]
    asked += [pool["resources"]["requests"]] * sum(pool[role.value] for role in WORKERS)
    assert sum(pool[role.value] for role in WORKERS) == 3
    assert sum(_cpus(each["cpu"]) for each in asked) <= 1.2
    assert sum(bytes_of(each["memory"]) for each in asked) <= 3.5 * 2**30


def _cpus(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def test_the_bus_waits_for_its_keys_and_keeps_its_data() -> None:
    spec = find(objects(), "StatefulSet", "esper-nats")["spec"]
    (config,) = spec["template"]["spec"]["volumes"]
    assert config["secret"]["secretName"] == "esper-nats"
    assert "optional" not in config["secret"]
    assert spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "10Gi"
    operator = dict(pods(objects()))["esper-operator"]
    bus = next(v for v in operator["volumes"] if v["name"] == "bus")
    assert bus["secret"] == {"secretName": "esper-bus", "optional": True, "defaultMode": 0o440}


@every
def test_helm_test_leaves_nothing_and_its_account_goes_with_the_release(values: dict[str, Any]) -> None:
    """Helm removes no hooks at an uninstallation, so only pods are hooks, and those go when they succeed."""
    found = objects(values)
    hooks = {
        d["metadata"]["name"]: d for d in found if "helm.sh/hook" in d["metadata"].get("annotations", {})
    }
    assert set(hooks) == {"esper-test-operator", "esper-test-run"}
    for name, document in hooks.items():
        assert document["kind"] == "Pod"
        notes = document["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "test"
        assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert document["spec"]["restartPolicy"] == "Never", name
    account = hooks["esper-test-operator"]["spec"]["serviceAccountName"]
    operator = dict(pods(found))["esper-operator"]
    assert account == operator["serviceAccountName"], "it asks about the operator's own rights"
    assert hooks["esper-test-run"]["spec"]["serviceAccountName"] == "esper-test"


def test_the_account_of_helm_test_may_make_a_run_in_one_watched_namespace_and_no_more() -> None:
    for values, namespace in ((VALUE_SETS["default"], NAMESPACE), (VALUE_SETS["namespaced"], "team-a")):
        found = objects(values)
        role = find(found, "Role", "esper-test")
        assert role["metadata"]["namespace"] == namespace
        assert {resource for rule in role["rules"] for resource in rule["resources"]} == {
            "morphogeneticruns",
            "events",
        }
        bindings = [
            d["metadata"]["name"]
            for d in found
            if d["kind"].endswith("Binding") and d["subjects"][0]["name"] == "esper-test"
        ]
        assert bindings == ["esper-test"]
        (container,) = dict(pods(found))["esper-test-run"]["containers"]
        assert container["command"][-1] == namespace


def test_commands_of_the_test_pods_are_the_operators() -> None:
    found = dict(pods(objects()))
    for name in ("esper-test-operator", "esper-test-run"):
        (container,) = found[name]["containers"]
        group, *words = container["command"][1:]
        assert command.commands[group].make_context(group, list(words), obj=Settings()).params["parts"]


@every
def test_the_notes_list_what_stays_and_only_what_there_is(values: dict[str, Any]) -> None:
    found = objects(values)
    notes = rendered(values)["esper/templates/NOTES.txt"]
    left = notes[notes.index("leaves exactly this") :]
    bus = [d for d in found if d["kind"] == "StatefulSet"]
    assert ("claims of the bus" in left) == any("volumeClaimTemplates" in d["spec"] for d in bus)
    kept = [d for d in found if d["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"]
    assert {d["kind"] for d in kept} <= {"CustomResourceDefinition"}
    made = [d for d in found if d["kind"] == "CustomResourceDefinition"]
    assert ("- the definitions" in left) == (bool(kept) or not made)
    assert ("kubectl delete crd" in left) == ("- the definitions" in left)
    for hook in (d for d in found if "helm.sh/hook" in d["metadata"].get("annotations", {})):
        assert hook["metadata"]["name"] in left


@every
def test_what_of_the_library_is_shown_may_be_written_in_the_releases_namespace_alone(
    values: dict[str, Any],
) -> None:
    writes = {"create", "patch", "update", "delete"}
    for document in objects(values):
        if document["kind"] not in ("Role", "ClusterRole") or "operator" not in document["metadata"]["name"]:
            continue
        for rule in document["rules"]:
            if {"blueprints", "compiledkernels", "compiledkernels/status"} & {*rule["resources"]}:
                own = document["metadata"]["name"] == "esper-operator-own"
                assert own or not writes & {*rule["verbs"]} or rule["resources"][-1] == "blueprints/status"
                assert not own or document["metadata"]["namespace"] == NAMESPACE


def test_the_policies_of_the_releases_pods_are_those_of_the_workers_that_the_operator_makes() -> None:
    found = objects()
    workers = find(found, "NetworkPolicy", "esper-workers")["spec"]
    (roles,) = workers["podSelector"]["matchExpressions"]
    assert {role.value for role in WORKERS} <= {*roles["values"]}
    target = find(found, "NetworkPolicy", "esper-target")["spec"]
    assert target["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == TARGET
    assert target["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & target.keys()
