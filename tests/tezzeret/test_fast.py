import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import (
    Blueprint,
    Interface,
    InterfaceKind,
    KernelError,
    KernelInterface,
    Node,
    Pipeline,
    Target,
)
from esper_runtime.kasmina.kernels import current_target, load, spec_for
from esper_runtime.tezzeret import make
from tests.tezzeret.kernels import made, slot, wanted

MLP = catalogue()["mlp"]


def test_a_kernels_body_has_the_weights_that_the_builder_gives(tmp_path: Path) -> None:
    kernel = load(made(MLP, slot(InterfaceKind.FEATURES), tmp_path))
    interface = slot(InterfaceKind.FEATURES, 12)
    body, expected = kernel.body(interface, 7), build(MLP, interface, 7)
    ours, theirs = body.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert body.code == expected.code


def test_a_kernel_refuses_a_slot_outside_its_class(tmp_path: Path) -> None:
    kernel = load(made(MLP, slot(InterfaceKind.FEATURES), tmp_path))
    with pytest.raises(KernelError, match="not made for this slot"):
        kernel.body(slot(InterfaceKind.FEATURES, 17), 0)


def test_the_same_kernel_has_the_same_bytes_from_two_processes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.tezzeret.test_fast import MLP, made, slot;"
        "print(made(MLP, slot('features'), Path(sys.argv[1])).compiled.digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "esper")],
        env={**os.environ, "PYTHONHASHSEED": "1", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = made(MLP, slot(InterfaceKind.FEATURES), tmp_path / "here")
    assert done.stdout.strip() == here.compiled.digest


def test_a_kernel_holds_no_weights(tmp_path: Path) -> None:
    artifact = made(MLP, slot(InterfaceKind.FEATURES), tmp_path)
    assert set(artifact.files) == {"blueprint.json"}
    assert artifact.manifest.trains


@pytest.mark.parametrize("kind", list(InterfaceKind))
def test_every_catalogue_blueprint_that_fits_is_made(kind: InterfaceKind, tmp_path: Path) -> None:
    blueprints = [b for b in catalogue().values() if b.interface is kind and not b.span]
    kernels = [load(made(b, slot(kind), tmp_path)) for b in blueprints]
    assert len({kernel.id for kernel in kernels}) == len(blueprints)


def test_a_blueprint_that_fits_nowhere_in_the_class_is_refused_with_the_class(tmp_path: Path) -> None:
    halves = Blueprint(
        name="halves",
        interface=InterfaceKind.FEATURES,
        nodes=(
            Node(id="norm", op="group_norm", inputs=("input",), attributes={"groups": 64}),
            Node(id="tail", op="linear", inputs=("norm",), attributes={"width": "Cout"}),
        ),
        output="tail",
    )
    with pytest.raises(KernelError, match="fits no slot of the class"):
        made(halves, slot(InterfaceKind.FEATURES), tmp_path)


def test_a_graph_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    spec = wanted(MLP, slot(InterfaceKind.FEATURES))
    with pytest.raises(KernelError, match="the graph given is"):
        make(spec, catalogue()["mlp-double"], tmp_path, KeyRing(tmp_path))


def test_another_target_or_toolchain_is_refused(tmp_path: Path) -> None:
    spec = wanted(MLP, slot(InterfaceKind.FEATURES))
    other = spec.model_copy(update={"target": Target(device="cpu", arch="elsewhere", torch="2.13.0")})
    with pytest.raises(KernelError, match="this worker makes"):
        make(other, MLP, tmp_path, KeyRing(tmp_path))
    with pytest.raises(KernelError, match="asks for the toolchain"):
        make(spec.model_copy(update={"toolchain": {"builder": "0"}}), MLP, tmp_path, KeyRing(tmp_path))


def test_a_kernel_of_another_builder_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = made(MLP, slot(InterfaceKind.FEATURES), tmp_path)
    monkeypatch.setattr("esper_runtime.kasmina.kernels.loader.BUILDER_VERSION", "2")
    with pytest.raises(KernelError, match="compile it again"):
        load(artifact)


def test_a_newer_builder_wants_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    before = wanted(MLP, slot(InterfaceKind.FEATURES)).kernel_id
    monkeypatch.setattr("esper_runtime.kasmina.kernels.wanted.BUILDER_VERSION", "2")
    assert wanted(MLP, slot(InterfaceKind.FEATURES)).kernel_id != before


def test_slots_of_one_band_want_one_kernel() -> None:
    ids = {wanted(MLP, slot(InterfaceKind.FEATURES, width)).kernel_id for width in (1, 9, 16)}
    assert len(ids) == 1
    assert wanted(MLP, slot(InterfaceKind.FEATURES, 17)).kernel_id not in ids


def test_a_pipeline_that_is_not_offered_is_refused() -> None:
    interface = Interface(kind="features", width_in=8, width_out=8)
    with pytest.raises(KernelError, match="there is no pipeline 'aggressive'"):
        spec_for(canonical_id(MLP), interface, current_target(), Pipeline.AGGRESSIVE)


def test_a_compiled_kernel_for_another_device_than_the_cpu_is_refused() -> None:
    gpu = Target(device="cuda", arch="sm-90", torch="2.13.0")
    interface = slot(InterfaceKind.FEATURES)
    with pytest.raises(KernelError, match="compiled kernels are for the CPU only, not for cuda"):
        spec_for(canonical_id(MLP), interface, gpu, Pipeline.STANDARD)
    assert spec_for(canonical_id(MLP), interface, gpu, Pipeline.FAST).target == gpu


def test_making_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    made(catalogue()["conv-pair-bn"], slot(InterfaceKind.SEQUENCE), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_classes_with_two_ranges_of_widths_are_sampled_within_both() -> None:
    from esper_runtime.blueprint import misfit, sample_slots

    span = Interface.model_validate(
        {"kind": "features", "width_in": 8, "width_out": 100, "consumer": _layer(), "producer": _layer()}
        | {"activation": "relu"}
    )
    slots = KernelInterface.of(span)
    samples = sample_slots(catalogue()["widen-linear"], slots)
    assert {(s.width_in, s.width_out) for s in samples} >= {(1, 65), (16, 256), (1, 256), (16, 65)}
    assert all(slots.contains(s) and misfit(catalogue()["widen-linear"], s) is None for s in samples)


def _layer() -> dict[str, object]:
    return {"kernel": (), "stride": (), "padding": (), "dilation": (), "groups": 1}
