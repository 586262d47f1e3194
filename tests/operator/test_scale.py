"""1,000 runs on a real API server, with nodes that are played: every bound of the benchmark is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.control_plane import REMEDY, binaries


@pytest.mark.scale
def test_a_thousand_runs_keep_every_bound(request: pytest.FixtureRequest) -> None:
    if "scale" not in str(request.config.getoption("-m")):
        pytest.skip("takes minutes, and measures only on a machine that does nothing else: pytest -m scale")
    if binaries() is None:
        pytest.skip(REMEDY)
    command = [sys.executable, "-m", "benchmarks.operator_scale"]
    root = Path(__file__).resolve().parents[2]
    lines = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    bars = [json.loads(line) for line in lines]
    assert len(bars) == 7
    assert [bar for bar in bars if not bar["passed"]] == []
