"""A process of the direct forge: makes kernels, has them tested in a sandbox, signs, and fills the shelf.

It reads a `CompileWork` a line and answers with a line for each. It ends with its input.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
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
from esper_runtime.sandbox import Sandbox
from esper_runtime.tezzeret import Builder, make
from esper_runtime.urabrask import evaluate, new_sandbox
from esper_runtime.urza import Shelf


def main() -> None:
    """Serve standard input."""
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    ring = KeyRing(home)
    with (
        tempfile.TemporaryDirectory(prefix="esper-forge-") as folder,
        new_sandbox() as sandbox,
        Builder() as builder,
    ):
        smithy = _Smithy(Path(folder), ring, Shelf(home), sandbox, builder)
        for line in sys.stdin.buffer:
            work = CompileWork.model_validate_json(line)
            try:
                answer = smithy.forge(work)
            except SandboxError as error:
                answer = {"broken": str(error)}
            except EsperError as error:
                answer = {"kernel": work.spec.kernel_id, "rejected": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


@dataclass(frozen=True)
class _Smithy:
    folder: Path
    ring: KeyRing
    shelf: Shelf
    sandbox: Sandbox
    builder: Builder

    def forge(self, work: CompileWork) -> dict[str, Any]:
        """Make, test and shelve one kernel; returns what is to be said of it."""
        kernel, ring = work.spec.kernel_id, self.ring
        try:
            archive, compiled = make(work.spec, work.graph, self.folder, ring, self.builder)
        except (KernelError, BlueprintError) as error:
            failed = CompileFailed(spec=work.spec, kernel=kernel, reason=str(error)[:2000])
            self.shelf.reject(kernel, ring.sign(Role.TEZZERET, failed))
            return {"kernel": kernel, "rejected": str(error)}
        report = evaluate(archive, compiled, ring.trust, sandbox=self.sandbox)
        verdict = ring.sign(Role.URABRASK, Verdict(kernel=kernel, digest=report.digest, report=report))
        if report.passed:
            self.shelf.put(archive, compiled, verdict, ring.trust)
        else:
            self.shelf.reject(kernel, verdict)
        archive.unlink()
        return {"kernel": kernel} | ({} if report.passed else {"rejected": report.failures[0].reason})


if __name__ == "__main__":
    main()
