"""A kernel: a blueprint made ready for one class of slots, one target and one pipeline."""

import hashlib
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from esper_runtime.contracts.base import ContractModel, canonical_json
from esper_runtime.contracts.blueprint import Blueprint, Interface, InterfaceKind, Origin, SpanGeometry
from esper_runtime.contracts.bus import utc_now

BlueprintId = Annotated[str, StringConstraints(pattern=r"^bp-[0-9a-f]{12}$", max_length=15)]
KernelId = Annotated[str, StringConstraints(pattern=r"^ck-[0-9a-f]{12}$", max_length=15)]
InnovationId = Annotated[str, StringConstraints(pattern=r"^iw-[0-9a-f]{12}$", max_length=15)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
DType = Literal["float64", "float32", "bfloat16", "float16"]

_FIRST_BAND, _BAND_FACTOR = 16, 4
_WIDTHS = frozenset({"least_in", "most_in", "least_out", "most_out"})


class Pipeline(StrEnum):
    """How a blueprint is made ready: ``fast`` fixes the eager graph; the others compile it."""

    FAST = "fast"
    STANDARD = "standard"
    AGGRESSIVE = "aggressive"


class Target(ContractModel):
    """What a kernel runs on. Its name stands in subjects."""

    device: Literal["cpu", "cuda"] = Field(description="Kind of device.")
    arch: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?$",
        max_length=24,
        description="CPU: instruction set as torch reports it, e.g. avx512; CUDA: compute capability, sm-90.",
    )
    torch: str = Field(
        pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=24, description="Version without its local part."
    )

    @property
    def name(self) -> str:
        """``<device>-<arch>-torch-<version>``, dots as hyphens."""
        return f"{self.device}-{self.arch}-torch-{self.torch.replace('.', '-')}"


