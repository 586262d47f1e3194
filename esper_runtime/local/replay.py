"""`esper replay`: a recorded run trained anew from its journal, compared with what was recorded."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper_runtime.contracts import (
    EsperError,
    Finished,
    InputError,
    JournalEntry,
    Resumed,
    RunFailedError,
    SeedChanged,
    SlotChanged,
    Started,
    Validated,
)
from esper_runtime.local.folder import RunFolder
from esper_runtime.nissa import Recording, completed, effective, read_journal, recording_of
from esper_runtime.planning import Resume, observe, plan_attempt
from esper_runtime.tolaria import CheckpointStore, Observer, ReplayTrainer, SavedState, read_model, to_bytes

FOLDER = "replay"


@dataclass(frozen=True)
class Replayed:
    """How a replay compares.

    Attributes:
        folder: where the replay lies.
        step: at which both were compared.
        recorded: SHA-256 of the recorded weights.
        replayed: SHA-256 of those of the replay; None where it did not come so far.
        differences: what differs; nothing where the replay is equal.
        first: where the two histories part, where they do.
        notices: what is not as it was, and may be why.
        stopped: why the replay was ended by a person before it was done.
    """

    folder: Path
    step: int
    recorded: str
    replayed: str | None = None
    differences: tuple[str, ...] = ()
    first: str | None = None
    notices: tuple[str, ...] = ()
    stopped: str | None = None

    @property
    def equal(self) -> bool:
        """True where architecture and weights are the same, bit for bit."""
        return self.stopped is None and not self.differences


@dataclass(frozen=True)
class _Goal:
    """What a replay is to arrive at: the weights' digest and the architecture, where it is known."""

    digest: str
    architecture: list[Any] | None
    optimizer: str | None = field(default=None)


def replay_run(
    folder: RunFolder, into: Path | None = None, observer: Observer | None = None
) -> tuple[ReplayTrainer, "Comparison"]:
    """Prepare the replay of a run: its trainer, and the comparison to call when it has run.

    Args:
        folder: of the recorded run.
        into: a folder for the replay, empty or missing; by default ``replay/`` in the run's, which is made
            anew.
        observer: is told of steps and events.

    Raises:
        InputError: there is nothing to replay, or it cannot be; the text says why.
        JournalError: the journal is damaged.
    """
    entries = read_journal(folder.journal)
    recording, goal = _goal(folder, entries)
    place = _place(folder, into)
    trainer = ReplayTrainer(recording, place, observer, directory=folder.origin())
    return trainer, Comparison(recording, goal, place)


def _place(folder: RunFolder, into: Path | None) -> Path:
    place = into or folder.path / FOLDER
    if into is None and place.exists():
        shutil.rmtree(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} is not empty; give --into a folder that is empty or does not exist")
    return place


def _goal(folder: RunFolder, entries: list[JournalEntry]) -> tuple[Recording, _Goal]:
    started = next((entry.event for entry in entries if isinstance(entry.event, Started)), None)
    if started is None:
        raise InputError(f"{folder.path}: the run stopped before it began, so there is nothing to replay")
    end = completed(entries)
    if end is not None and isinstance(end.event, Finished) and end.event.weights_digest is not None:
        uri = _at(started.manifest, "output", "uri") or str(folder.model)
        try:
            architecture = _grafts(read_model(uri)[0]["grafts"])
        except EsperError:
            architecture = None
        return recording_of(entries, end.step), _Goal(end.event.weights_digest, architecture)
    store = CheckpointStore(_at(started.manifest, "checkpoint", "uri") or str(folder.checkpoints), keep=1)
    attempt = plan_attempt(started.manifest, observe(_unfinished(entries), False, store.saved()))
    found = {saved.name: saved for saved in store.saved()}
    for name in attempt.checkpoints if isinstance(attempt, Resume) else ():
        saved = found[name]
        state = store.load(name)
        return recording_of(entries, saved.step, saved.sequence), _goal_of(state)
    raise InputError(
        f"run {folder.name!r} is not complete and has no checkpoint in {store.uri} that counts: there is "
        f"nothing to compare a replay with (`esper run {folder.manifest}` goes on with it)"
    )


def _unfinished(entries: list[JournalEntry]) -> list[JournalEntry]:
    return [entry for entry in entries if not isinstance(entry.event, Finished)]


def _goal_of(state: SavedState) -> _Goal:
    return _Goal(_digest(state.model), _grafts(state.facts["architecture"]), _digest(state.optimizer))


def _digest(tensors: dict[str, Any]) -> str:
    return hashlib.sha256(to_bytes(tensors)).hexdigest()


