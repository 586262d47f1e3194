"""Bars of the forge: kernels are made in time, pass, match the eager graph anywhere, and have the same bytes.

``fast`` kernels are made of the whole catalogue for slots of several widths; ``standard`` ones of one
blueprint of every family (blueprints with the same operators in the same order). All are made by Tezzeret as
its worker does and go through Urabrask's gauntlet; then a fresh process loads every archive and compares.
Every kernel is made a second time elsewhere: in another process (compiled ones each in one of its own) with
another home, temporary folder, hash seed and build folder, without the sandbox. The second makes of compiled
ones run beside the first: on one core, both take twice as long.

``python -m benchmarks.forge [NAME ...]`` compiles only the named blueprints.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.line import bar
from benchmarks.timing import percentile
from esper_runtime.artifact import KeyRing, artifact_files, decode_archive, encode_archive, open_artifact
from esper_runtime.blueprint import canonical_id, catalogue, sample_slots
from esper_runtime.blueprint.builder import build
from esper_runtime.blueprint.checks import sample_interfaces
from esper_runtime.contracts import Blueprint, Interface, KernelInterface, Pipeline, Signed, canonical_json
from esper_runtime.kasmina.kernels import compiler, current_target, load, spec_for
from esper_runtime.sandbox import Workspace
from esper_runtime.tezzeret import Builder, make
from esper_runtime.urabrask import evaluate, new_sandbox

WIDTHS = (8, 32, 128)
COMPILED_WIDTH = 32
FAST_SECONDS, COMPILED_SECONDS = 5.0, 90.0
TOLERANCE = 1e-5
COMMAND = "python -m benchmarks.forge"


@dataclass
class Made:
    """A kernel that was made.

    Attributes:
        name: of the blueprint.
        path: of the archive.
        compiled: Tezzeret's word.
        seconds: it took.
        digest: of the archive.
        failures: checks of the gauntlet that it did not pass.
        tags: that the gauntlet gave it.
    """

    name: str
    path: Path
    compiled: Signed
    seconds: float
    digest: str
    failures: list[str]
    tags: tuple[str, ...]


def families() -> list[str]:
    """The first blueprint of each family."""
    first: dict[object, str] = {}
    for name, blueprint in catalogue().items():
        operators = tuple(node.op for node in blueprint.nodes)
        first.setdefault((blueprint.interface, blueprint.span, operators), name)
    return list(first.values())


def slot(blueprint: Blueprint, width: int) -> Interface:
    """A slot of this width that a blueprint of this kind is for."""
    return sample_interfaces(blueprint)[0].model_copy(update={"width_in": width, "width_out": width})


def wanted(pipeline: Pipeline, names: Sequence[str]) -> Iterator[tuple[str, Interface]]:
    """What is made: blueprint and slot, of those pairs that fit each other."""
    for name in names:
        for width in WIDTHS if pipeline is Pipeline.FAST else (COMPILED_WIDTH,):
            interface = slot(catalogue()[name], width)
            exact = pipeline is not Pipeline.FAST
            if sample_slots(catalogue()[name], KernelInterface.of(interface, exact=exact)):
                yield name, interface


def make_all(pipeline: Pipeline, names: Sequence[str], home: Path) -> list[Made]:
    """Make, and test, everything that is wanted."""
    keys, done = KeyRing(home), []
    with Builder() as builder, new_sandbox() as sandbox:
        for name, interface in wanted(pipeline, names):
            blueprint = catalogue()[name]
            spec = spec_for(canonical_id(blueprint), interface, current_target(), pipeline)
            begun = time.perf_counter()
            path, compiled = make(spec, blueprint, home / "made", keys, builder)
            seconds = time.perf_counter() - begun
            report = evaluate(path, compiled, keys.trust, sandbox=sandbox)
            failures = [f"{check.name}: {check.reason}" for check in report.failures]
            done.append(Made(name, path, compiled, seconds, report.digest, failures, report.tags))
            print(
                f"# {pipeline.value} {name} {interface.width_in}: {seconds:.2f} s {failures or ''}",
                flush=True,
            )
    return done


def make_elsewhere(pipeline: Pipeline, names: Sequence[str], folder: Path) -> list[str]:
    """Digests of the same kernels, made in processes that differ in all they may: one for all ``fast``
    kernels, one for each that is compiled."""
    kernels = list(wanted(pipeline, names))
    parts = [kernels] if pipeline is Pipeline.FAST else [[kernel] for kernel in kernels]
    digests = []
    for number, part in enumerate(parts):
        home = folder / f"elsewhere-{number}"
        home.mkdir(parents=True)
        words = [word for name, interface in part for word in (name, interface.model_dump_json())]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.forge", "--elsewhere", pipeline.value, *words],
            env={**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONHASHSEED": str(number + 1)}
            | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = [done.stderr[-300:]] * len(part)
        digests += done.stdout.split()[-len(part) :] if done.returncode == 0 else failed
    return digests


def elsewhere(pipeline: Pipeline, name: str, interface: Interface) -> str:
    """The digest of a kernel that is made here and now, without the sandbox."""
    from esper_runtime.kasmina.kernels import Call
    from esper_runtime.tezzeret.build import MADE, build_parts

    blueprint = catalogue()[name]
    spec = spec_for(canonical_id(blueprint), interface, current_target(), pipeline)
    parts: dict[str, bytes] = {}
    trains = True
    if pipeline is not Pipeline.FAST:
        request = {
            "graph": blueprint.model_dump(mode="json", by_alias=True),
            "interface": spec.interface.model_dump(mode="json", by_alias=True),
            "arch": spec.target.arch,
            "compiler": compiler(),
        }
        with tempfile.TemporaryDirectory() as folder:
            result = build_parts(canonical_json(request), Workspace(Path(folder)))
        if not result.startswith(MADE):
            return result.decode(errors="replace")
        parts = decode_archive(result.removeprefix(MADE))
        trains = bool(Call.decoded(parts["call.json"]).learned)
    return hashlib.sha256(
        encode_archive(artifact_files(spec, blueprint, trains=trains, parts=parts))
    ).hexdigest()


def match(home: Path, listed: Path) -> dict[str, float]:
    """In a fresh process: load every archive and compare; the largest relative difference of each kind."""
    worst = {"fast": 0.0, "forward": 0.0, "backward": 0.0}
    trust = KeyRing(home).trust
    for path, compiled in json.loads(listed.read_text()):
        artifact = open_artifact(Path(path), Signed.model_validate(compiled), None, trust, validated=False)
        kernel = load(artifact)
        for interface in sample_slots(kernel.blueprint, kernel.spec.interface):
            body, eager = kernel.body(interface, 1), build(kernel.blueprint, interface, 1)
            for parameter, other in zip(body.parameters(), eager.parameters(), strict=True):
                assert torch.equal(parameter, other)
                parameter.data.add_(torch.randn_like(parameter) / 8)
                other.data.copy_(parameter)
            if not kernel.compiled:
                worst["fast"] = max(worst["fast"], _difference(body, eager, interface, learns=True)[1])
                continue
            twin = kernel.twin(body)
            if not kernel.trains:
                twin.eval()
                eager.eval()
            forward, backward = _difference(twin, eager, interface, learns=kernel.trains)
            assert twin.compiled_calls > 0
            worst["forward"] = max(worst["forward"], forward)
            worst["backward"] = max(worst["backward"], backward)
    return worst


def _difference(
    module: nn.Module, eager: nn.Module, interface: Interface, *, learns: bool
) -> tuple[float, float]:
    """Largest difference of outputs, and of outputs and gradients, relative to the largest value of each."""
    from esper_runtime.tezzeret.fast import tensor_shape

    x = torch.randn(tensor_shape(interface, 3))
    found: list[list[Tensor]] = []
    for each in (module, eager):
        each.zero_grad()
        own = x.clone().requires_grad_(learns)
        with torch.set_grad_enabled(learns):
            y = each(own)
        tensors = [y.detach()]
        if learns:
            y.square().sum().backward()
            assert own.grad is not None
            tensors += [own.grad, *(p.grad for p in each.parameters() if p.grad is not None)]
        found.append(tensors)
    differences = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(*found, strict=True)
    ]
    return differences[0], max(differences)


def main() -> int:
    """Print the bars; returns 1 when one is missed."""
    if sys.argv[1:2] == ["--elsewhere"]:
        for name, words in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
            print(elsewhere(Pipeline(sys.argv[2]), name, Interface.model_validate_json(words)))
        return 0
    if sys.argv[1:2] == ["--match"]:
        print(json.dumps(match(Path(sys.argv[2]), Path(sys.argv[3]))))
        return 0
    torch.set_num_threads(1)
    names = sys.argv[1:] or families()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        repeated: list[str] = []
        second = threading.Thread(
            target=lambda: repeated.extend(make_elsewhere(Pipeline.STANDARD, names, Path(folder, "other")))
        )
        second.start()
        compiled = make_all(Pipeline.STANDARD, names, home)
        second.join()
        fast = make_all(Pipeline.FAST, list(catalogue()), home)
        again = make_elsewhere(Pipeline.FAST, names, Path(folder, "fast"))
        passed &= _made("fast kernels of the catalogue", fast, FAST_SECONDS)
        passed &= _made("compiled kernels of every family", compiled, COMPILED_SECONDS)
        passed &= _matched(home, fast + compiled, Path(folder, "list.json"))
        firsts = [one.digest for one in fast if one.name in names]
        passed &= _repeated(firsts + [one.digest for one in compiled], again + repeated)
    return 0 if passed else 1


def _made(what: str, made: list[Made], bound: float) -> bool:
    seconds = [one.seconds for one in made]
    p95 = percentile(seconds, 0.95)
    rejected = {one.name: one.failures for one in made if one.failures}
    quick = sum(
        "training-faster-than-eager" in one.tags or "forward-faster-than-eager" in one.tags for one in made
    )
    passed = p95 <= bound and not rejected
    bar(
        what,
        command=COMMAND,
        figure={"p95_s": round(p95, 3), "passed": len(made) - len(rejected), "made": len(made)},
        bound=f"95th percentile of the time at most {bound:g} s; all pass the gauntlet",
        passed=passed,
        detail={
            "median_s": round(percentile(seconds, 0.5), 3),
            "max_s": round(max(seconds), 3),
            "rejected": rejected,
            "faster_than_eager_in_one_way": quick,
        },
    )
    return passed


def _matched(home: Path, made: list[Made], listed: Path) -> bool:
    listed.write_text(json.dumps([[str(one.path), one.compiled.model_dump(mode="json")] for one in made]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.forge", "--match", str(home), str(listed)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    worst = json.loads(done.stdout) if done.returncode == 0 else {}
    passed = bool(worst) and max(worst.values()) <= TOLERANCE and worst["fast"] == 0.0
    bar(
        "every artifact loads in a fresh process and matches the eager graph",
        command=COMMAND,
        figure=worst,
        bound=f"fast: no difference; compiled: relative to the largest value at most {TOLERANCE:g}",
        passed=passed,
        detail={"artifacts": len(made)},
    )
    return passed


def _repeated(first: list[str], second: list[str]) -> bool:
    same = sum(a == b for a, b in zip(first, second, strict=True))
    passed = same == len(first)
    others = [b for a, b in zip(first, second, strict=True) if a != b]
    bar(
        "the same bytes from two environments",
        command=COMMAND,
        figure={"same": same, "of": len(first)},
        bound="all",
        passed=passed,
        detail={
            "varied": "process, HOME, TMPDIR, PYTHONHASHSEED, build folder, with and without the sandbox",
            "others": others[:5],
        },
    )
    return passed


if __name__ == "__main__":
    sys.exit(main())
