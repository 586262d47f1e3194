"""The gauntlet: one artifact in, one report out."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from esper_runtime.artifact import Trust, VerifiedArtifact, open_artifact
from esper_runtime.blueprint import cost
from esper_runtime.contracts import (
    ArtifactError,
    Check,
    Compiled,
    KernelError,
    Measurement,
    Pipeline,
    Role,
    Signed,
    ValidationReport,
)
from esper_runtime.sandbox import MIB, Limits, Outcome, Sandbox
from esper_runtime.urabrask import child, fate, timing
from esper_runtime.urabrask.bounds import EXACT, Bounds
from esper_runtime.urabrask.exchange import pack, unpack
from esper_runtime.urabrask.judge import Findings, judge
from esper_runtime.urabrask.reference import reference
from esper_runtime.urabrask.tags import Experience, risk, tags
from esper_runtime.urabrask.trials import Trial, trials

_COMPILED_FACTOR = 6
_PAGE = 4096


def new_sandbox() -> Sandbox:
    """The sandbox that `evaluate` runs kernels in, not yet started."""
    name = child.__name__
    return Sandbox([name], warm=f"{name}:{child.warm.__name__}")


_Amounts = tuple[int, int, int, int]
"""Memory after a round of calls: allocated bytes, Python objects, resident bytes, mapped bytes."""


@dataclass(frozen=True)
class _Returned:
    """What a job sent home, sorted."""

    stage: str
    tensors: dict[int, dict[str, Tensor]]
    held: list[_Amounts]
    samples: dict[str, list[int]]
    malformed: str | None


def evaluate(
    path: Path,
    compiled: Signed,
    trust: Trust,
    *,
    sandbox: Sandbox,
    population: Sequence[ValidationReport] = (),
    experience: Experience | None = None,
    bounds: Bounds | None = None,
) -> ValidationReport:
    """Test and measure an artifact.

    Args:
        path: of the archive.
        compiled: Tezzeret's word on it.
        trust: whom we believe.
        sandbox: from `new_sandbox`; may be used again.
        population: reports of kernels that passed on the same target, for tags.
        experience: from field reports, for the risk.
        bounds: of the checks.

    Raises:
        ArtifactError: the archive is not what Tezzeret signed, so that there is nothing to judge.
        KernelError: it is made for a device that this sandbox does not reach.
        SandboxError: the sandbox cannot be set up.
    """
    begun = time.monotonic()
    bounds = bounds or Bounds()
    made = _claim(path, compiled, trust)
    if made.spec.target.device != "cpu":
        raise KernelError(
            f"{made.kernel} is for {made.spec.target.name}; the sandbox runs kernels for CPUs only"
        )
    findings = Findings()
    outcome = Outcome()
    measurements: dict[str, Measurement] = {}
    chosen: list[Trial] = []
    artifact = _opened(path, compiled, trust, findings)
    if artifact is not None:
        chosen = trials(artifact.blueprint, made.spec.interface)
        if not chosen:
            findings.note("load", "its blueprint fits no slot of its class")
    if artifact is not None and chosen:
        measured = next(number for number, trial in enumerate(chosen) if trial.full)
        outcome = _run(path, compiled, trust, made, chosen, measured, sandbox, bounds)
        returned = _sorted(outcome)
        failed = fate.failure(outcome, returned.stage)
        for stage in fate.STAGES[: 2 if failed is None or returned.stage not in ("load",) else 0]:
            findings.note(stage, None)
        if failed is not None:
            findings.note(*failed)
        if returned.malformed is not None:
            findings.note("output", returned.malformed)
        for number, trial in enumerate(chosen):
            if number in returned.tensors:
                expected = reference(artifact.blueprint, trial)
                found = returned.tensors[number]
                judge(trial, expected, found, bounds, findings, trains=made.trains)
            elif failed is None:
                findings.note("shape", "an output is missing")
        if failed is None:
            for name in (
                "hang",
                "crash",
                "memory",
                "files",
                "network",
                "processes",
                "calls",
                "output",
                "globals",
            ):
                findings.note(name, None)
            findings.note("leaks", _leaks(returned.held))
            measurements = _measurements(returned.samples, findings)
            _numbers(artifact, chosen[measured], outcome, findings, measurements)
    passed = bool(findings.checks) and all(check.passed for check in findings.checks)
    own = {name: found.median for name, found in measurements.items()} | findings.numbers
    return ValidationReport(
        kernel=made.kernel,
        digest=made.digest,
        passed=passed,
        checks=_ordered(findings.checks),
        measurements=measurements,
        numbers=findings.numbers,
        tags=tags(own, population) if passed else (),
        risk=risk(artifact.blueprint, own, experience or Experience()) if passed and artifact else None,
        layers=outcome.layers,
        seconds=time.monotonic() - begun,
        widths=tuple(dict.fromkeys((trial.slot.width_in, trial.slot.width_out) for trial in chosen)),
    )


def _claim(path: Path, compiled: Signed, trust: Trust) -> Compiled:
    made = trust.verify(compiled, Role.TEZZERET)
    if not isinstance(made, Compiled):
        raise ArtifactError(f"a {made.kind} is no word about an artifact that was made")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != made.digest:
        raise ArtifactError(f"{path}: its digest is {digest[:16]}; signed was {made.digest[:16]}")
    return made


def _opened(path: Path, compiled: Signed, trust: Trust, findings: Findings) -> VerifiedArtifact | None:
    """The artifact, or None with the reason noted: what Tezzeret signed need not be well formed."""
    try:
        return open_artifact(path, compiled, None, trust, validated=False)
    except ArtifactError as error:
        findings.note("load", str(error).removeprefix(f"{path}: "))
        return None


def _run(
    path: Path,
    compiled: Signed,
    trust: Trust,
    made: Compiled,
    chosen: Sequence[Trial],
    measured: int,
    sandbox: Sandbox,
    bounds: Bounds,
) -> Outcome:
    fast = made.spec.pipeline is Pipeline.FAST
    header = {
        "compiled": compiled.model_dump(mode="json"),
        "trust": trust.keys.model_dump(mode="json"),
        "trials": [
            {"slot": trial.slot.model_dump(mode="json"), "full": trial.full, "trains": made.trains}
            for trial in chosen
        ],
        "measured": measured,
        "trains": made.trains,
        "seconds": bounds.measuring * (1 if fast else _COMPILED_FACTOR),
    }
    tensors: dict[str, Tensor] = {}
    for number, trial in enumerate(chosen):
        tensors |= {f"{number}.w.{name}": value for name, value in trial.weights.items()}
        tensors |= {f"{number}.x.{name}": value for name, value in trial.inputs.items()}
        tensors[f"{number}.gradient"] = trial.gradient
    size = path.stat().st_size
    limits = Limits(
        seconds=bounds.seconds,
        memory=bounds.memory,
        file_bytes=0 if fast else max(size * 2, MIB),
        folder_bytes=4 * size + 16 * MIB,
    )
    files = {child.ARCHIVE: path.read_bytes()}
    function = f"{child.__name__}:{child.exercise.__name__}"
    return sandbox.run(function, pack(header, tensors), limits=limits, files=files)


def _sorted(outcome: Outcome) -> _Returned:
    stage, malformed = "load", None
    tensors: dict[int, dict[str, Tensor]] = {}
    held: list[_Amounts] = []
    samples: dict[str, list[int]] = {}
    for frame in outcome.frames:
        try:
            header, found = unpack(frame.data)
            if "stage" in header:
                stage = str(header["stage"])
            elif "trial" in header:
                tensors[int(header["trial"])] = found
            elif "held" in header:
                allocated, blocks = (int(value) for value in header["held"])
                held.append((allocated, blocks, frame.resident, frame.mapped))
            elif "samples" in header:
                samples = {name: [int(n) for n in taken.flatten().tolist()] for name, taken in found.items()}
        except (ValueError, TypeError, KeyError) as error:
            malformed = f"something that is no message came out of the sandbox: {error}"
    return _Returned(stage, tensors, held, samples, malformed)


def _leaks(held: list[_Amounts]) -> str | None:
    """Memory that grew in every round of repeated calls."""
    if len(held) <= len(child.ROUNDS):
        return "the search for leaks did not end"
    least = (*child.LEAST_LEAK, _PAGE, _PAGE)
    kinds = ("allocated bytes", "Python objects", "bytes of resident memory", "bytes of address space")
    calls = (*child.ROUNDS, *child.MORE_ROUNDS)[: len(held) - 1]
    for kind, bound, *values in zip(kinds, least, *held, strict=True):
        growth = [after - before for before, after in pairwise(values)]
        if all(more >= bound * count for more, count in zip(growth, calls, strict=True)):
            return f"{sum(growth) / sum(calls):.0f} {kind} more with each call"
    return None


def _measurements(samples: dict[str, list[int]], findings: Findings) -> dict[str, Measurement]:
    good = bool(samples) and all(taken and min(taken) >= 0 for taken in samples.values())
    findings.note("time", None if good else "no times were measured")
    if not good:
        return {}
    found = {f"{name}_us": timing.microseconds(taken) for name, taken in samples.items()}
    if "training_us" in found:
        forward, training = samples["forward"], samples["training"]
        backward = [max(0, both - round(found["forward_us"].median * 1e3)) for both in training]
        found["backward_us"] = timing.microseconds(backward) if forward else found["training_us"]
    return found


def _numbers(
    artifact: VerifiedArtifact,
    trial: Trial,
    outcome: Outcome,
    findings: Findings,
    measurements: dict[str, Measurement],
) -> None:
    price = cost(artifact.blueprint, trial.slot)
    numbers = findings.numbers
    numbers["parameters"] = price.parameters
    numbers["macs"] = price.macs
    resident = [frame.resident for frame in outcome.frames]
    if resident:
        numbers["peak_bytes"] = max(0, outcome.peak - resident[0])
    if "drift" in numbers:
        numbers["drift_share"] = min(1.0, numbers["drift"] / EXACT[trial.slot.dtype])
    batch = next(iter(trial.inputs.values())).shape[0]
    for name in ("forward", "training"):
        own, eager = measurements.get(f"{name}_us"), measurements.get(f"eager_{name}_us")
        if own is not None and own.median > 0:
            numbers[f"{name}_per_s"] = batch * 1e6 / own.median
            if eager is not None:
                # The last one counts as the kernel's: of a training step where it trains.
                numbers[f"{name}_speedup"] = numbers["speedup"] = eager.median / own.median


def _ordered(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Failures first, then what passed."""
    return (*(c for c in checks if not c.passed), *(c for c in checks if c.passed))
