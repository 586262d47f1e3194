from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import Role
from esper_runtime.oona import BundledServer


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A machine's folder with keys of all roles."""
    ring = KeyRing(tmp_path / "home")
    for role in Role:
        ring.ensure(role)
    return ring.home


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    """A real nats-server with a user for each role."""
    with BundledServer(tmp_path / "bus", roles=True) as server:
        yield server