def _grafts(architecture: dict[str, Any]) -> list[Any]:
    """What was grafted where, without what was measured of it."""
    names = ("id", "slot", "blueprint", "stage", "alpha", "frozen")
    return [{name: seed.get(name) for name in names} for seed in architecture["seeds"]]


@dataclass(frozen=True)
class Comparison:
    """Compares a replay that has been run with what was recorded."""

    recording: Recording
    goal: _Goal
    place: Path

    def failed(self, error: RunFailedError) -> Replayed:
        """The outcome where the replay could not go on."""
        return self._outcome(None, (str(error),))

    def stopped(self, reason: str) -> Replayed:
        """The outcome where a person stopped it."""
        return Replayed(self.place, self.recording.until, self.goal.digest, stopped=reason)

    def outcome(self) -> Replayed:
        """Compare architecture and weights."""
        entries = read_journal(self.place / "journal.jsonl")
        differences: list[str] = []
        if self.recording.finished is not None:
            end = completed(entries)
            assert end is not None
            assert isinstance(end.event, Finished)
            if end.step != self.recording.until:
                differences.append(
                    f"the recorded run ended at step {self.recording.until:,}, its replay at {end.step:,}"
                )
            digest = end.event.weights_digest or ""
            architecture = _grafts(read_model(str(self.place / "model"))[0]["grafts"])
        else:
            store = CheckpointStore(str(self.place / "checkpoints"), keep=1)
            state = store.load(store.saved()[-1].name)
            found = _goal_of(state)
            digest, architecture = found.digest, found.architecture or []
            if found.optimizer != self.goal.optimizer:
                differences.append("the optimizer's state differs")
        if self.goal.architecture is not None and architecture != self.goal.architecture:
            differences.append(
                f"the architecture differs: {_names(self.goal.architecture)} recorded, "
                f"{_names(architecture)} replayed"
            )
        if digest != self.goal.digest:
            differences.append(
                f"the weights differ: {self.goal.digest[:12]} recorded, {digest[:12]} replayed"
            )
        return self._outcome(digest, tuple(differences))

    def _outcome(self, digest: str | None, differences: tuple[str, ...]) -> Replayed:
        entries = effective(read_journal(self.place / "journal.jsonl"))
        return Replayed(
            self.place,
            self.recording.until,
            self.goal.digest,
            digest,
            differences,
            _first_difference(self.recording.entries, entries) if differences else None,
            _notices(self.recording, entries),
        )


def _names(grafts: list[Any]) -> str:
    return ", ".join(f"{seed['id']} at {seed['slot']} ({seed['stage']})" for seed in grafts) or "no seeds"


def _first_difference(recorded: Any, replayed: Any) -> str:
    """The first step at which the two journals tell different things, in words."""
    ours, theirs = _by_step(recorded), _by_step(replayed)
    for step in sorted(ours.keys() | theirs.keys()):
        missing, added = ours.get(step, set()), theirs.get(step, set())
        if missing == added:
            continue
        words = [f"recorded: {text}" for text in sorted(missing - added)]
        words += [f"replayed: {text}" for text in sorted(added - missing)]
        return f"step {step:,}: " + "; ".join(words[:4])
    return "the journals tell the same; the weights parted after the last validation that they hold"


def _by_step(entries: Any) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for entry in entries:
        event = entry.event
        text = None
        if isinstance(event, SeedChanged):
            text = f"seed {event.seed} ({event.name}) at {event.slot}: {event.before} -> {event.after}"
        elif isinstance(event, SlotChanged):
            text = f"slot {event.slot}: {event.before} -> {event.after}"
        elif isinstance(event, Validated):
            text = f"validation loss {event.loss!r}, {event.parameters:,} parameters"
        if text is not None:
            found.setdefault(entry.step, set()).add(text)
    return found


def _notices(recording: Recording, entries: list[JournalEntry]) -> tuple[str, ...]:
    """What bit-equal repetition depends on and is not as it was."""
    here = next((e.event.environment for e in entries if isinstance(e.event, Started)), None)
    if here is None:
        return ()
    known = [e.event.environment for e in recording.entries if isinstance(e.event, Started | Resumed)]
    return tuple(
        dict.fromkeys(
            f"{key}: {then.get(key)} when it was recorded, {here.get(key)} now"
            for then in known
            for key in sorted(then.keys() | here.keys())
            if then.get(key) != here.get(key)
        )
    )


def _at(manifest: dict[str, Any], *path: str) -> Any:
    value: Any = manifest.get("spec", {})
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
