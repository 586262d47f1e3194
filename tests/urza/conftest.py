from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import Role
from esper_runtime.oona import BundledServer


@pytest.fixture
def keyring(tmp_path: Path) -> KeyRing:
    """Keys of all roles."""
    ring = KeyRing(tmp_path / "home")
    for role in Role:
        ring.ensure(role)
    return ring


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    """A real nats-server with one token for all."""
    with BundledServer(tmp_path / "bus") as server:
        yield server


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[BundledServer]:
    """A real nats-server with a user for each role."""
    with BundledServer(tmp_path / "guarded-bus", roles=True) as server:
        yield server
