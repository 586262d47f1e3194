"""Integrity: whatever is changed in a kernel's files, and whoever else has signed, the shelf refuses it.

``python -m benchmarks.integrity``: every single-bit flip of small artifacts and of the words beside them,
10,000 random ones of a compiled artifact, forms that decode to equal values, and words that do not count.
"""

import base64
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.line import bar
from benchmarks.other_forms import ORDER, other_archives, other_json, spare_bits
from esper_runtime.artifact import KeyRing, artifact_files, decode_archive, encode_archive
from esper_runtime.blueprint import canonical_id, catalogue, misfit
from esper_runtime.contracts import (
    ArtifactError,
    Blueprint,
    Check,
    Compiled,
    CompileFailed,
    Interface,
    KernelError,
    KernelState,
    Pipeline,
    Role,
    Ruling,
    Signed,
    Statement,
    ValidationReport,
    Verdict,
    canonical_json,
    utc_now,
)
from esper_runtime.kasmina.kernels import current_target, spec_for
from esper_runtime.tezzeret import make
from esper_runtime.urza import Shelf

COMMAND = "python -m benchmarks.integrity"
SMALL = ("norm-scale-sequence", "bottleneck-bn")
LARGE = "conv-stack-bn"
FLIPS = 10_000
BALLAST = 4 * 1024 * 1024
"""Random bytes that make the second compiled artifact a large one."""
SLOT = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(40,), spatial_out=(40,))
WORDS = 24
"""So many kernels are tried with each kind of wrong word."""


