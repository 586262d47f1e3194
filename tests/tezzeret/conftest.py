"""A kernel with native code for evaluation alone, compiled once for the folder."""

import pytest

from esper_runtime.artifact import VerifiedArtifact
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import InterfaceKind, Pipeline
from esper_runtime.tezzeret import Builder
from tests.tezzeret.kernels import made, slot


@pytest.fixture(scope="session")
def evaluated(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> VerifiedArtifact:
    """``mlp-bn-4``, which normalises by batches."""
    home = tmp_path_factory.mktemp("evaluated")
    return made(catalogue()["mlp-bn-4"], slot(InterfaceKind.FEATURES), home, Pipeline.STANDARD, builder)
