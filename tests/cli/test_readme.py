"""The code in the README runs as it stands there, and its links and commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper_runtime.cli.app import esper

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block-{number}" for number in range(len(BLOCKS))])
def test_the_code_of_the_readme_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "print" in code:
        assert "parameters" in done.stdout


def test_the_files_and_commands_that_the_readme_names_exist() -> None:
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link
    for name in re.findall(r"`esper ([a-z]+)", README):
        assert name in esper.commands, name
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name in re.findall(r"make ([a-z]+)", README):
        assert name in targets or name == "it", name
