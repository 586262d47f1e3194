"""A process of the direct forge: makes kernels, has them tested in a sandbox, signs, and fills the shelf.

It reads a `CompileWork` a line and answers with a line for each. It ends with its input.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import (
    BlueprintError,
    CompileFailed,
    CompileWork,
    EsperError,
    KernelError,
    Role,
    Verdict,
)
from esper_runtime.contracts.errors import SandboxError
from esper_runtime.kasmina import Shelf
from esper_runtime.sandbox import Sandbox
from esper_runtime.tezzeret import make
from esper_runtime.urabrask import evaluate, new_sandbox


def main() -> None:
    """Serve standard input."""
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    ring = KeyRing(home)
    shelf = Shelf(home)
    with tempfile.TemporaryDirectory(prefix="esper-forge-") as folder, new_sandbox() as sandbox:
        for line in sys.stdin.buffer:
            work = CompileWork.model_validate_json(line)
            try:
                answer = _forge(work, Path(folder), ring, shelf, sandbox)
            except SandboxError as error:
                answer = {"broken": str(error)}
            except EsperError as error:
                answer = {"kernel": work.spec.kernel_id, "rejected": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _forge(work: CompileWork, folder: Path, ring: KeyRing, shelf: Shelf, sandbox: Sandbox) -> dict[str, Any]:
    kernel = work.spec.kernel_id
    try:
        archive, compiled = make(work.spec, work.graph, folder, ring)
    except (KernelError, BlueprintError) as error:
        failed = CompileFailed(spec=work.spec, kernel=kernel, reason=str(error)[:2000])
        shelf.reject(kernel, ring.sign(Role.TEZZERET, failed))
        return {"kernel": kernel, "rejected": str(error)}
    report = evaluate(archive, compiled, ring.trust, sandbox=sandbox)
    verdict = ring.sign(Role.URABRASK, Verdict(kernel=kernel, digest=report.digest, report=report))
    if report.passed:
        shelf.put(archive, compiled, verdict, ring.trust)
    else:
        shelf.reject(kernel, verdict)
    archive.unlink()
    return {"kernel": kernel} | ({} if report.passed else {"rejected": report.failures[0].reason})


if __name__ == "__main__":
    main()
