"""Hosts compiled by regions on the GPU."""

from pathlib import Path

import pytest
import torch

from esper_runtime.contracts import SeedChanged, SeedStage
from esper_runtime.tolaria.regions import compiler_works
from tests.cuda.runs import DEVICE, on_gpu
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Script, train

HOST = {"entrypoint": "tests.tolaria.test_compile:stack"}


def test_a_compiled_host_grows_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    if not compiler_works(DEVICE):
        pytest.skip("torch.compile does not work on this machine")
    run = on_gpu(60, host=HOST, training={"compile": "Regions"})
    plants = ((10, IMMEDIATE), (15, ISOLATED))
    whole, trainer, result = train(run, tmp_path / "whole", Script(*plants))
    half, _, _ = train(run, tmp_path / "parts", Script(*plants), stop_at=33)
    rest, _, second = train(run, tmp_path / "parts", Script(*plants))
    regions = trainer._loop.parts.learner._regions
    assert regions is not None
    assert len(regions.blocks) == 3
    assert {**half.losses, **rest.losses} == whole.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert SeedStage.FOSSILIZED in {event.after for event in whole.of(SeedChanged)}
    plain, _, _ = train(on_gpu(60, host=HOST), tmp_path / "plain", Script(*plants))
    gap = max(abs(plain.losses[step] - whole.losses[step]) for step in range(1, 11))
    assert gap < 1e-3
    torch.compiler.reset()
