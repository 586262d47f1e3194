"""A machine on which kernels cannot be confined: nothing is tested there, and no seed runs."""

import os
import subprocess
import sys
from pathlib import Path

from esper_runtime.artifact import HOME_VARIABLE
from esper_runtime.sandbox import system
from tests.cli.manifests import write
from tests.sandbox.filters import refusing


def test_without_seccomp_a_run_refuses_before_its_first_step_and_says_what_to_do(tmp_path: Path) -> None:
    program = refusing("seccomp")

    def restrict() -> None:
        system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        system.seccomp(0, program)

    manifest = write(tmp_path, ("spec.growth.blueprints.include", ["low-rank"]))
    done = subprocess.run(
        [sys.executable, "-m", "esper_runtime.cli", "run", str(manifest), "--no-bus"],
        preexec_fn=restrict,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        env={**os.environ, HOME_VARIABLE: str(tmp_path / "home")},
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "kernels cannot be tested on this machine: seccomp filters cannot be installed here" in done.stderr
    assert "a container profile that allows seccomp(2)" in done.stderr
    assert "or train without growth (spec.growth.controller.kind: Off)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "home" / "kernels").glob("*.kernel"))
    assert not (tmp_path / "runs" / "small" / "journal.jsonl").exists()
