"""Opening a run's folder: what is there, what to do with it, and the state to begin from."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper_runtime.contracts import (
    Checkpointed,
    CheckpointError,
    Finished,
    InputError,
    JournalEntry,
    JournalError,
    MorphogeneticRun,
    Resumed,
    RolledBack,
    RunOnBus,
    Started,
)
from esper_runtime.nissa import KeptJournal, scan_journal
from esper_runtime.planning import Attempt, Resume, manifest_differences, observe, plan_attempt
from esper_runtime.tolaria.checkpoint import CheckpointStore, SavedState

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Opening:
    """What was found in a run's folder, and what is to be done with it."""

    manifest: Mapping[str, Any]
    journal: Path
    store: CheckpointStore
    entries: list[JournalEntry]
    attempt: Attempt

    @property
    def finished(self) -> tuple[int, Finished] | None:
        """Step and event of the last `Finished` entry."""
        for entry in reversed(self.entries):
            if isinstance(entry.event, Finished):
                return entry.step, entry.event
        return None


def open_run(run: MorphogeneticRun, folder: Path) -> Opening:
    """Look at a run's folder and plan; nothing is written but a journal that is fetched into an empty folder.

    Raises:
        InputError: a URI keeps nothing or cannot be opened, or there are checkpoints but no journal that they
            belong to.
        JournalError: the journal's chain is broken.
        CheckpointError: the checkpoint store cannot be opened.
    """
    path = folder / JOURNAL
    kept = fetch_journal(run, folder)
    scan = scan_journal(path)
    if scan.finding is not None and scan.finding.broken:
        raise JournalError(f"{path}, {scan.finding}; restore the file from a copy, nothing was changed")
    settings = run.spec.checkpoint
    for field, uri in (("checkpoint", settings.uri), ("output", run.spec.output.uri)):
        if uri is not None and uri.startswith("memory:"):
            raise InputError(
                f"spec.{field}.uri: {uri} is memory of this process, lost when it ends; give a folder or an "
                f"object store"
            )
    store = CheckpointStore(settings.uri or str(folder / CHECKPOINTS), settings.keep, kept)
    manifest = run.model_dump(mode="json", by_alias=True)
    observed = observe(scan.entries, scan.torn_bytes > 0, store.saved())
    attempt = plan_attempt(manifest, observed)
    if not scan.entries and observed.checkpoints:
        raise InputError(
            f"{store.uri} holds checkpoints, the newest {observed.checkpoints[-1].name}, but {path} has no "
            f"entries: they belong to another run, or the journal was lost. Give each run a checkpoint.uri "
            f"of its own; put the journal back; or move the checkpoints away to begin anew"
        )
    return Opening(manifest, path, store, scan.entries, attempt)


def fetch_journal(run: MorphogeneticRun, folder: Path, say: Callable[[str], None] = log.info) -> KeptJournal:
    """The journal's copy beside the checkpoints; it becomes the journal of a folder that has none.

    Args:
        run: the manifest.
        folder: of the run.
        say: is told where a journal was fetched from.

    Raises:
        InputError: the URI cannot be opened.
        JournalError: the copy is damaged.
        CheckpointError: it cannot be read.
    """
    kept = KeptJournal(run.spec.checkpoint.uri, RunOnBus.of(run.metadata.name).run, folder / JOURNAL)
    if kept.fetch():
        say(f"the run's journal comes from {kept.place}")
    return kept


@dataclass(frozen=True)
class Return:
    """How a run is resumed: the state to go on from (None: from the start), and what is journalled about it.

    ``faults`` are the rollbacks that the state does not know of yet.
    """

    saved: SavedState | None
    event: Resumed
    faults: tuple[RolledBack, ...]


def resume_from(opening: Opening, attempt: Resume, environment: Mapping[str, str]) -> Return:
    """Load the newest checkpoint that proves whole."""
    passed_over = dict(attempt.passed_over)
    saved, name = None, None
    for candidate in attempt.checkpoints:
        try:
            saved, name = opening.store.load(candidate), candidate
            break
        except CheckpointError as error:
            passed_over[candidate] = str(error)
    for other, why in passed_over.items():
        log.warning("checkpoint %s does not count: %s", other, why)
    entries = opening.entries
    after = _position(entries, saved, name)
    faults = [e.event for e in entries if isinstance(e.event, RolledBack) and e.sequence > after]
    event = Resumed(
        incarnation=attempt.incarnation,
        checkpoint=name,
        from_step=0 if saved is None else saved.facts["step"],
        after_sequence=after,
        environment=dict(environment),
        differences=_differences(opening, environment)
        | {f"checkpoint {other}": why for other, why in passed_over.items()},
    )
    return Return(saved, event, tuple(faults))


def seconds_of(entries: Iterable[JournalEntry]) -> float:
    """Wall seconds of the processes that wrote these entries, from the first entry of each to its last."""
    times: dict[int, list[datetime]] = {}
    for entry in entries:
        times.setdefault(entry.incarnation, []).append(datetime.fromisoformat(entry.time))
    return sum((max(each) - min(each)).total_seconds() for each in times.values())


def _position(entries: list[JournalEntry], saved: SavedState | None, name: str | None) -> int:
    """Sequence of the last entry that still counts: what was written after it is done again."""
    if saved is None:
        return max((e.sequence for e in entries if isinstance(e.event, Started)), default=-1)
    sequence = int(saved.facts["sequence"])
    following = entries[sequence + 1].event if sequence + 1 < len(entries) else None
    named = isinstance(following, Checkpointed) and following.checkpoint == name
    return sequence + 1 if named else sequence


def _differences(opening: Opening, environment: Mapping[str, str]) -> dict[str, str]:
    """What is not as it was: settings of the manifest, and what bit-equal repetition depends on."""
    found: dict[str, str] = {}
    started = [entry.event for entry in opening.entries if isinstance(entry.event, Started)]
    if started:
        found |= manifest_differences(opening.manifest, _with_defaults(started[-1].manifest))
    known = [e.event.environment for e in opening.entries if isinstance(e.event, Started | Resumed)]
    if known:
        before = {"ranks": "1"} | known[-1]
        found |= {
            key: f"{before.get(key)} -> {environment.get(key)}"
            for key in sorted(before.keys() | environment.keys())
            if before.get(key) != environment.get(key)
        }
    return found


def _with_defaults(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded manifest with the settings that were not known when it was recorded, as they then were."""
    try:
        return MorphogeneticRun.model_validate(manifest).model_dump(mode="json", by_alias=True)
    except ValidationError:
        return manifest
