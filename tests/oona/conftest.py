from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.oona import BundledServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    """A real nats-server on files of its own."""
    with BundledServer(tmp_path / "bus") as server:
        yield server
