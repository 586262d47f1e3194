import pytest
from pydantic import ValidationError

from esper_runtime.contracts import Interface, KernelInterface, KernelSpec, Pipeline, Target, width_band

SLOT = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(40,), spatial_out=(20,))
TARGET = Target(device="cpu", arch="avx512", torch="2.13.0")


@pytest.mark.parametrize(
    ("width", "expected"), [(1, (1, 16)), (16, (1, 16)), (17, (17, 64)), (64, (17, 64)), (65, (65, 256))]
)
def test_every_width_lies_in_its_band(width: int, expected: tuple[int, int]) -> None:
    assert width_band(width) == expected


def test_bands_leave_no_gap() -> None:
    ends = [width_band(width) for width in range(1, 5000)]
    assert all(least <= width <= most for width, (least, most) in enumerate(ends, 1))


@pytest.mark.parametrize(
    ("change", "inside"),
    [
        ({}, True),
        ({"width_in": 16}, True),
        ({"spatial_in": (80,), "spatial_out": (40,)}, True),
        ({"width_in": 17}, False),
        ({"width_out": 17}, False),
        ({"spatial_out": (40,)}, False),
        ({"dtype": "float64"}, False),
        ({"causal": True}, False),
    ],
)
def test_a_class_holds_the_slots_that_differ_in_nothing_it_fixes(change: dict, inside: bool) -> None:
    assert KernelInterface.of(SLOT).contains(SLOT.model_copy(update=change)) is inside


def test_an_exact_class_holds_its_own_widths_alone() -> None:
    exact = KernelInterface.of(SLOT, exact=True)
    assert exact.contains(SLOT)
    assert not exact.contains(SLOT.model_copy(update={"width_in": 9}))


def test_an_empty_range_of_widths_is_refused() -> None:
    with pytest.raises(ValidationError, match="least width"):
        KernelInterface(kind="features", least_in=5, most_in=4, least_out=1, most_out=1)


def test_a_kernels_id_depends_on_all_that_it_is_made_of() -> None:
    spec = KernelSpec(
        blueprint="bp-" + "0" * 12,
        interface=KernelInterface.of(SLOT),
        target=TARGET,
        pipeline=Pipeline.FAST,
        toolchain={"esper": "1"},
    )
    others = [
        spec.model_copy(update={"blueprint": "bp-" + "1" * 12}),
        spec.model_copy(update={"interface": KernelInterface.of(SLOT, exact=True)}),
        spec.model_copy(update={"target": Target(device="cpu", arch="avx2", torch="2.13.0")}),
        spec.model_copy(update={"pipeline": Pipeline.STANDARD}),
        spec.model_copy(update={"toolchain": {"esper": "2"}}),
        spec.model_copy(update={"flags": ("x",)}),
    ]
    assert len({each.kernel_id for each in (spec, *others)}) == 7
    assert KernelSpec.model_validate_json(spec.model_dump_json()).kernel_id == spec.kernel_id
