"""What a run came to, read from its own journal: for two runs that must not differ."""

from dataclasses import dataclass
from pathlib import Path

from esper_runtime.contracts import Finished, SeedChanged, Started, Validated
from esper_runtime.local.cluster import Kubectl, pull
from esper_runtime.nissa import effective, read_journal, verify_journal
from tests.cluster.cluster import RUNS, Cluster, Object

REPEATING = ("torch", "numpy", "machine", "instructions", "threads", "ranks", "deterministic", "device")
"""Of a run's environment: two runs that differ in one of these need not have the same weights."""


@dataclass(frozen=True)
class Outcome:
    """All that must be the same, bit for bit.

    Attributes:
        digest: SHA-256 of the weights.
        losses: step, training loss, validation loss and metric of each validation.
        life: step, seed, blueprint and stage of each structural change.
        test: loss and metric on test data.
        parameters: of the host, and of what it has become.
        environment: what decides whether results repeat, of the run's start.
    """

    digest: str
    losses: tuple[tuple[int, float | None, float, float], ...]
    life: tuple[tuple[int, str, str, str], ...]
    test: tuple[float | None, float | None]
    parameters: tuple[int, int]
    environment: tuple[tuple[str, str], ...]


def outcome_of(cluster: Cluster, run: str, into: Path, *, stated: bool = True) -> Outcome:
    """Pull a run's folder, check it, and read it.

    Args:
        cluster: where it ran.
        run: its name.
        into: a folder that is made.
        stated: whether its status has the digest of the weights.
    """
    words = Kubectl(RUNS, cluster.access.context)
    pulled = pull(words, run, into, everything=True)
    assert pulled.matches_status is (True if stated else None)
    found = read_outcome(into / "journal.jsonl")
    assert pulled.digest == found.digest
    return found


def read_outcome(path: Path) -> Outcome:
    """The outcome that a journal tells of."""
    assert verify_journal(path) == []
    entries = effective(read_journal(path))
    finished = next(entry.event for entry in reversed(entries) if isinstance(entry.event, Finished))
    assert finished.weights_digest is not None
    started = next(entry.event for entry in entries if isinstance(entry.event, Started))
    return Outcome(
        digest=finished.weights_digest,
        losses=tuple(
            (entry.step, entry.event.train_loss, entry.event.loss, entry.event.metric)
            for entry in entries
            if isinstance(entry.event, Validated)
        ),
        life=tuple(
            (entry.step, entry.event.seed, entry.event.blueprint, str(entry.event.after))
            for entry in entries
            if isinstance(entry.event, SeedChanged)
        ),
        test=(finished.test_loss, finished.test_metric),
        parameters=(finished.parameters_start, finished.parameters),
        environment=tuple(sorted((name, started.environment[name]) for name in REPEATING)),
    )


def same(one: Outcome, other: Outcome) -> None:
    """That two runs do not differ; the first place at which they do is named."""
    for first, second in zip(one.losses, other.losses, strict=False):
        assert first == second, "the losses part here"
    assert one.life == other.life
    assert one == other


def adaptations(status: Object) -> list[tuple[int, str, str]]:
    """Step, seed and stage of the structural changes in a run's status."""
    return [
        (item["step"], item.get("seed", ""), item.get("stage", ""))
        for item in status.get("adaptations") or ()
    ]
