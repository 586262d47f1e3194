from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    """Keys of a machine of its own."""
    return KeyRing(tmp_path / "esper")
