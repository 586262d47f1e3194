"""The gauntlet where a container allows no namespaces: on seccomp, Landlock and limits alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from esper_runtime.sandbox import system
from tests.sandbox.filters import refusing

_RUN = """
import json, sys
from pathlib import Path
from esper_runtime.artifact import KeyRing
from esper_runtime.urabrask import Bounds, evaluate, new_sandbox
from tests.urabrask.members import BAD, honest
folder = Path(sys.argv[1])
keyring = KeyRing(folder / "home")
with new_sandbox() as sandbox:
    for number, name in enumerate(sys.argv[2:]):
        make = next((bad.make for bad in BAD if bad.name == name), honest)
        path, compiled = make(folder / f"kernels-{number}", keyring)
        report = evaluate(path, compiled, keyring.trust, sandbox=sandbox, bounds=Bounds(seconds=20))
        print(json.dumps([list(report.layers), [check.name for check in report.failures]]))
"""

_FAILED = {
    "honest": [],
    "reads the passwords on load": ["files"],
    "kills its parent on load": ["processes"],
}


def test_compiled_kernels_are_judged_without_namespaces(tmp_path: Path) -> None:
    program = refusing("unshare", "mount")

    def restrict() -> None:
        system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        system.seccomp(0, program)

    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(tmp_path), *_FAILED],
        preexec_fn=restrict,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert dict(zip(_FAILED, (failed for _, failed in found), strict=True)) == _FAILED
    for layers, _ in found:
        assert not any("namespace" in layer for layer in layers)
        assert "seccomp" in layers
