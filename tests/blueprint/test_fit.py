"""What fits which slot, and why the rest does not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esper_runtime.blueprint import catalogue, cost, load_blueprint, misfit, parse_blueprint
from esper_runtime.blueprint.widths import Width
from esper_runtime.contracts import BlueprintError, InputError, InterfaceKind
from tests.blueprint.broken import plain
from tests.blueprint.graphs import KINDS, fitting_slots, residual_slot, span_slot

ENTRIES = catalogue()
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "blueprints" / "gated.yaml"


def test_every_entry_fits_its_own_slots_and_none_of_another_kind() -> None:
    for blueprint in ENTRIES.values():
        for slot in fitting_slots(blueprint):
            assert misfit(blueprint, slot) is None
        for kind in KINDS:
            if kind is not blueprint.interface:
                other = span_slot(kind, 8, 8) if blueprint.span else residual_slot(kind, 8)
                assert str(kind) in str(misfit(blueprint, other))


@pytest.mark.parametrize(
    "needed",
    [
        "widen-linear",
        "widen-linear-bn",
        "widen-linear-tokens",
        "widen-conv",
        "widen-conv-bn",
        "widen-conv-image",
        "widen-conv-bn-image",
        "low-rank",
        "bottleneck",
        "bottleneck-bn",
        "conv-pair",
        "mlp",
        "mlp-bn",
        "gated-mlp",
        "depthwise-bn",
        "dilated-bn",
        "separable-bn",
        "squeeze-excite",
        "norm-scale",
        "attention",
        "causal-attention",
    ],
)
def test_the_catalogue_has_what_the_design_names(needed: str) -> None:
    assert needed in ENTRIES


def test_a_causal_slot_takes_causal_blueprints_only_and_some_exist() -> None:
    for kind in (InterfaceKind.TOKENS, InterfaceKind.SEQUENCE):
        slot = residual_slot(kind, 8, causal=True)
        mine = [b for b in ENTRIES.values() if b.interface is kind and not b.span]
        assert {b.causal for b in mine if misfit(b, slot) is None} == {True}
        refused = next(b for b in mine if not b.causal)
        assert "causal" in str(misfit(refused, slot))


def test_widenings_need_a_span_and_a_span_needs_them() -> None:
    assert "span" in str(misfit(ENTRIES["widen-linear"], residual_slot(InterfaceKind.FEATURES, 8)))
    assert "span" in str(misfit(ENTRIES["mlp"], span_slot(InterfaceKind.FEATURES, 8, 8)))


@pytest.mark.parametrize("activation", [None, "mish"])
def test_a_widening_does_not_fit_where_the_spans_activation_is_not_known(activation: str | None) -> None:
    slot = span_slot(InterfaceKind.SEQUENCE, 4, 4, activation=activation)
    reason = misfit(ENTRIES["widen-conv"], slot)
    assert reason is not None
    assert "activation" in reason


def test_a_widening_follows_the_strides_of_its_span() -> None:
    slot = span_slot(InterfaceKind.IMAGE, 3, 8, stride=2)
    assert misfit(ENTRIES["widen-conv-image"], slot) is None
    shifted = slot.model_copy(update={"spatial_out": (slot.spatial_out[0] + 1, slot.spatial_out[1])})
    assert "the slot needs" in str(misfit(ENTRIES["widen-conv-image"], shifted))


def test_a_span_of_linear_layers_has_no_kernel_to_borrow() -> None:
    slot = span_slot(InterfaceKind.TOKENS, 4, 4).model_copy(
        update={"kind": InterfaceKind.SEQUENCE, "spatial_in": (7,), "spatial_out": (7,)}
    )
    assert "kernel" in str(misfit(ENTRIES["widen-conv"], slot))


def test_widths_that_do_not_divide_and_norms_of_one_channel_are_misfits() -> None:
    data = plain(ENTRIES["attention"])
    data["nodes"][-1]["attributes"]["heads"] = 4
    four_heads = parse_blueprint(data)
    assert misfit(four_heads, residual_slot(InterfaceKind.TOKENS, 8)) is None
    assert "heads 4" in str(misfit(four_heads, residual_slot(InterfaceKind.TOKENS, 6)))
    assert "2 are needed" in str(misfit(four_heads, residual_slot(InterfaceKind.TOKENS, 1)))


def test_a_residual_blueprint_does_not_fit_between_different_widths() -> None:
    data = plain(ENTRIES["mlp"])
    data["nodes"][-1]["attributes"]["width"] = "Cin"
    slot = residual_slot(InterfaceKind.FEATURES, 8).model_copy(update={"width_out": 5})
    assert "5 channels" in str(misfit(parse_blueprint(data), slot))


def test_a_small_span_of_the_mlp_host_costs_what_is_written_by_hand() -> None:
    slot = span_slot(InterfaceKind.FEATURES, 40, 12)
    found = cost(ENTRIES["widen-linear"], slot)
    assert (found.parameters, found.macs) == (40 * 12 + 12 + 12 * 12, 40 * 12 + 12 * 12)


def test_a_bottleneck_on_the_cnn_host_costs_what_is_written_by_hand() -> None:
    slot = residual_slot(InterfaceKind.SEQUENCE, 8).model_copy(
        update={"spatial_in": (20,), "spatial_out": (20,)}
    )
    found = cost(ENTRIES["bottleneck-bn-16"], slot)
    assert found.parameters == (5 * 8 * 16 + 16) + 2 * 16 + (16 * 8 + 8)
    assert found.macs == 20 * (5 * 8 * 16 + 16 * 8)


def test_cost_of_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BlueprintError) as caught:
        cost(ENTRIES["mlp"], residual_slot(InterfaceKind.TOKENS, 8))
    assert caught.value.rule == "fit"


@pytest.mark.parametrize(
    ("text", "width"),
    [("Cin/4", 3), ("Cin/64", 1), ("2 Cout", 14), ("3*Cin/2", 19), ("16", 16), (5, 5), ("Cout", 7)],
)
def test_widths_are_rounded_down_and_at_least_one(text: str | int, width: int) -> None:
    assert Width.parse(text).resolve(13, 7) == width


def test_blueprints_load_from_yaml_and_json(tmp_path: Path) -> None:
    original = ENTRIES["gated-mlp"]
    (tmp_path / "a.json").write_text(original.model_dump_json())
    (tmp_path / "a.yaml").write_text(
        "name: small\ninterface: features\noutput: tail\n"
        "nodes:\n- {id: tail, op: linear, inputs: [input], attributes: {width: Cout, bias: false}}\n"
    )
    assert load_blueprint(tmp_path / "a.json") == original
    assert load_blueprint(tmp_path / "a.yaml").name == "small"


@pytest.mark.parametrize("text", ["a: [", "\x00\x01", "!!python/object:os.system {}"])
def test_files_that_are_no_blueprint_are_refused_with_their_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_blueprint(path)
    with pytest.raises(InputError, match="missing"):
        load_blueprint(tmp_path / "missing.yaml")


def test_a_resource_holds_the_graph() -> None:
    assert load_blueprint(EXAMPLE) == parse_blueprint(yaml.safe_load(EXAMPLE.read_text())["spec"]["graph"])


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ("kind: Blueprint", "kind: MorphogeneticRun", "a MorphogeneticRun of esper.dev/v1alpha1"),
        ("v1alpha1", "v2", "a Blueprint of esper.dev/v2; a Blueprint of esper.dev/v1alpha1, or its graph"),
        ("  graph:", "  drawing:", "spec.graph is missing"),
        ("  graph:", "  pipeline: fast\n  graph:", "spec.pipeline is not a field .*known: graph, pipelines"),
        ("op: tanh", "op: tan", "'curve'.*operator"),
    ],
)
def test_a_resource_that_holds_none_is_refused(tmp_path: Path, given: str, wanted: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(EXAMPLE.read_text().replace(given, wanted))
    with pytest.raises(BlueprintError, match=rf"bad\.yaml.*{said}"):
        load_blueprint(path)


def test_an_invalid_blueprint_in_a_file_is_refused_with_its_path_node_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: a\ninterface: features\noutput: t\nnodes: [{id: t, op: lin, inputs: [input]}]\n")
    with pytest.raises(BlueprintError, match=r"bad\.yaml.*'t'.*operator") as caught:
        load_blueprint(path)
    assert (caught.value.rule, caught.value.node) == ("operator", "t")


def test_importing_the_package_and_its_catalogue_imports_no_torch() -> None:
    code = (
        "import sys, esper_runtime.blueprint as b\n"
        "[b.canonical_id(x) for x in b.catalogue().values()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
