"""A shelf with kernels of the forge, and verdicts signed with real keys, for the tests."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from esper_runtime.artifact import KeyRing, Trust
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import (
    Blueprint,
    Check,
    Compiled,
    Interface,
    Measurement,
    Pipeline,
    Role,
    Signed,
    UsableKernel,
    ValidationReport,
    Verdict,
)
from esper_runtime.kasmina import Growable, KernelCache, Stock, candidates, current_target, spec_for
from esper_runtime.tezzeret import make
from esper_runtime.urza import Shelf


@dataclass
class Bench:
    """A machine's folder with keys and a shelf."""

    home: Path
    ring: KeyRing = field(init=False)
    shelf: Shelf = field(init=False)

    def __post_init__(self) -> None:
        self.ring = KeyRing(self.home)
        self.shelf = Shelf(self.home)

    @property
    def trust(self) -> Trust:
        """Of the machine."""
        return self.ring.trust

    def made(self, blueprint: Blueprint, interface: Interface) -> tuple[Path, Signed, Compiled]:
        """An artifact that nobody has tested."""
        spec = spec_for(canonical_id(blueprint), interface, current_target(), Pipeline.FAST)
        path, signed = make(spec, blueprint, self.home / "made", self.ring)
        statement = self.trust.verify(signed, Role.TEZZERET)
        assert isinstance(statement, Compiled)
        return path, signed, statement

    def verdict(self, compiled: Compiled, passed: bool = True) -> Signed:
        """Urabrask's signed word."""
        report = ValidationReport(
            kernel=compiled.kernel,
            digest=compiled.digest,
            passed=passed,
            checks=(Check(name="shape", passed=passed, reason="" if passed else "wrong shape"),),
            measurements={"forward_us": Measurement(median=12.5, p99=20.0, count=50, steady=True)},
            numbers={"parameters": 40.0},
            tags=("fast-forward",),
            risk=0.1,
            seconds=0.5,
        )
        verdict = Verdict(kernel=compiled.kernel, digest=compiled.digest, report=report)
        return self.ring.sign(Role.URABRASK, verdict)

    def put(self, blueprint: Blueprint, interface: Interface) -> UsableKernel:
        """A validated kernel on the shelf."""
        path, signed, compiled = self.made(blueprint, interface)
        return self.shelf.put(path, signed, self.verdict(compiled), self.trust)

    def stock_for(
        self, model: Growable, names: Iterable[str] | None = None, most_bytes: int = 2**28
    ) -> tuple[Stock, KernelCache]:
        """A stock of validated kernels for the model's slots, of the blueprints of these names or all."""
        pairs = {
            (c.blueprint, model.place(c.slot).interface)
            for c in candidates(model)
            if names is None or c.name in names
        }
        kernels = {k.kernel: k for k in (self.put(model.blueprints[b], i) for b, i in pairs)}
        cache = KernelCache(self.shelf, self.trust, most_bytes)
        return Stock(kernels.values(), cache), cache
