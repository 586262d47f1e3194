"""Kernels that misbehave are rejected by the check that is there for it, and leave no trace on the machine.

A choice of the corpus; `python -m benchmarks.rejection` runs all of it.
"""

from pathlib import Path

import pytest

from esper_runtime.artifact import KeyRing
from esper_runtime.sandbox import Sandbox
from esper_runtime.urabrask import Bounds, evaluate
from tests.urabrask.members import BAD, Bad, honest
from tests.urabrask.witness import unharmed

_CHOSEN = (
    "a graph that overflows on large inputs",
    "a graph whose output vanishes",
    "another graph than the one it is named by",
    "a part that is no library",
    "reads the passwords on load",
    "writes to /tmp on load",
    "opens a connection on load",
    "forks on load",
    "starts a program on load",
    "kills its parent on load",
    "takes 64 GiB at once on load",
    "floods standard output on load",
    "sleeps for ever on load",
    "crashes on load",
    "says in the sandbox's words that all is well",
    "changes how numbers are rounded",
    "yields NaN",
    "explodes",
    "yields another shape",
    "yields another dtype",
    "yields a tensor of another device",
    "yields something else each time",
    "changes its input",
    "hands out the same memory each time",
    "changes its weights",
    "mixes the examples of a batch",
    "is off for large inputs alone",
    "leaks 64 bytes a call",
    "leaks mappings",
    "forks at its twentieth call",
    "yields a wrong gradient",
    "yields no gradient of its bias",
)


def _member(name: str) -> Bad:
    return next(bad for bad in BAD if bad.name == name)


def test_the_compiled_kernel_that_they_all_are_made_from_passes(
    sandbox: Sandbox, keyring: KeyRing, folder: Path
) -> None:
    path, compiled = honest(folder, keyring)
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    assert report.passed, report.failures


@pytest.mark.parametrize("bad", [_member(name) for name in _CHOSEN], ids=lambda bad: bad.name)
def test_it_is_rejected_for_what_it_does(bad: Bad, sandbox: Sandbox, keyring: KeyRing, folder: Path) -> None:
    path, compiled = bad.make(folder, keyring)
    sandbox.start()
    assert sandbox.pid is not None
    with unharmed(sandbox.pid, folder, keyring.home):
        report = evaluate(path, compiled, keyring.trust, sandbox=sandbox, bounds=Bounds(seconds=4))
    failed = [check.name for check in report.failures]
    assert not report.passed
    assert bad.check in failed, report.failures
    if bad.alone:
        assert failed == [bad.check]
    assert all(check.reason for check in report.failures)
