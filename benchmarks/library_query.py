"""Bar: the best 20 of 10,000 kernels in at most 10 ms (95th percentile of the queries).

The records are real ones: each is folded from a Compiled and a Verdict that were signed and verified. They
are all of one target and mostly of one class of slots, so that no query is answered from a small bucket.
"""

import random
import tempfile
import time
from pathlib import Path

from benchmarks.line import bar
from esper_runtime.artifact import KeyRing, encode_signed
from esper_runtime.contracts import (
    Check,
    Compiled,
    Interface,
    KernelInterface,
    KernelQuery,
    KernelRecord,
    KernelSpec,
    Measurement,
    Pipeline,
    Role,
    Statement,
    Target,
    ValidationReport,
    Verdict,
)
from esper_runtime.urza import KernelIndex, Word, fold, hear, word_key

KERNELS, QUERIES, BOUND_MS = 10_000, 2_000, 10.0
TARGET = Target(device="cpu", arch="avx512", torch="2.13.0")
SLOTS = tuple(Interface(kind="features", width_in=width, width_out=width) for width in (8, 8, 8, 8, 32, 128))
TAGS = ("small", "large", "quick", "slow", "frugal", "hungry", "robust", "precise")


def main() -> int:
    """Print the bar; returns 1 when it is missed."""
    draw = random.Random(0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        records = made(KeyRing(Path(home)), draw)
    built = time.perf_counter() - started
    index = KernelIndex(records)
    found = {}
    for name, extra in ASKED.items():
        times, answers = [], 0
        for _ in range(QUERIES):
            asked = question(draw, extra)
            begun = time.perf_counter()
            answers += len(index.best(asked))
            times.append(1000 * (time.perf_counter() - begun))
        times.sort()
        found[name] = {
            "p50_ms": round(times[len(times) // 2], 3),
            "p95_ms": round(times[int(0.95 * len(times))], 3),
            "max_ms": round(times[-1], 3),
            "answers": answers / QUERIES,
        }
    worst = max(one["p95_ms"] for one in found.values())
    kept = worst <= BOUND_MS and len(index) == KERNELS
    bar(
        "library_query",
        command="python -m benchmarks.library_query",
        figure=worst,
        bound=f"best 20 of {KERNELS:,} kernels <= {BOUND_MS:g} ms p95, whatever is asked",
        passed=kept,
        detail={"queries": found, "kernels": len(index), "seconds_to_sign_verify_fold": round(built, 1)},
    )
    return 0 if kept else 1


ASKED = {
    "plain": {},
    "tags": {"required": 1, "preferred": 2, "excluded": 1},
    "preferred": {"preferred": 3},
    "limits": {"most_latency_us": 40.0, "most_bytes": 30_000, "most_parameters": 5_000, "most_risk": 0.2},
    "no answer": {"required": 1, "most_latency_us": 0.001},
}
"""What is asked for: counts of tags that are drawn, and limits."""


def question(draw: random.Random, extra: dict[str, float]) -> KernelQuery:
    """One query, with tags drawn at random."""
    tags = draw.sample(TAGS, len(TAGS))
    named: dict[str, object] = {}
    for field, value in extra.items():
        named[field] = {tags.pop() for _ in range(int(value))} if field in _TAG_FIELDS else value
    return KernelQuery.model_validate({"interface": SLOTS[0], "target": TARGET, **named})


_TAG_FIELDS = ("required", "preferred", "excluded")


def made(keyring: KeyRing, draw: random.Random) -> list[KernelRecord]:
    """Records, each folded from signed words that were heard."""
    trust = keyring.trust
    records = []
    for number in range(KERNELS):
        words = []
        for role, statement in said(number, draw):
            data = encode_signed(keyring.sign(role, statement))
            word = hear(data, role, word_key(statement.kernel, data), trust)
            assert isinstance(word, Word), word
            words.append(word)
        record = fold(words)
        assert record is not None
        records.append(record)
    return records


def said(number: int, draw: random.Random) -> list[tuple[Role, Statement]]:
    """What Tezzeret and Urabrask say of one kernel."""
    spec = KernelSpec(
        blueprint=f"bp-{number:012x}",
        interface=KernelInterface.of(draw.choice(SLOTS)),
        target=TARGET,
        pipeline=draw.choice(list(Pipeline)),
    )
    kernel, digest = spec.kernel_id, f"{number:064x}"
    latency = draw.lognormvariate(4, 1)
    report = ValidationReport(
        kernel=kernel,
        digest=digest,
        passed=True,
        checks=(Check(name="finite", passed=True),),
        measurements={"forward_us": Measurement(median=latency, p99=2 * latency, count=100, steady=True)},
        numbers={
            "speedup": draw.uniform(0.5, 1.6),
            "peak_bytes": draw.lognormvariate(10, 1),
            "parameters": float(draw.randint(50, 20_000)),
        },
        tags=tuple(draw.sample(TAGS, 3)),
        risk=draw.random(),
        seconds=1.0,
    )
    made = Compiled(spec=spec, kernel=kernel, digest=digest, bytes=1, trains=True, seconds=1.0)
    return [
        (Role.TEZZERET, made),
        (Role.URABRASK, Verdict(kernel=kernel, digest=digest, report=report)),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
