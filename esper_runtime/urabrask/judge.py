"""Judging what came out of the sandbox against the reference: one `Check` for each question."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from esper_runtime.contracts import Check
from esper_runtime.urabrask.bounds import EQUAL, EXACT, Bounds
from esper_runtime.urabrask.passes import Pass
from esper_runtime.urabrask.reference import Reference
from esper_runtime.urabrask.trials import RANDOM, Trial, shape_of

Sent = Mapping[str, Tensor]


class Findings:
    """Collects the checks of several trials: the first failure of each name is kept.

    Attributes:
        numbers: measured on the way.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self.numbers: dict[str, float] = {}

    def note(self, name: str, reason: str | None) -> None:
        """Record a check; ``reason`` says why it failed, None that it passed."""
        known = self._checks.get(name)
        if known is None or known.passed:
            self._checks[name] = Check(name=name, passed=reason is None, reason=(reason or "")[:500])

    def largest(self, name: str, value: float) -> None:
        """Keep the largest value of a number, where it is one."""
        if math.isfinite(value):
            self.numbers[name] = max(value, self.numbers.get(name, 0.0))

    @property
    def checks(self) -> tuple[Check, ...]:
        """In the order in which they were first made."""
        return tuple(self._checks.values())


def judge(
    trial: Trial, reference: Reference, sent: Sent, bounds: Bounds, findings: Findings, *, trains: bool
) -> None:
    """All checks of one trial. What is missing from ``sent`` counts against the kernel."""
    place = f"at widths {trial.slot.width_in} to {trial.slot.width_out}"
    outputs = _outputs(trial, sent)
    problem = _form(trial, sent, outputs)
    for name in ("shape", "dtype"):
        findings.note(name, f"{problem[1]} {place}" if problem and problem[0] == name else None)
    if problem is not None:
        return
    judged = (
        ("finite", _finite(sent)),
        ("birth", _birth(trial, reference, sent)),
        ("gradients", _gradients(trial, reference, sent) if trains else None),
        ("scale", _scale(trial, sent, bounds, findings, trains)),
        ("determinism", _same(sent, RANDOM, "again")),
        ("inputs", _inputs(trial, sent)),
        ("aliasing", _aliasing(sent)),
        ("values", _values(trial, reference, sent, findings)),
        ("precision", _precision(trial, reference, sent, findings)),
        ("float64", _float64(trial, reference, sent, bounds, findings, trains)),
        ("batch", _batch(trial, sent)),
        ("state", _state(trial, reference, sent, trains)),
        ("training", _training(trial, reference, sent) if trains else None),
    )
    for name, reason in judged:
        findings.note(name, f"{reason} {place}" if reason else None)


def _outputs(trial: Trial, sent: Sent) -> dict[str, Tensor | None]:
    names = ["birth.y", *(f"x.{name}.y" for name in trial.inputs), "again.y", "again.later", "again.last"]
    return {name: sent.get(name) for name in names}


def _form(trial: Trial, sent: Sent, outputs: Mapping[str, Tensor | None]) -> tuple[str, str] | None:
    wanted = shape_of(trial.slot, trial.inputs[RANDOM].shape[0], out=True)
    for name, output in outputs.items():
        if output is None:
            return "shape", f"the output {name} is missing"
        if tuple(output.shape) != wanted:
            return "shape", f"yields {tuple(output.shape)}, not {wanted},"
        if output.dtype is not trial.dtype:
            return "dtype", f"yields {output.dtype}, not {trial.dtype},"
    for name, value in sent.items():
        if ".g.x" in name and (value.shape != trial.inputs[RANDOM].shape):
            return "shape", f"the gradient of the input has shape {tuple(value.shape)}"
        if ".g." in name and value.dtype is not trial.dtype:
            return "dtype", f"the gradient {name} is {value.dtype}, not {trial.dtype},"
    return None


def _finite(sent: Sent) -> str | None:
    for name, value in sent.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"yields values that are not finite ({name.removeprefix('x.')})"
    return None


def _birth(trial: Trial, reference: Reference, sent: Sent) -> str | None:
    if torch.count_nonzero(sent["birth.y"]):
        return "is not zero at birth"
    return _different_state(reference.birth, sent, "birth.s.", "at birth") if trial.full else None


def _gradients(trial: Trial, reference: Reference, sent: Sent) -> str | None:
    for name in trial.inputs:
        prefix = f"x.{name}"
        reason = _compare(reference.passes[name], sent, prefix, EQUAL[trial.slot.dtype], outputs=False)
        if reason is not None:
            return f"{reason} on {name} inputs"
    return None


def _values(trial: Trial, reference: Reference, sent: Sent, findings: Findings) -> str | None:
    worst = None
    for name in trial.inputs:
        got, wanted = sent[f"x.{name}.y"], reference.passes[name].output
        error = _error(got, wanted)
        findings.largest("difference", error)
        if not error <= EQUAL[trial.slot.dtype]:
            worst = f"differs from the eager graph by {error:.2e} on {name} inputs"
    return worst


def _compare(wanted: Pass, sent: Sent, prefix: str, bound: float, *, outputs: bool = True) -> str | None:
    if outputs and not (error := _error(sent[f"{prefix}.y"], wanted.output)) <= bound:
        return f"differs from the eager graph by {error:.2e}"
    for name, gradient in wanted.gradients.items():
        got = sent.get(f"{prefix}.g.{name}")
        if got is None:
            return f"yields no gradient of {name.removeprefix('p.')}"
        if not (error := _error(got, gradient)) <= bound:
            return f"the gradient of {name.removeprefix('p.')} is off by {error:.2e}"
    return None


