"""Every test runs on one thread: results repeat, and tests do not depend on how many cores there are.

All tests of a process share one home of keys and kernels, so that each kernel that they need is tested once,
and one kernel with native code. `make test` runs them in two processes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import InterfaceKind, Pipeline, Signed
from esper_runtime.tezzeret import Builder, make
from tests.tezzeret.kernels import slot, wanted
from tests.turns import machine

torch.set_num_threads(1)

WORKER = "PYTEST_XDIST_WORKER"
"""In the environment of each of several processes of tests: its name."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `alone` runs while none does in the other processes."""
    if WORKER not in os.environ:
        return (yield)
    with machine(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def machine_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The machine's folder, for this process and those that it starts.

    ``ESPER_TEST_HOME`` names one to be kept from one run of the tests to the next; each process of tests has
    its own in it.
    """
    kept = os.environ.get("ESPER_TEST_HOME")
    one = os.environ.get(WORKER, "")
    folder = Path(kept) / one if kept else tmp_path_factory.mktemp("esper-home")
    before = os.environ.get(HOME_VARIABLE)
    os.environ[HOME_VARIABLE] = str(folder)
    yield folder
    if before is None:
        del os.environ[HOME_VARIABLE]
    else:
        os.environ[HOME_VARIABLE] = before


@pytest.fixture(scope="session")
def home(machine_home: Path) -> Path:
    """The same folder, for tests that look into it; a module may have a home of its own."""
    return machine_home


@pytest.fixture(scope="session")
def builder() -> Iterator[Builder]:
    """Compiles, with a process that stays warm."""
    with Builder() as builder:
        yield builder


@pytest.fixture(scope="session")
def compiled_tokens(
    machine_home: Path, builder: Builder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Signed]:
    """``mlp-tokens-half`` at width 8 with native code, forward and backward, signed in the shared home."""
    blueprint, interface = catalogue()["mlp-tokens-half"], slot(InterfaceKind.TOKENS)
    spec = wanted(blueprint, interface, Pipeline.STANDARD)
    return make(spec, blueprint, tmp_path_factory.mktemp("compiled"), KeyRing(machine_home), builder)
