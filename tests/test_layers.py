"""What the operator's image carries works where there is no torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "package", ["contracts", "planning", "blueprint", "artifact", "tamiyo", "nissa", "urza", "forge", "karn"]
)
def test_the_package_imports_no_torch(package: str) -> None:
    script = f"import sys, esper_runtime.{package}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"esper_runtime.{package} imports torch"


def test_the_operator_imports_no_torch() -> None:
    script = "import sys, esper_operator.runs; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": "operator"},
    )
    assert done.returncode == 0, done.stderr or "esper_operator imports torch"