def _error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the larger of 1 and the largest value; infinite for other shapes."""
    if got.shape != wanted.shape:
        return math.inf
    if wanted.numel() == 0:
        return 0.0
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def _relative(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-12))


def _scale(trial: Trial, sent: Sent, bounds: Bounds, findings: Findings, trains: bool) -> str | None:
    if not trial.full:
        return None  # at the least widths some norms let hardly any gradient through
    x, y = trial.inputs[RANDOM].double(), sent[f"x.{RANDOM}.y"].double()
    gains = {"output": float(_size(y) / _size(x))}
    gradient = sent.get(f"x.{RANDOM}.g.x")
    if trains and gradient is not None:
        gains["gradient"] = float(_size(gradient.double()) / _size(trial.gradient.double()))
    for name, gain in gains.items():
        if not math.isfinite(gain):
            return f"the {name} is not finite"
        share = abs(math.log(gain)) / math.log(bounds.gain) if gain > 0 else math.inf
        findings.largest("gain_share", min(share, 1.0))
        findings.numbers[f"{name}_gain"] = gain
        if share > 1:
            word = "explodes" if gain > 1 else "vanishes"
            return f"the {name} {word}: its size is {gain:.1e} times that of what goes in"
    return None


def _size(value: Tensor) -> Tensor:
    return value.square().mean().sqrt().clamp(min=1e-300)


def _same(sent: Sent, first: str, second: str) -> str | None:
    prefix = f"x.{first}."
    for name, value in sent.items():
        if name.startswith(prefix):
            other = sent.get(f"{second}.{name.removeprefix(prefix)}")
            if other is None or not _identical(value, other):
                return f"two equal calls differ in {name.removeprefix(prefix)}"
    return None


def _identical(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and _bytes(one) == _bytes(other)


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _inputs(trial: Trial, sent: Sent) -> str | None:
    after = sent.get("x.after")
    return None if after is not None and _identical(after, trial.inputs[RANDOM]) else "changes its input"


def _aliasing(sent: Sent) -> str | None:
    if not _identical(sent["again.later"], sent["again.y"]):
        return "the output changes when the input is changed afterwards"
    if not _identical(sent["again.last"], sent["again.y"]):
        return "an output changes with the next call"
    return None


def _precision(trial: Trial, reference: Reference, sent: Sent, findings: Findings) -> str | None:
    drift = _relative(sent[f"x.{RANDOM}.y"], reference.exact.output)
    findings.largest("drift", drift)
    bound = EXACT[trial.slot.dtype]
    return None if drift <= bound else f"the output is {drift:.1e} away from float64; allowed: {bound:.0e}"


def _float64(
    trial: Trial, reference: Reference, sent: Sent, bounds: Bounds, findings: Findings, trains: bool
) -> str | None:
    if not trains:
        return None
    if not reference.slope <= bounds.slope:
        return f"the eager graph's own gradient is off by {reference.slope:.1e} from a difference quotient"
    bound = EXACT[trial.slot.dtype]
    for name, gradient in reference.exact.gradients.items():
        got = sent.get(f"x.{RANDOM}.g.{name}")
        if got is None:
            return f"yields no gradient of {name.removeprefix('p.')}"
        scale = max(float(gradient.abs().max()), 1.0)
        drift = _error(got / scale, gradient / scale)
        findings.largest("gradient_drift", drift)
        if not drift <= bound:
            return f"the gradient of {name.removeprefix('p.')} is {drift:.1e} away from float64"
    return None


def _batch(trial: Trial, sent: Sent) -> str | None:
    alone, together = sent.get("alone.y"), sent[f"x.{RANDOM}.y"][:1]
    if alone is None or not (error := _error(alone, together)) <= EQUAL[trial.slot.dtype]:
        return "an example's output depends on the others in its batch, in evaluation,"
    return None if error == error else "an example alone yields no number"


def _state(trial: Trial, reference: Reference, sent: Sent, trains: bool) -> str | None:
    if not trial.full:
        return None
    reason = _different_state(trial.weights, sent, "s.", "after running")
    if reason is None and trains:
        names = [name for name in reference.trained if f"trained.{name}" not in sent]
        reason = f"its state lacks {names[0]}" if names else None
    return reason


def _different_state(wanted: Mapping[str, Tensor], sent: Sent, prefix: str, when: str) -> str | None:
    got = {name.removeprefix(prefix) for name in sent if name.startswith(prefix)}
    if got != set(wanted):
        return f"its state has other names {when}: {', '.join(_few(got ^ set(wanted)))}"
    for name, value in wanted.items():
        if not _identical(sent[prefix + name], value):
            return f"its state {name} is not what was put in {when}"
    return None


def _few(names: Iterable[str]) -> list[str]:
    return sorted(names)[:3]


def _training(trial: Trial, reference: Reference, sent: Sent) -> str | None:
    bound = EQUAL[trial.slot.dtype]
    reason = _compare(reference.training, sent, "training", bound)
    if reason is not None:
        return f"in training mode {reason}"
    if trial.full:
        for name, value in reference.trained.items():
            if not _error(sent[f"trained.{name}"], value) <= bound:
                return f"in training mode its state {name} is not the eager graph's"
    return None
