"""Which kernels ran in a run, with their measurements and what they did, read from its journal."""

from typing import Any

from esper_runtime.contracts import (
    FieldReport,
    KernelReported,
    KernelsArrived,
    KernelsGone,
    KernelSummary,
    SeedChanged,
    SeedStage,
    TwinChanged,
)
from esper_runtime.nissa import render_report
from esper_runtime.nissa.kernels import kernels_of
from tests.nissa.journals import Writer, started

DIGEST = "ab" * 32


def kernel(number: int, **known: Any) -> KernelSummary:
    fields = {
        "kernel": f"ck-{number:012x}",
        "digest": DIGEST,
        "blueprint": f"bp-{number:012x}",
        "name": f"mlp-{number}",
        "interface": {"kind": "features", "least_in": 1, "most_in": 16, "least_out": 1, "most_out": 16},
        "pipeline": "fast",
        "trains": True,
        "tags": ("light", "small"),
        "risk": 0.25,
        "figures": {"forward_us": 12.5, "backward_us": 40.0, "peak_bytes": 2**21},
    }
    return KernelSummary(**{**fields, **known})


def germinated(seed: str, number: int) -> SeedChanged:
    return SeedChanged(
        seed=seed,
        slot="a",
        blueprint=f"bp-{number:012x}",
        name=f"mlp-{number}",
        before=None,
        after=SeedStage.GERMINATED,
        parameters=10,
        alpha=0.0,
        reason="test",
        kernel=f"ck-{number:012x}",
        digest=DIGEST,
    )


def report(seed: str, number: int, outcome: str, **known: Any) -> KernelReported:
    return KernelReported(
        report=FieldReport(
            kernel=f"ck-{number:012x}",
            digest=DIGEST,
            blueprint=f"bp-{number:012x}",
            run="r",
            seed=seed,
            slot="a",
            outcome=outcome,
            steps=300,
            parameters=10,
            **known,
        )
    )


def journal() -> Writer:
    writer = Writer()
    writer.write(0, started())
    refused = {"ck-00000000000f": "mlp-15: its risk 0.90 is above growth.kernels.mostRisk 0.5"}
    arrived = KernelsArrived(kernels=(kernel(1), kernel(2), kernel(3)), reason="validated", refused=refused)
    writer.write(0, arrived)
    writer.write(100, germinated("s1", 1))
    writer.write(200, germinated("s2", 1))
    writer.write(250, germinated("s3", 2))
    twin = TwinChanged(seed="s3", kernel="ck-0000000000aa", digest=DIGEST, speedup=1.31, reason="faster")
    writer.write(300, twin)
    writer.write(400, report("s1", 1, "Culled", failure="its forward pass raised ValueError"))
    writer.write(500, KernelsGone(kernels={"ck-000000000001": "quarantined: three runs failed"}))
    writer.write(2000, report("s2", 1, "Fossilized", contribution=0.0625))
    return writer


def test_each_kernel_that_ran_is_listed_with_its_seeds_their_ends_and_why_it_is_gone() -> None:
    found = kernels_of(journal().entries)
    assert found.offered == 3
    one, two = found.used
    assert (one.kernel, one.seeds) == ("ck-000000000001", ("s1", "s2"))
    assert [(r.seed, r.outcome) for r in one.reports] == [("s1", "Culled"), ("s2", "Fossilized")]
    assert one.gone == "quarantined: three runs failed"
    assert (two.seeds, two.reports) == (("s3",), ())
    assert two.twins == ("s3: ck-0000000000aa, 1.31 times as fast in place",)
    assert dict(found.refused)["ck-00000000000f"].startswith("mlp-15: its risk")


def test_the_report_shows_the_kernels_with_their_measurements() -> None:
    html = render_report(journal().entries)
    for text in (
        "ck-000000000001",
        "12.5 us",
        "40 us",
        "2 MiB",
        "0.25",
        "light, small",
        "s1: Culled after 300 steps, its forward pass raised ValueError",
        "s2: Fossilized after 300 steps, contribution 0.0625",
        "planted no more: quarantined: three runs failed",
        "compiled twin of s3: ck-0000000000aa, 1.31 times as fast in place",
        "mlp-15: its risk 0.90 is above",
    ):
        assert text in html, text


def test_a_figure_that_was_not_measured_is_a_dash_and_a_run_without_kernels_has_no_table() -> None:
    writer = Writer()
    writer.write(0, started())
    writer.write(0, KernelsArrived(kernels=(kernel(1, figures={}, risk=None, tags=()),), reason="validated"))
    writer.write(100, germinated("s1", 1))
    (use,) = kernels_of(writer.entries).used
    assert use.figure("forward_us", " us") == "–"
    assert "unknown" in render_report(writer.entries)
    bare = Writer()
    bare.write(0, started())
    assert "Kernels: what ran" not in render_report(bare.entries)
