"""A warm sandbox and keys for the tests of the gauntlet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.sandbox import Sandbox
from esper_runtime.urabrask import new_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with new_sandbox() as made:
        yield made


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing(tmp_path_factory.mktemp("urabrask") / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"
