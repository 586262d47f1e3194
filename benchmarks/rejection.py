"""The bar of the gauntlet: what is bad is rejected for what it does, nothing good is, and nothing is harmed.

Bad and good kernels are real archives with a valid signature of Tezzeret (`tests.urabrask.members`); most of
the bad ones have native code that misbehaves when it is loaded or called. Good are all blueprints of the
catalogue in all bands of widths that they fit, and some compiled by the pipeline ``standard``.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.line import bar
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import Pipeline
from esper_runtime.sandbox import Sandbox
from esper_runtime.tezzeret import Builder, make
from esper_runtime.urabrask import Bounds, evaluate, new_sandbox
from tests.urabrask.archives import slots_for, spec_of
from tests.urabrask.members import BAD, good, honest
from tests.urabrask.witness import unharmed

COMMAND = "python -m benchmarks.rejection"
COMPILED = (
    "mlp",
    "mlp-bn",
    "norm-scale",
    "bottleneck",
    "depthwise-bn-image",
    "mlp-tokens",
    "causal-attention",
)
_SECONDS = 5.0


def main() -> int:
    """Run both halves of the corpus; returns 1 where one of them missed its bound."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="esper-rejection-") as name, new_sandbox() as sandbox:
        folder = Path(name)
        keyring = KeyRing(folder / "home")
        sandbox.start()
        kept = [
            _bad(folder, keyring, sandbox),
            _fast(folder, keyring, sandbox),
            _compiled(folder, keyring, sandbox),
        ]
    return 0 if all(kept) else 1


def _bad(folder: Path, keyring: KeyRing, sandbox: Sandbox) -> bool:
    missed: list[str] = []
    harm: list[str] = []
    checks: Counter[str] = Counter()
    for number, member in enumerate(track(BAD, "bad", disable=not sys.stderr.isatty())):
        path, compiled = member.make(folder / f"bad-{number}", keyring)
        try:
            assert sandbox.pid is not None
            with unharmed(sandbox.pid, path.parent, keyring.home):
                report = evaluate(
                    path, compiled, keyring.trust, sandbox=sandbox, bounds=Bounds(seconds=_SECONDS)
                )
        except AssertionError as error:
            harm.append(f"{member.name}: {error}")
            continue
        failed = [check.name for check in report.failures]
        checks[member.check] += 1
        if member.check not in failed or (member.alone and failed != [member.check]):
            missed.append(f"{member.name}: {member.check} was expected, failed: {failed}")
    kept = not missed and not harm
    bar(
        "bad kernels are rejected",
        command=COMMAND,
        figure=f"{len(BAD) - len(missed) - len(harm)} of {len(BAD)} for the right reason",
        bound="36 or more, all rejected for the right reason, the machine unharmed",
        passed=kept and len(BAD) >= 36,
        detail={
            "native": sum(member.native for member in BAD),
            "checks": dict(checks),
            "missed": missed,
            "harm": harm,
        },
    )
    return kept


def _fast(folder: Path, keyring: KeyRing, sandbox: Sandbox) -> bool:
    rejected: list[str] = []
    seconds: list[float] = []
    layers: set[str] = set()
    members = good()
    for number, member in enumerate(track(members, "good", disable=not sys.stderr.isatty())):
        path, compiled = member.make(folder / f"good-{number}", keyring)
        begun = time.monotonic()
        report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
        seconds.append(time.monotonic() - begun)
        layers |= set(report.layers)
        rejected += [f"{member.name}: {check.name}: {check.reason}" for check in report.failures]
    seconds.sort()
    bar(
        "good kernels pass",
        command=COMMAND,
        figure=f"{len(rejected)} rejected of {len(members)}",
        bound="none of 36 or more rejected",
        passed=not rejected and len(members) >= 36,
        detail={
            "rejected": rejected,
            "seconds_p50": round(statistics.median(seconds), 3),
            "seconds_p95": round(seconds[int(0.95 * len(seconds))], 3),
            "seconds_most": round(seconds[-1], 3),
            "layers": sorted(layers),
        },
    )
    return not rejected


def _compiled(folder: Path, keyring: KeyRing, sandbox: Sandbox) -> bool:
    rejected: list[str] = []
    found: dict[str, dict[str, float]] = {}
    with Builder() as builder:
        for name in track(COMPILED, "compiled", disable=not sys.stderr.isatty()):
            blueprint = catalogue()[name]
            spec = spec_of(blueprint, slots_for(blueprint, 32, 32), Pipeline.STANDARD)
            path, compiled = make(spec, blueprint, folder / "compiled", keyring, builder)
            report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
            rejected += [f"{name}: {check.name}: {check.reason}" for check in report.failures]
            found[name] = {
                key: round(value, 3) for key, value in report.numbers.items() if key.endswith("speedup")
            } | {"seconds": round(report.seconds, 2)}
    path, compiled = honest(folder / "honest", keyring)
    report = evaluate(path, compiled, keyring.trust, sandbox=sandbox)
    rejected += [f"honest native code: {check.name}: {check.reason}" for check in report.failures]
    bar(
        "good compiled kernels pass",
        command=COMMAND,
        figure=f"{len(rejected)} rejected of {len(COMPILED) + 1}",
        bound="none rejected",
        passed=not rejected,
        detail={"rejected": rejected, "kernels": found},
    )
    return not rejected


if __name__ == "__main__":
    sys.exit(main())
