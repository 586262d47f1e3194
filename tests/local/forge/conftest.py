from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import Role


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A machine's folder with keys of all roles."""
    ring = KeyRing(tmp_path / "home")
    for role in Role:
        ring.ensure(role)
    return ring.home
