"""The sandbox where namespaces or seccomp are refused, as in some containers, and on unknown machines."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from esper_runtime.sandbox import system
from tests.sandbox.filters import refusing

_RUN = """
import sys
from esper_runtime.contracts.errors import EsperError
from esper_runtime.sandbox import Limits, Sandbox
limits = Limits(memory=10**8)
try:
    with Sandbox(["tests.sandbox.deeds"]) as sandbox:
        for line in sys.argv[1:]:
            deed, _, payload = line.partition(" ")
            outcome = sandbox.run(f"tests.sandbox.deeds:{deed}", payload.encode(), limits=limits)
            print(",".join(outcome.layers), outcome.result, outcome.violation and outcome.violation.call)
except EsperError as error:
    print("refused:", error)
"""


def run_under(program: bytes, *deeds: str) -> list[str]:
    """The lines of a program that runs the deeds under a filter of its own."""

    def restrict() -> None:
        system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        system.seccomp(0, program)

    return run_after(restrict, *deeds)


def run_after(restrict: Callable[[], None], *deeds: str) -> list[str]:
    """The lines of a program that runs the deeds once ``restrict`` was called in its process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *deeds],
        preexec_fn=restrict,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
    )
    assert done.stdout, done.stderr
    return done.stdout.splitlines()


def test_without_namespaces_seccomp_and_landlock_hold() -> None:
    no_namespaces = refusing("unshare", "mount")
    lines = run_under(
        no_namespaces, "echo hi", "read /etc/passwd", "connect", "fork", "write /tmp/esper-test-x"
    )
    assert all("namespace" not in line for line in lines)
    assert all("seccomp" in line and "rlimits" in line for line in lines)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "b'hi' None",
        "None openat",
        "None socket",
        "None fork",
        "None openat",
    ]


def test_without_seccomp_it_refuses_and_says_what_is_missing() -> None:
    lines = run_under(refusing("seccomp"), "echo hi")
    assert len(lines) == 1
    assert lines[0].startswith("refused: seccomp filters cannot be installed here")


def test_on_a_machine_whose_system_calls_it_does_not_know_it_refuses_and_names_those_that_it_does() -> None:
    thirty_two_bits = 0x0008  # PER_LINUX32: uname(2) names another machine, as `setarch i686` has it

    def restrict() -> None:
        assert ctypes.CDLL(None).personality(ctypes.c_ulong(thirty_two_bits)) != -1

    lines = run_after(restrict, "echo hi")
    machine = {"x86_64": "i686", "aarch64": "armv8l"}[os.uname().machine]
    assert lines == [
        f"refused: the sandbox has no system call table for {machine!r}; it runs on x86_64, aarch64"
    ]
