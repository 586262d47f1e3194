"""The custom resource definitions refuse what the contracts refuse, and are what the API server takes."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import Blueprint, ManifestError, crd_documents, parse_run
from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.crds import structural
from esper_runtime.contracts.resources import (
    ADAPTATIONS_SHOWN,
    STATUS_BYTES,
    Adaptation,
    Condition,
    RunStatus,
)
from tests.cli.manifests import ABSENT, changed
from tests.cli.test_bad_inputs import FIELDS
from tests.contracts.apiserver import admit, with_defaults, wrong_defaults

ROOT = Path(__file__).resolve().parents[2]
RUN, BLUEPRINT, KERNEL = (
    crd_documents()[f"esper.dev_{plural}.yaml"]
    for plural in ("morphogeneticruns", "blueprints", "compiledkernels")
)
TYPES = ("object", "array", "string", "integer", "number", "boolean")
CLAIM = {"name": "data", "mountPath": "/data", "claim": "data"}

TEMPLATES: list[tuple[str, Any, str]] = [
    ("volumes", [CLAIM | {"hostPath": "/"}], "hostPath"),
    ("volumes", [{"name": "data", "mountPath": "/data"}], "give exactly one of claim"),
    ("volumes", [CLAIM | {"secret": "mine"}], "give exactly one of claim"),
    ("volumes", [{"name": "s", "mountPath": "/s", "secret": "esper-nats"}], "operator's own"),
    ("volumes", [{"name": "p", "mountPath": "/p", "projected": {"sources": []}}], "projected"),
    ("volumes", [CLAIM | {"mountPath": "/"}], "mountPath"),
    ("volumes", [CLAIM | {"mountPath": "data"}], "mountPath"),
    ("volumes", [CLAIM, CLAIM | {"mountPath": "/other"}], "same name"),
    ("volumes", [CLAIM, CLAIM | {"name": "other"}], "same mountPath"),
    ("volumes", [CLAIM | {"subPath": "../up"}], "subPath"),
    ("volumes", [{"name": "e", "mountPath": "/e", "ephemeral": {}}], "size"),
    ("volumes", [{"name": "e", "mountPath": "/e", "emptyDir": {"sizeLimit": "much"}}], "sizeLimit"),
    ("env", [{"name": "RANK", "value": "1"}], "set by Esper"),
    ("env", [{"name": "ESPER_BUS", "value": "x"}], "set by Esper"),
    ("env", [{"name": "A"}], "give exactly one of value"),
    ("env", [{"name": "A", "secret": {"name": "esper-keys", "key": "k"}}], "operator's own"),
    ("env", [{"name": "1A", "value": "x"}], "name"),
    ("image", "two words", "image"),
    ("imagePullPolicy", "Sometimes", "imagePullPolicy"),
    ("resources", {"limits": {"cpu": "lots"}}, "cpu"),
    ("tolerations", [{"operator": "In"}], "operator"),
    ("nodeSelector", {"zone": "not a label"}, "zone"),
    ("serviceAccountName", "admin", "serviceAccountName"),
    ("securityContext", {"privileged": True}, "securityContext"),
    ("fsGroup", 0, "fsGroup"),
]

ELSEWHERE: list[tuple[str, Any, str]] = [
    ("spec.queueName", "Not A Label", "queueName"),
    ("spec.deadlines.activeSeconds", 1, "activeSeconds"),
    ("spec.deadlines", {"seconds": 10}, "seconds"),
    ("spec.retry.limit", -1, "limit"),
    ("spec.retry.restarts", 0, "restarts"),
    ("spec.ttlSecondsAfterFinished", -1, "ttlSecondsAfterFinished"),
    ("spec.suspend", "yes", "suspend"),
    ("spec.training.workers", {"count": 3}, "multiple of"),
]
BY_ANY_SERVER = ("apiVersion", "kind", "metadata", "metadata.labels")
"""What every API server checks by itself, without the definition; so it does that there is a name."""
BAD_RUNS = (
    [
        (path, given, "")
        for path, given, _ in FIELDS
        if path not in BY_ANY_SERVER and (path, given) != ("metadata.name", ABSENT)
    ]
    + [(f"spec.template.{name}", given, said) for name, given, said in TEMPLATES]
    + ELSEWHERE
)


def _examples() -> list[Path]:
    return sorted(ROOT.glob("examples/**/*.yaml"))


@pytest.mark.parametrize("path", _examples(), ids=lambda path: path.name)
def test_the_examples_are_admitted(path: Path) -> None:
    definition = BLUEPRINT if path.parent.name == "blueprints" else RUN
    assert admit(definition, yaml.safe_load(path.read_text())) == []


def test_there_are_more_than_sixty_bad_manifests() -> None:
    assert len(BAD_RUNS) > 60


@pytest.mark.parametrize(
    ("path", "given", "said"), BAD_RUNS, ids=[f"{n}-{path}" for n, (path, _, _) in enumerate(BAD_RUNS)]
)
def test_a_bad_manifest_is_refused_at_apply_and_by_the_command_line(path: str, given: Any, said: str) -> None:
    data = changed((path, given))
    reasons = admit(RUN, data)
    assert reasons, "the API server would take it"
    assert said in " ".join(reasons)
    with pytest.raises(ManifestError) as refusal:
        parse_run(data, "x")
    assert said in str(refusal.value)


def test_a_manifest_with_everything_in_its_template_is_admitted() -> None:
    data = changed()
    data["spec"]["template"] = {
        "image": "registry.example/esper@sha256:" + "0" * 64,
        "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"nvidia.com/gpu": 1}},
        "nodeSelector": {"kind": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [
            CLAIM,
            {"name": "scratch", "mountPath": "/scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "big", "mountPath": "/big", "ephemeral": {"size": "10Gi"}},
            {"name": "mine", "mountPath": "/mine", "secret": "mine", "readOnly": True},
        ],
        "env": [{"name": "A", "value": "b"}, {"name": "B", "secret": {"name": "mine", "key": "k"}}],
    }
    data["spec"] |= {"queueName": "team", "deadlines": {"activeSeconds": 3600}, "retry": {"limit": 0}}
    assert admit(RUN, data) == []
    parse_run(data, "x")


@pytest.mark.parametrize(
    ("path", "given", "allowed"),
    [
        ("spec.host.builtin", "cnn1d", False),
        ("spec.task.builtin", "mnist1d", False),
        ("spec.training.randomSeed", 7, False),
        ("spec.training.steps", 50, True),
        ("spec.suspend", True, True),
        ("spec.template", {"image": "other"}, True),
    ],
)
def test_only_what_may_change_changes(path: str, given: Any, allowed: bool) -> None:
    before = changed()
    reasons = admit(RUN, changed((path, given)), before)
    assert (reasons == []) is allowed, reasons
    assert allowed or "does not change" in reasons[0]


def _blueprint(graph: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": "mine"},
        "spec": {"graph": graph},
    }


GRAPH = next(iter(catalogue().values())).model_dump(mode="json", by_alias=True, exclude_none=True)


def test_every_blueprint_of_the_catalogue_is_admitted_as_a_resource() -> None:
    for blueprint in catalogue().values():
        graph = blueprint.model_dump(mode="json", by_alias=True, exclude_none=True)
        assert admit(BLUEPRINT, _blueprint(graph)) == [], blueprint.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": []}, "nodes"),
        ({"nodes": GRAPH["nodes"] * 20}, "nodes"),
        ({"output": "nowhere"}, "graph.output"),
        ({"interface": "video"}, "interface"),
        ({"name": "Not A Name"}, "name"),
        ({"nodes": [*GRAPH["nodes"], GRAPH["nodes"][0]]}, "same id"),
        ({"nodes": [GRAPH["nodes"][0] | {"inputs": ["absent"]}, *GRAPH["nodes"][1:]]}, "reads an input"),
        ({"nodes": [GRAPH["nodes"][0] | {"id": "Node 1"}, *GRAPH["nodes"][1:]]}, "id"),
        ({"code": "import os"}, "code"),
    ],
)
def test_a_bad_graph_is_refused_at_apply(change: dict[str, Any], said: str) -> None:
    assert said in " ".join(admit(BLUEPRINT, _blueprint(GRAPH | change)))


def test_a_blueprint_does_not_change() -> None:
    before = _blueprint(GRAPH)
    assert admit(BLUEPRINT, copy.deepcopy(before), before) == []
    after = _blueprint(GRAPH | {"description": "another"})
    assert "does not change" in admit(BLUEPRINT, after, before)[0]


def test_defaults_of_the_definition_are_those_of_the_contract() -> None:
    data = changed()
    schema = RUN["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    filled = with_defaults(schema, copy.deepcopy(data))
    assert parse_run(filled, "x") == parse_run(data, "x")
    assert filled["spec"]["growth"]["budget"]["parameters"] == "2x"


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _schemas(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _schemas(schema[key], f"{path}.{key}")


@pytest.mark.parametrize("definition", [RUN, BLUEPRINT, KERNEL], ids=lambda d: d["spec"]["names"]["kind"])
def test_schemas_are_structural_bounded_and_explained(definition: dict[str, Any]) -> None:
    root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in ("spec", "status"):
        for path, schema in _schemas(root["properties"][part], part):
            free = schema.get("x-kubernetes-preserve-unknown-fields") is True
            either = schema.get("x-kubernetes-int-or-string") is True
            assert (
                free
                or either
                or schema.get("type") in ("object", "array", "string", "integer", "number", "boolean")
            ), path
            assert not {"$ref", "oneOf", "allOf", "title", "const"} & schema.keys(), path
            assert schema.get("default", 0) is not None, path
            if schema.get("type") == "string":
                assert {"maxLength", "enum", "format"} & schema.keys(), path
            if schema.get("type") == "array":
                assert "maxItems" in schema, path
            if "additionalProperties" in schema:
                assert "maxProperties" in schema, path
            assert not ("properties" in schema and "additionalProperties" in schema), path
            if path.rsplit(".", 1)[-1] not in ("items", "additionalProperties"):
                assert schema.get("description"), f"{path}: kubectl explain would say nothing"


def test_columns_select_conditions_by_type_and_lead_to_fields_that_exist() -> None:
    for definition in (RUN, BLUEPRINT, KERNEL):
        version = definition["spec"]["versions"][0]
        for column in version["additionalPrinterColumns"]:
            path = column["jsonPath"]
            if "conditions" in path:
                assert '?(@.type=="' in path, path
                continue
            schema = version["schema"]["openAPIV3Schema"]
            for name in path.strip(".").split("."):
                if name == "metadata":
                    break
                schema = schema["properties"][name]


def test_a_largest_status_stays_within_its_bound() -> None:

    condition = Condition(
        type="Degraded",
        status="True",
        reason="R" * 64,
        message="m" * 1000,
        last_transition_time="2026-01-01T00:00:00Z",
    )
    adaptation = Adaptation(step=10**8, seed="s" * 128, slot="s" * 300, blueprint="b" * 128, reason="r" * 300)
    status = RunStatus(conditions=(condition,) * 9, adaptations=(adaptation,) * ADAPTATIONS_SHOWN)
    assert len(status.model_dump_json(by_alias=True)) < STATUS_BYTES


def test_what_has_no_bound_is_an_error_that_names_the_place() -> None:
    class Inner(ContractModel):
        text: str

    class Outer(ContractModel):
        inner: Inner

    with pytest.raises(ValueError, match=r"Outer\.inner\.text"):
        structural(Outer)


def test_a_graph_that_the_definition_admits_is_read_as_the_same_blueprint() -> None:
    schema = BLUEPRINT["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    filled = with_defaults(schema, {"graph": copy.deepcopy(GRAPH)})
    assert Blueprint.model_validate(filled["graph"]) == Blueprint.model_validate(GRAPH)
    with pytest.raises(ValidationError):
        Blueprint.model_validate(filled["graph"] | {"code": "import os"})


@pytest.mark.parametrize("definition", [RUN, BLUEPRINT, KERNEL], ids=["run", "blueprint", "kernel"])
def test_every_default_holds_as_it_stands(definition: dict[str, Any]) -> None:
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert list(wrong_defaults(schema)) == []
