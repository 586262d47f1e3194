"""What a report says of kernels that are as they should be."""

from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing, open_artifact
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import ArtifactError, KernelError, Role, Verdict
from esper_runtime.sandbox import Sandbox
from esper_runtime.urabrask import evaluate
from tests.urabrask.archives import signed_archive, slots_for, spec_of

_CHECKS = {
    "load",
    "run",
    "shape",
    "dtype",
    "finite",
    "birth",
    "gradients",
    "scale",
    "determinism",
    "inputs",
    "aliasing",
    "values",
    "precision",
    "float64",
    "batch",
    "state",
    "training",
    "globals",
    "leaks",
    "hang",
    "crash",
    "memory",
    "files",
    "network",
    "processes",
    "calls",
    "output",
    "time",
}


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("mlp", (1, 16)),
        ("mlp-bn", (17, 64)),
        ("norm-scale", (65, 256)),
        ("widen-linear-bn-6", (1, 16)),
        ("widen-conv-image-half", (1, 16)),
        ("conv-stack-bn", (17, 64)),
        ("squeeze-excite-image", (17, 64)),
        ("attention", (1, 16)),
        ("causal-conv-tokens", (17, 64)),
        ("causal-bottleneck", (1, 16)),
    ],
)
def test_a_kernel_of_the_catalogue_passes_every_check(
    name: str, band: tuple[int, int], sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    blueprint = catalogue()[name]
    path, compiled = signed_archive(
        folder, keyring, spec_of(blueprint, slots_for(blueprint, *band)), blueprint
    )
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    assert report.passed, report.failures
    assert {check.name for check in report.checks} == _CHECKS
    assert {"seccomp", "rlimits"} <= set(report.layers)
    assert all(band[0] <= width <= band[1] for pair in report.widths for width in pair)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_are_tested_in_their_own_precision(
    dtype: str, sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    blueprint = catalogue()["mlp"]
    spec = spec_of(blueprint, slots_for(blueprint, dtype=dtype))
    path, compiled = signed_archive(folder, keyring, spec, blueprint)
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    assert report.passed, report.failures


def test_a_report_has_times_sizes_and_a_risk_that_it_measured(
    sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    blueprint = catalogue()["mlp"]
    path, compiled = signed_archive(folder, keyring, spec_of(blueprint), blueprint)
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    assert {"forward_us", "training_us", "backward_us"} == set(report.measurements)
    for found in report.measurements.values():
        assert 0 < found.median <= found.p99
    assert report.numbers["parameters"] > 0
    assert report.numbers["output_gain"] > 0
    assert report.numbers["peak_bytes"] > 0
    assert report.risk == pytest.approx(max(report.numbers[name] for name in ("gain_share", "drift_share")))
    assert "speedup" not in report.numbers


def test_a_signed_verdict_makes_the_artifact_one_that_may_run(
    sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    blueprint = catalogue()["mlp"]
    path, compiled = signed_archive(folder, keyring, spec_of(blueprint), blueprint)
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    verdict = Verdict(kernel=report.kernel, digest=report.digest, report=report)
    signed = keyring.sign(Role.URABRASK, verdict)
    opened = open_artifact(path, compiled, signed, keyring.trust)
    assert opened.verdict == verdict


def test_what_tezzeret_has_not_signed_is_no_kernel_to_judge(
    sandbox: Sandbox, keyring: KeyRing, folder: Path, tmp_path: Path
) -> None:
    blueprint = catalogue()["mlp"]
    path, compiled = signed_archive(folder, keyring, spec_of(blueprint), blueprint)
    stranger = KeyRing(tmp_path / "stranger")
    stranger.ensure(Role.TEZZERET)
    with pytest.raises(ArtifactError, match="unknown key"):
        evaluate(path, compiled, stranger.trust, sandbox=sandbox)
    path.write_bytes(path.read_bytes().replace(b"mlp", b"plm", 1))
    with pytest.raises(ArtifactError, match="digest"):
        evaluate(path, compiled, keyring.trust, sandbox=sandbox)


def test_a_kernel_for_a_gpu_is_not_judged_by_a_sandbox_without(
    sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    blueprint = catalogue()["mlp"]
    spec = spec_of(blueprint)
    elsewhere = spec.target.model_copy(update={"device": "cuda", "arch": "sm-90"})
    spec = spec.model_copy(update={"target": elsewhere})
    path, compiled = signed_archive(folder, keyring, spec, blueprint)
    with pytest.raises(KernelError, match="CPUs only"):
        evaluate(path, compiled, keyring.trust, sandbox=sandbox)