class KernelInterface(ContractModel):
    """A class of slots: an `Interface` without the sizes seen in one probe, and with ranges of widths.

    Both ends of a range count. ``stride`` is that of the slot (empty for features); ``producer``,
    ``consumer`` and ``activation`` are given for spans.
    """

    kind: InterfaceKind
    least_in: int = Field(ge=1, le=1_048_576, description="Smallest input width.")
    most_in: int = Field(ge=1, le=1_048_576, description="Largest input width.")
    least_out: int = Field(ge=1, le=1_048_576, description="Smallest output width.")
    most_out: int = Field(ge=1, le=1_048_576, description="Largest output width.")
    stride: tuple[int, ...] = Field(default=(), max_length=2, description="Of the slot.")
    dtype: DType = Field(default="float32", description="Of the activations.")
    causal: bool = Field(default=False, description="No position may see later ones.")
    producer: SpanGeometry | None = None
    consumer: SpanGeometry | None = None
    activation: str | None = Field(
        default=None, max_length=32, description="Between producer and consumer of a span."
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.least_in > self.most_in or self.least_out > self.most_out:
            raise ValueError("the least width must not be above the most")
        return self

    @classmethod
    def of(cls, interface: Interface, *, exact: bool = False) -> Self:
        """The class that a slot belongs to: bands of widths, or its own widths alone.

        Args:
            interface: of the slot.
            exact: for pipelines that fix the widths.
        """
        ins, outs = interface.width_in, interface.width_out
        (a, b), (c, d) = ((ins, ins), (outs, outs)) if exact else (width_band(ins), width_band(outs))
        return cls(
            kind=interface.kind,
            least_in=a,
            most_in=b,
            least_out=c,
            most_out=d,
            stride=interface.stride,
            dtype=interface.dtype,
            causal=interface.causal,
            producer=interface.producer,
            consumer=interface.consumer,
            activation=interface.activation,
        )

    def contains(self, interface: Interface) -> bool:
        """Whether a slot with this interface belongs to the class."""
        other = KernelInterface.of(interface, exact=True)
        return (
            self.least_in <= other.least_in <= self.most_in
            and self.least_out <= other.least_out <= self.most_out
            and self.model_dump(exclude=set(_WIDTHS)) == other.model_dump(exclude=set(_WIDTHS))
        )


def width_band(width: int) -> tuple[int, int]:
    """The range of widths that ``width`` shares its kernels with: 1 to 16, 17 to 64, 65 to 256, ..."""
    least, most = 1, _FIRST_BAND
    while width > most:
        least, most = most + 1, most * _BAND_FACTOR
    return least, most


class KernelSpec(ContractModel):
    """All that a kernel's id is made of."""

    blueprint: BlueprintId
    interface: KernelInterface
    target: Target
    pipeline: Pipeline
    toolchain: dict[str, str] = Field(
        default_factory=dict,
        max_length=16,
        description="Versions that the parts depend on, e.g. of esper, gcc.",
    )
    flags: tuple[str, ...] = Field(default=(), max_length=32)

    @property
    def kernel_id(self) -> str:
        """``ck-`` and 12 hex digits of the SHA-256 of the canonical JSON."""
        data = canonical_json(self.model_dump(mode="json", by_alias=True))
        return f"ck-{hashlib.sha256(data).hexdigest()[:12]}"


class KernelState(StrEnum):
    """How far a kernel is. The last two come after Validated."""

    PENDING = "Pending"
    COMPILING = "Compiling"
    PENDING_BENCHMARK = "PendingBenchmark"
    BENCHMARKING = "Benchmarking"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    SUPERSEDED = "Superseded"
    QUARANTINED = "Quarantined"


class ArtifactFile(ContractModel):
    """A file of an artifact."""

    path: str = Field(min_length=1, max_length=200)
    sha256: Sha256
    bytes: int = Field(ge=0)


class ArtifactManifest(ContractModel):
    """``manifest.json`` of an artifact: what the kernel is, and every other file in the archive.

    ``trains`` says that its compiled parts have a backward pass; ``fast`` kernels always train.
    """

    version: Literal[1] = 1
    kernel: KernelSpec
    trains: bool
    files: tuple[ArtifactFile, ...] = Field(min_length=1, max_length=256)


class Check(ContractModel):
    """One test of the gauntlet."""

    name: str = Field(max_length=48)
    passed: bool
    reason: str = Field(default="", max_length=500, description="Why it failed, or what was measured.")


class Measurement(ContractModel):
    """A measured quantity: median and 99th percentile of ``count`` samples, in the unit of its name.

    ``steady`` is False where the spread stayed above 5 % when the time was over.
    """

    median: float = Field(ge=0, description="Median.")
    p99: float = Field(ge=0, description="99th percentile.")
    count: int = Field(ge=1, description="Samples.")
    steady: bool = Field(description="The spread was within 5 %.")


class ValidationReport(ContractModel):
    """What Urabrask found about one artifact. A quantity that was not measured is absent."""

    kernel: KernelId
    digest: Sha256
    passed: bool
    checks: tuple[Check, ...] = Field(min_length=1, max_length=64)
    measurements: dict[str, Measurement] = Field(
        default_factory=dict, max_length=32, description="forward_us, backward_us, eager_forward_us, ..."
    )
    numbers: dict[str, float] = Field(
        default_factory=dict,
        max_length=32,
        description="Single figures with their unit in the name: speedup, peak_bytes, parameters, drift, ...",
    )
    tags: tuple[str, ...] = Field(default=(), max_length=32)
    risk: float | None = Field(default=None, ge=0, le=1)
    layers: tuple[str, ...] = Field(default=(), max_length=16, description="Sandbox layers that were active.")
    seconds: float = Field(ge=0)
    widths: tuple[tuple[int, int], ...] = Field(default=(), max_length=16, description="(in, out) tested.")

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


class Compiled(ContractModel):
    """What Tezzeret says of an artifact that it made."""

    kind: Literal["Compiled"] = "Compiled"
    spec: KernelSpec
    kernel: KernelId
    digest: Sha256
    bytes: int = Field(ge=0)
    trains: bool
    seconds: float = Field(ge=0)


class CompileFailed(ContractModel):
    """Tezzeret could not make it; trying again would not help."""

    kind: Literal["CompileFailed"] = "CompileFailed"
    spec: KernelSpec
    kernel: KernelId
    reason: str = Field(max_length=2000)


class Verdict(ContractModel):
    """Urabrask's verdict, with its report. Only this one makes a kernel Validated."""

    kind: Literal["Verdict"] = "Verdict"
    kernel: KernelId
    digest: Sha256
    report: ValidationReport


class Ruling(ContractModel):
    """The planner's word on a kernel: Superseded, Quarantined, or reinstated (Validated). The last counts."""

    kind: Literal["Ruling"] = "Ruling"
    kernel: KernelId
    state: Literal[KernelState.SUPERSEDED, KernelState.QUARANTINED, KernelState.VALIDATED]
    reason: str = Field(max_length=500)
    time: str = Field(
        default_factory=utc_now,
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$",
        description="UTC, RFC 3339 with milliseconds: what rulings are ordered by.",
    )
    by: KernelId | None = Field(default=None, description="Which kernel supersedes this one.")


Statement = Annotated[
    Compiled | CompileFailed | Verdict | Ruling,
    Field(discriminator="kind"),
]


class Role(StrEnum):
    """Who signs what: each statement counts only with the signature of its role."""

    TEZZERET = "tezzeret"
    URABRASK = "urabrask"
    PLANNER = "planner"
    KARN = "karn"


class Signature(ContractModel):
    """Ed25519 over the canonical bytes of a statement; ``key`` is the first 16 hex digits of the SHA-256 of
    the raw public key."""

    key: str = Field(pattern=r"^[0-9a-f]{16}$", max_length=16, description="Id of the key.")
    value: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$", max_length=88, description="Base64.")


class Signed(ContractModel):
    """A statement with its detached signature.

    ``statement`` is canonical JSON as text, so that what was signed is what is kept, byte for byte.
    """

    statement: str = Field(max_length=262_144)
    signature: Signature


class KernelRecord(ContractModel):
    """What is known of a kernel: a fold over what each role has published. Nobody writes it."""

    kernel: KernelId
    spec: KernelSpec
    state: KernelState
    digest: Sha256 | None = None
    bytes: int | None = None
    trains: bool | None = None
    report: ValidationReport | None = None
    reason: str = ""
    compiled: Signed | None = None
    verdict: Signed | None = None
    superseded_by: KernelId | None = None


class KernelSummary(ContractModel):
    """A validated kernel as decisions, journals and reports know it.

    ``figures`` are the medians of its measurements and its single numbers, by their names in the report.
    """

    kernel: KernelId
    digest: Sha256
    blueprint: BlueprintId
    name: str = Field(max_length=48, description="The blueprint's.")
    interface: KernelInterface
    pipeline: Pipeline
    trains: bool
    tags: tuple[str, ...] = ()
    risk: float | None = Field(default=None, ge=0, le=1)
    figures: dict[str, float] = Field(default_factory=dict, max_length=64)

    @property
    def artifact(self) -> str:
        """Names its artifact on a machine's shelf: the kernel, and the first 16 digits of the digest."""
        return f"{self.kernel}-{self.digest[:16]}"


class UsableKernel(KernelSummary):
    """A kernel whose signatures and digest were verified here, with its graph."""

    graph: Blueprint

    def summary(self) -> KernelSummary:
        """The same without the graph."""
        return KernelSummary(**{name: getattr(self, name) for name in KernelSummary.model_fields})


class KernelQuery(ContractModel):
    """Which kernels a slot could use; the best of them are returned.

    ``preferred`` tags raise the score; ``required`` must all be there; none of ``excluded`` may be.
    """

    interface: Interface
    target: Target
    required: frozenset[str] = frozenset()
    preferred: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    pipelines: frozenset[Pipeline] | None = None
    blueprints: frozenset[str] | None = Field(default=None, description="Ids; None for all.")
    most_latency_us: float | None = Field(default=None, gt=0)
    most_bytes: int | None = Field(default=None, gt=0, description="Of memory, at its peak.")
    most_parameters: int | None = Field(default=None, gt=0)
    most_risk: float | None = Field(default=None, ge=0, le=1)
    best: int = Field(default=20, ge=1, le=1000)


class KernelWish(ContractModel):
    """A training can use a kernel: what the planner turns into work."""

    spec: KernelSpec
    urgent: bool = False


class BlueprintEntry(ContractModel):
    """A blueprint in the library."""

    blueprint: BlueprintId
    graph: Blueprint
    origin: str = Field(
        max_length=128,
        description="Catalogue, Generated, Mutated, User, or namespace/name of the resource.",
    )
    entered: str = Field(max_length=64, description="UTC, RFC 3339.")
    archived: str | None = Field(default=None, max_length=500, description="Why, where it is archived.")
    wish: InnovationId | None = Field(default=None, description="For whom it was invented, where it was.")

    @property
    def invented(self) -> bool:
        """Whether a generator made it."""
        return self.origin in (Origin.GENERATED, Origin.MUTATED)


class LibraryEvent(ContractModel):
    """Something in the library changed; who wants to know what reads the library."""

    kind: Literal["Blueprint", "Compiled", "CompileFailed", "Verdict", "Ruling"]
    blueprint: BlueprintId | None = None
    kernel: KernelId | None = None


class FieldReport(ContractModel):
    """What a kernel did in one real training, said when its seed ended or the run did."""

    kernel: KernelId
    digest: Sha256
    blueprint: BlueprintId
    run: str = Field(max_length=128)
    seed: str = Field(max_length=64)
    slot: str = Field(max_length=300)
    outcome: str = Field(max_length=32, description="The seed's last stage.")
    failure: str | None = Field(default=None, max_length=500)
    steps: int = Field(ge=0, description="Optimizer steps that it lived.")
    contribution: float | None = None
    contribution_error: float | None = Field(default=None, ge=0)
    isolated_gain: float | None = None
    trial_gain: float | None = None
    parameters: int = Field(ge=0)
    twin: bool = Field(default=False, description="Whether a compiled twin ran in its place.")