class Machine:
    """A home with keys and a shelf, and the tally of one bar: what was tried, and what was not refused."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ring = KeyRing(home)
        self.trust = self.ring.trust
        self.shelf = Shelf(home)
        self.tried = 0
        self.accepted: list[str] = []
        self.intact = 0

    def kernel(self, blueprint: Blueprint, pipeline: Pipeline = Pipeline.FAST) -> "Kernel":
        """A real one, made and signed, with a verdict, on the shelf."""
        spec = spec_for(canonical_id(blueprint), SLOT, current_target(), pipeline)
        path, compiled = make(spec, blueprint, self.home / "made", self.ring)
        statement = self.trust.verify(compiled, Role.TEZZERET)
        assert isinstance(statement, Compiled)
        verdict = self.ring.sign(Role.URABRASK, passed(statement))
        self.shelf.put(path, compiled, verdict, self.trust)
        return Kernel(self.shelf.folder, statement, compiled, verdict, path.read_bytes(), blueprint)

    def refuses(self, kernel: "Kernel", what: str) -> None:
        """Try to open it, which must fail."""
        self.tried += 1
        try:
            self.shelf.open(kernel.name, self.trust)
        except (ArtifactError, KernelError):
            return
        self.accepted.append(what)

    def opens(self, kernel: "Kernel") -> None:
        """The control: unchanged, it opens."""
        self.shelf.open(kernel.name, self.trust)
        self.intact += 1

    def report(self, name: str, bound: str, started: float) -> None:
        """Print the bar, and begin the tally anew."""
        bar(
            name,
            command=COMMAND,
            figure={"refused": self.tried - len(self.accepted), "of": self.tried},
            bound=bound,
            passed=not self.accepted and self.tried > 0 and self.intact > 0,
            control={"unchanged and opened": self.intact},
            detail={"accepted": self.accepted[:10], "seconds": round(time.monotonic() - started, 1)},
        )
        self.tried, self.accepted, self.intact = 0, [], 0


class Kernel:
    """One on the shelf: its two files, and what they should hold."""

    def __init__(
        self,
        folder: Path,
        statement: Compiled,
        compiled: Signed,
        verdict: Signed,
        data: bytes,
        blueprint: Blueprint,
    ) -> None:
        self.statement, self.compiled, self.verdict = statement, compiled, verdict
        self.data, self.blueprint = data, blueprint
        self.name = f"{statement.kernel}-{statement.digest[:16]}"
        self.archive = folder / f"{self.name}.kernel"
        self.words = folder / f"{self.name}.json"
        self.said = canonical_json(
            {
                "compiled": compiled.model_dump(mode="json", by_alias=True),
                "verdict": verdict.model_dump(mode="json", by_alias=True),
                "ruling": None,
            }
        )

    def say(self, compiled: object = None, verdict: object = None, **more: object) -> None:
        """Put other words beside the archive."""
        data = json.loads(self.said)
        for field, given in (("compiled", compiled), ("verdict", verdict)):
            if isinstance(given, Signed):
                data[field] = given.model_dump(mode="json", by_alias=True)
            elif given is not None:
                data[field] = given
        self.words.write_bytes(canonical_json(data | more))

    def restore(self) -> None:
        """As it was."""
        self.archive.write_bytes(self.data)
        self.words.write_bytes(self.said)

    def remove(self) -> None:
        """Take it off the shelf."""
        self.archive.unlink()
        self.words.unlink()


def passed(compiled: Compiled, good: bool = True) -> Verdict:
    """A verdict on it."""
    report = ValidationReport(
        kernel=compiled.kernel,
        digest=compiled.digest,
        passed=good,
        checks=(Check(name="shape", passed=good),),
        seconds=1.0,
    )
    return Verdict(kernel=compiled.kernel, digest=compiled.digest, report=report)


def flips(machine: Machine, kernel: Kernel, path: Path, bits: Iterator[int]) -> None:
    """Flip bits of a file, one at a time."""
    with path.open("r+b", buffering=0) as file:
        for count, bit in enumerate(bits):
            place = bit // 8
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << bit % 8]))
            machine.refuses(kernel, f"{path.suffix} bit {bit}")
            file.seek(place)
            file.write(bytes([byte]))
            if count % 4096 == 0:
                machine.opens(kernel)
    machine.opens(kernel)


def equal_values(machine: Machine, kernel: Kernel) -> None:
    """Other bytes that decode to the same: changed by a stranger, and signed by Tezzeret itself."""
    for change, data in other_archives(kernel.data):
        kernel.archive.write_bytes(data)
        machine.refuses(kernel, f"{change}, changed afterwards")
        placed = signed_archive(machine, kernel, data)
        machine.refuses(placed, f"{change}, signed")
        placed.remove()
    kernel.restore()
    for change, data in other_json(kernel.said):
        kernel.words.write_bytes(data)
        machine.refuses(kernel, f"words {change}")
    for field in ("compiled", "verdict"):
        signed = getattr(kernel, field)
        for change, text in other_json(signed.statement.encode()):
            if b"\xef" not in text:
                kernel.say(**{field: signed.model_copy(update={"statement": text.decode()})})
                machine.refuses(kernel, f"{field} {change}, changed afterwards")
                kernel.say(**{field: sign_text(machine, signed, text.decode())})
                machine.refuses(kernel, f"{field} {change}, signed")
        value = signed.signature.value
        for other in spare_bits(value):
            kernel.say(**{field: with_signature(signed, value=other)})
            machine.refuses(kernel, f"{field} with spare bits")
        number = int.from_bytes(base64.b64decode(value)[32:], "little") + ORDER
        if number < 1 << 256:
            data = base64.b64decode(value)[:32] + number.to_bytes(32, "little")
            kernel.say(**{field: with_signature(signed, value=base64.b64encode(data).decode())})
            machine.refuses(kernel, f"{field} with s + L")
    kernel.restore()
    machine.opens(kernel)


def with_signature(signed: Signed, **change: str) -> Signed:
    """A copy with another signature."""
    return signed.model_copy(update={"signature": signed.signature.model_copy(update=change)})


def sign_text(machine: Machine, signed: Signed, text: str) -> Signed:
    """A text signed with the key that a statement carries, whatever it says."""
    (path,) = (machine.home / "keys").glob(f"*-{signed.signature.key}.pem")
    private: Any = load_pem_private_key(path.read_bytes(), None)
    value = base64.b64encode(private.sign(text.encode())).decode()
    return with_signature(signed.model_copy(update={"statement": text}), value=value)


def signed_as(machine: Machine, role: Role, statement: Statement) -> Signed:
    """A statement with the signature of a role that has no say in it."""
    model = Signed(
        statement=canonical_json(statement.model_dump(mode="json", by_alias=True)).decode(),
        signature={"key": machine.ring.ensure(role).key, "value": "A" * 86 + "=="},  # type: ignore[arg-type]
    )
    return sign_text(machine, model, model.statement)


def wrong_words(machine: Machine, kernel: Kernel, other: Kernel, stranger: KeyRing) -> None:
    """Words that do not count, one after the other."""
    for what, attempt in attempts_at(machine, kernel, other, stranger).items():
        attempt()
        machine.refuses(kernel, what)
        kernel.restore()
    machine.opens(kernel)


def attempts_at(
    machine: Machine, kernel: Kernel, other: Kernel, stranger: KeyRing
) -> dict[str, Callable[[], None]]:
    """What puts words beside a kernel, or an archive under them, that do not count."""
    made, said = kernel.statement, passed(kernel.statement)
    forged = stranger.sign(Role.URABRASK, said)
    elsewhere = said.model_copy(
        update={"digest": "0" * 64, "report": said.report.model_copy(update={"digest": "0" * 64})}
    )
    failed = CompileFailed(spec=made.spec, kernel=made.kernel, reason="no")
    ruling = Ruling(kernel=made.kernel, state=KernelState.VALIDATED, reason="", time=utc_now())
    ring, foreign = machine.ring, passed(other.statement).report
    return {
        "no signature": lambda: kernel.say(verdict={"statement": kernel.verdict.statement}),
        "an empty signature": lambda: kernel.say(
            verdict=with_signature(kernel.verdict, value="A" * 86 + "==")
        ),
        "no verdict": lambda: kernel.words.write_bytes(
            canonical_json({"compiled": json.loads(kernel.said)["compiled"]})
        ),
        "a stranger's verdict": lambda: kernel.say(verdict=forged),
        "a stranger's verdict under a known key": lambda: kernel.say(
            verdict=with_signature(forged, key=kernel.verdict.signature.key)
        ),
        "a stranger's Compiled": lambda: kernel.say(compiled=stranger.sign(Role.TEZZERET, made)),
        "a verdict signed by Tezzeret": lambda: kernel.say(verdict=signed_as(machine, Role.TEZZERET, said)),
        "a verdict signed by the planner": lambda: kernel.say(verdict=signed_as(machine, Role.PLANNER, said)),
        "a Compiled signed by Urabrask": lambda: kernel.say(compiled=signed_as(machine, Role.URABRASK, made)),
        "a Compiled in place of the verdict": lambda: kernel.say(verdict=kernel.compiled),
        "a verdict in place of Compiled": lambda: kernel.say(compiled=kernel.verdict),
        "a ruling in place of the verdict": lambda: kernel.say(verdict=ring.sign(Role.PLANNER, ruling)),
        "CompileFailed in place of Compiled": lambda: kernel.say(compiled=ring.sign(Role.TEZZERET, failed)),
        "another kernel's report": lambda: kernel.say(verdict=other.verdict),
        "another kernel's report under this kernel's name": lambda: kernel.say(
            verdict=ring.sign(Role.URABRASK, said.model_copy(update={"report": foreign}))
        ),
        "another kernel's words": lambda: kernel.say(compiled=other.compiled, verdict=other.verdict),
        "another kernel's archive": lambda: kernel.archive.write_bytes(other.data) and None,
        "another kernel's archive and words": lambda: (
            kernel.archive.write_bytes(other.data) and None,
            kernel.say(compiled=other.compiled, verdict=other.verdict),
        )[1],
        "a report on other bytes of this kernel": lambda: kernel.say(
            verdict=ring.sign(Role.URABRASK, elsewhere)
        ),
        "a verdict that it failed": lambda: kernel.say(
            verdict=ring.sign(Role.URABRASK, passed(made, good=False))
        ),
        "a verdict that it failed, changed to passed": lambda: kernel.say(
            verdict=ring.sign(Role.URABRASK, passed(made, good=False)).model_copy(
                update={"statement": kernel.verdict.statement}
            )
        ),
        "the two signatures exchanged": lambda: kernel.say(
            verdict=kernel.verdict.model_copy(update={"signature": kernel.compiled.signature})
        ),
    }


def contradictions(machine: Machine, kernel: Kernel, other: Kernel) -> None:
    """Archives that Tezzeret has signed and that are not what they say."""
    spec, graph = kernel.statement.spec, kernel.blueprint
    archives = {
        "another graph inside": artifact_files(spec, other.blueprint, trains=True),
        "another kernel's manifest": artifact_files(other.statement.spec, other.blueprint, trains=True),
        "a manifest that says it does not train": artifact_files(spec, graph, trains=False),
        "a file more": artifact_files(spec, graph, trains=True) | {"more": b"x"},
    }
    for what, files in archives.items():
        placed = signed_archive(machine, kernel, encode_archive(files))
        machine.refuses(placed, what)
        placed.remove()


def signed_archive(machine: Machine, kernel: Kernel, data: bytes) -> Kernel:
    """An archive on the shelf, with words about it that are signed by the right roles."""
    made = kernel.statement.model_copy(
        update={"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    )
    placed = Kernel(
        kernel.archive.parent,
        made,
        machine.ring.sign(Role.TEZZERET, made),
        machine.ring.sign(Role.URABRASK, passed(made)),
        data,
        kernel.blueprint,
    )
    placed.restore()
    return placed


def revocations(machine: Machine, kernels: list[Kernel]) -> None:
    """Digests, then keys, are revoked or run out."""
    for kernel in kernels[1:]:
        machine.opens(kernel)
        machine.ring.revoke(kernel.statement.digest, "tried")
        machine.refuses(kernel, "a revoked digest")
    kernel = kernels[0]
    for role, field in ((Role.URABRASK, "verdict"), (Role.TEZZERET, "compiled")):
        machine.opens(kernel)
        machine.ring.rotate(role, timedelta(days=1))
        machine.opens(kernel)
        machine.ring.revoke(getattr(kernel, field).signature.key, "tried")
        machine.refuses(kernel, f"a revoked key of {role}")
        statement = kernel.statement if role is Role.TEZZERET else passed(kernel.statement)
        setattr(kernel, field, machine.ring.sign(role, statement))
        kernel.say(kernel.compiled, kernel.verdict)
        kernel.said = kernel.words.read_bytes()
        machine.opens(kernel)
        machine.ring.rotate(role, timedelta(0))
        machine.refuses(kernel, f"a key of {role} that is over")
        setattr(kernel, field, machine.ring.sign(role, statement))
        kernel.say(kernel.compiled, kernel.verdict)
        kernel.said = kernel.words.read_bytes()


def main() -> int:
    """Measure; returns 0."""
    known = catalogue()
    chosen = random.Random(4)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder) / "esper")
        stranger = KeyRing(Path(folder) / "stranger")
        started = time.monotonic()
        for name in SMALL:
            kernel = machine.kernel(known[name])
            flips(machine, kernel, kernel.archive, iter(range(len(kernel.data) * 8)))
            flips(machine, kernel, kernel.words, iter(range(len(kernel.said) * 8)))
        machine.report("bit flips of small artifacts", "every one refused, of archive and words", started)

        started = time.monotonic()
        compiled = machine.kernel(known[LARGE], Pipeline.STANDARD)
        parts = decode_archive(compiled.data) | {"ballast": chosen.randbytes(BALLAST)}
        del parts["manifest.json"], parts["blueprint.json"]
        made = compiled.statement
        files = artifact_files(made.spec, compiled.blueprint, trains=made.trains, parts=parts)
        large = signed_archive(machine, compiled, encode_archive(files))
        for kernel in (compiled, large):
            bits = chosen.sample(range(len(kernel.data) * 8), FLIPS)
            flips(machine, kernel, kernel.archive, iter(bits))
        name = f"bit flips of compiled artifacts of {len(compiled.data):,} and {len(large.data):,} bytes"
        machine.report(name, "10,000 of 10,000 refused of each", started)

        started = time.monotonic()
        small = [machine.kernel(graph) for graph in fitting()[:WORDS]]
        for kernel in small[:3]:
            equal_values(machine, kernel)
        machine.report("other bytes of equal value", "every one refused", started)

        started = time.monotonic()
        for kernel, other in zip(small, [*small[1:], small[0]], strict=True):
            wrong_words(machine, kernel, other, stranger)
            contradictions(machine, kernel, other)
        wrong_words(machine, compiled, small[0], stranger)
        revocations(machine, small)
        machine.report("words that do not count", "every one refused", started)
    return 0


def fitting() -> list[Blueprint]:
    """Of the catalogue, those for the slot."""
    return [graph for graph in catalogue().values() if misfit(graph, SLOT) is None]


if __name__ == "__main__":
    sys.exit(main())
