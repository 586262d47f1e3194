"""A manifest becomes a run, or one error that names every wrong field."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper_runtime.contracts import (
    API_VERSION,
    KIND,
    KUBERNETES_ONLY,
    ManifestError,
    MorphogeneticRun,
    load_run,
    manifest_reference,
    nearest,
    notices,
    parse_run,
)

ROOT = Path(__file__).resolve().parents[2]

GOOD: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "one"},
    "spec": {
        "host": {"builtin": "mlp", "args": {"hidden": [8]}},
        "task": {"builtin": "digits"},
        "training": {"steps": 10},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one field set."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = data
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return data


def refusal(data: object) -> str:
    with pytest.raises(ManifestError) as error:
        parse_run(data, "run.yaml")
    return str(error.value)


def test_a_good_manifest_has_its_defaults_and_survives_a_round_trip() -> None:
    run = parse_run(GOOD, "run.yaml")
    assert run.spec.training.batch_size == 100
    assert run.spec.host.args == {"hidden": [8]}
    assert parse_run(run.model_dump(mode="json", by_alias=True), "again") == run


def test_every_wrong_field_is_listed_at_once() -> None:
    data = changed("spec.training.batchSize", 0)
    data["spec"]["growht"] = {}
    data["spec"]["growth"] = {"controller": {"kind": "heuristic"}}
    del data["metadata"]["name"]
    message = refusal(data)
    assert message.startswith("run.yaml: 4 fields are wrong\n")
    assert "spec.training.batchSize: given 0; allowed: a whole number from 1 to 1000000" in message
    assert "spec.growht: unknown field, given {}; nearest known name: 'growth'" in message
    assert 'spec.growth.controller.kind: given "heuristic"; allowed: one of Heuristic, Off' in message
    assert "metadata.name: missing; needed: 1 to 40 lower-case letters" in message


def test_a_field_in_the_wrong_place_is_sent_to_the_right_one() -> None:
    assert "nearest known name: 'spec.training.batchSize'" in refusal(changed("spec.batchSize", 5))


def test_snake_case_is_not_a_second_spelling() -> None:
    message = refusal(changed("spec.training.batch_size", 5))
    assert "spec.training.batch_size: unknown field, given 5; nearest known name: 'batchSize'" in message


def test_types_are_strict_as_on_kubernetes() -> None:
    for value, shown in (("100", '"100"'), (True, "true"), (1.5, "1.5"), (None, "null"), ([1], "[1]")):
        message = refusal(changed("spec.training.batchSize", value))
        assert f"spec.training.batchSize: given {shown}; allowed: a whole number" in message


def test_a_union_is_described_once_with_all_its_members() -> None:
    message = refusal(changed("spec.growth.budget.parameters", "two"))
    assert message.startswith("run.yaml: 1 field is wrong\n")
    assert 'given "two"; allowed: a factor such as 2x or 1.5x, or a whole number of at least 1' in message


def test_a_long_value_is_shortened_in_the_message() -> None:
    message = refusal(changed("metadata.name", "x" * 5000))
    assert len(message) < 400


def test_python_values_that_json_cannot_carry_are_refused() -> None:
    assert "cannot carry" in refusal(changed("spec.host.args", {"x": {1, 2}}))
    assert "cannot carry" in refusal(changed("spec.host.args", {"x": float("nan")}))
    assert refusal([GOOD]).startswith("run.yaml: given [")


def test_fields_of_kubernetes_are_accepted_and_named() -> None:
    data = changed("spec.queueName", "gpu")
    data["spec"] |= {"template": {"image": "x"}, "ttlSecondsAfterFinished": 60, "suspend": False}
    data["metadata"] |= {"namespace": "team-a", "labels": {"a": "b"}, "annotations": {}}
    named = [line.split(":")[0] for line in notices(parse_run(data, "run.yaml"))]
    assert named == [
        "metadata.namespace",
        "metadata.labels",
        "spec.template",
        "spec.queueName",
        "spec.suspend",
        "spec.ttlSecondsAfterFinished",
    ]
    assert notices(parse_run(GOOD, "run.yaml")) == []


def test_every_field_said_to_be_for_kubernetes_exists() -> None:
    assert set(KUBERNETES_ONLY) <= set(type(parse_run(GOOD, "x").spec).model_fields)


def test_the_nearest_name_ignores_case_and_separators() -> None:
    assert nearest("learning-rate", ["learningRate", "momentum"]) == "learningRate"
    assert nearest("Steps", ["steps"]) == "steps"
    assert nearest("zebra", ["steps", "epochs"]) is None


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_good_manifests(path: Path) -> None:
    assert load_run(path).metadata.name


def test_the_reference_names_every_field_with_its_bounds_and_default() -> None:
    page = manifest_reference()
    assert "| `batchSize` | a whole number from 1 to 1000000 | 100 |" in page
    assert (
        "| `optimizer.betas` | a list of 2, each a number of at least 0 and below 1 | [0.9, 0.999] |" in page
    )
    assert "| `host` |" not in page
    for name in _leaf_names(MorphogeneticRun.model_json_schema(by_alias=True)):
        assert f"{name}`" in page, name


def _leaf_names(schema: dict[str, Any]) -> set[str]:
    models = [schema, *schema["$defs"].values()]
    holders = {
        "spec",
        "metadata",
        "host",
        "task",
        "training",
        "growth",
        "checkpoint",
        "output",
        "budget",
        "innovation",
    }
    holders |= {"optimizer", "schedule", "validation", "workers", "controller", "slots", "blueprints"}
    holders |= {
        "lifecycle",
        "gates",
        "kernels",
        "template",
        "resources",
        "emptyDir",
        "ephemeral",
        "deadlines",
        "retry",
    }
    return {name for model in models for name in model.get("properties", {})} - holders


def test_the_generated_page_of_the_manifest_is_up_to_date() -> None:
    assert (ROOT / "docs" / "manifest.md").read_text() == manifest_reference(), "run `make docs`"


def test_yaml_and_python_give_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_run(path) == parse_run(GOOD, "x")


@pytest.mark.parametrize(
    ("selector", "allowed"),
    [
        ({}, True),
        ({"include": ["low-rank", "karn-*"]}, True),
        ({"include": ["karn-0*"]}, True),
        ({"include": ["karn-abc*"]}, True),
        ({"include": ["karn-0123456789ab"]}, True),
        ({"include": ["karn-0123456789abc"]}, False),
        ({"include": ["low-rank", "mlp-*"]}, False),
        ({"exclude": ["karn-*"]}, False),
        ({"exclude": ["k*"]}, False),
        ({"exclude": ["karn-[0-9]*"]}, True),
        ({"exclude": ["karn-[0-9]*", "karn-[a-f]*"]}, False),
    ],
)
def test_who_asks_for_inventions_must_allow_some(selector: dict[str, Any], allowed: bool) -> None:
    data = changed("spec.growth.blueprints", selector)
    assert parse_run(data, "run.yaml"), "who does not ask may exclude them"
    data["spec"]["innovation"] = {"enabled": True}
    if allowed:
        assert parse_run(data, "run.yaml").spec.innovation.enabled
    else:
        said = refusal(data)
        assert "spec" in said
        assert "'growth.blueprints' allows no blueprint that is invented" in said
        assert "give 'karn-*' in 'growth.blueprints.include'" in said
