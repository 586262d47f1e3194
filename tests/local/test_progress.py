"""What a person sees while a run goes on: a display in a terminal, lines elsewhere."""

import io
import os

from rich.console import Console

from esper_runtime.contracts import (
    GENESIS,
    JournalEntry,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
    SlotChanged,
    SlotState,
    Started,
    Validated,
)
from esper_runtime.local import Progress

S = SeedStage


class Written:
    """Hands entries to a progress as a trainer would; the chain is not looked at here."""

    def __init__(self, terminal: bool) -> None:
        self.file = io.StringIO()
        self.progress = Progress(Console(file=self.file, force_terminal=terminal, width=100, highlight=False))
        self.sequence = -1

    def write(self, step: int, event: object) -> None:
        self.sequence += 1
        self.progress.on_event(
            JournalEntry.model_validate(
                {
                    "sequence": self.sequence,
                    "time": "2026-01-01T00:00:00Z",
                    "incarnation": 0,
                    "step": step,
                    "event": event,
                    "previous": GENESIS,
                }
            )
        )

    @property
    def said(self) -> str:
        return self.file.getvalue()


def started() -> Started:
    return Started(
        run="small",
        manifest={},
        manifest_digest="",
        environment={},
        total_steps=1000,
        parameters=500,
        macs_per_example=1,
        metric_name="accuracy",
        higher_is_better=True,
        modules=(),
        slots=(),
    )


def moved(before: SeedStage | None, after: SeedStage, seed: str = "s1", reason: str = "why") -> SeedChanged:
    return SeedChanged(
        seed=seed,
        slot="layers.0.output",
        blueprint="bp-000000000000",
        name="bottleneck",
        before=before,
        after=after,
        parameters=120,
        alpha=1.0,
        reason=reason,
    )


def validated(metric: float, parameters: int = 500) -> Validated:
    return Validated(
        train_loss=1.0, loss=0.9, metric=metric, parameters=parameters, learning_rate=0.01, macs=1
    )


def planted(written: Written, step: int, seed: str = "s1") -> None:
    written.write(step, moved(None, S.GERMINATED, seed, "the loss is flat"))
    written.write(step, moved(S.GERMINATED, S.LOADING, seed))
    written.write(step, moved(S.LOADING, S.GRAFTING, seed))


def test_without_a_terminal_validations_and_changes_are_lines() -> None:
    written = Written(terminal=False)
    with written.progress.shown():
        written.write(0, started())
        for step in range(1, 101):
            written.progress.on_step(step, 1.5)
        written.write(100, validated(0.625))
        planted(written, 100)
        written.write(200, moved(S.EVALUATING, S.FOSSILIZED, reason="it earns its place"))
        written.write(
            300, SlotChanged(slot="x", before=SlotState.DORMANT, after=SlotState.LOCKED, reason="bad")
        )
    lines = written.said.splitlines()
    assert len(lines) == 5
    assert "step     100/1,000  loss 1.5000  validation loss 0.9000" in lines[0]
    assert "62.5" in lines[0]
    assert "500 parameters" in lines[0]
    assert "to go" in lines[0]
    assert "seed s1: bottleneck at layers.0.output planted (+120 parameters): the loss is flat" in lines[1]
    assert "is part of the model" in lines[2]
    assert "kept: it earns its place" in lines[3]
    assert "slot x is locked: bad" in lines[4]
    assert "\x1b" not in written.said


def test_in_a_terminal_the_display_shows_step_metric_parameters_and_living_seeds() -> None:
    written = Written(terminal=True)
    with written.progress.shown():
        written.write(0, started())
        written.progress.on_step(100, 1.5)
        written.write(100, validated(0.625))
        planted(written, 100)
    for words in ("small", "100/1,000", "loss 1.5000", "accuracy 62.5", "620 parameters", "Grafting", "+120"):
        assert words in written.said, words


def test_a_seed_behind_the_host_is_not_counted_and_one_that_is_gone_disappears() -> None:
    written = Written(terminal=False)
    written.write(0, started())
    written.write(10, moved(None, S.GERMINATED))
    written.write(10, moved(S.LOADING, S.TRAINING))
    assert written.progress.view.parameters == 500
    written.write(20, moved(S.TRAINING, S.GRAFTING))
    assert written.progress.view.parameters == 620
    written.write(30, moved(S.GRAFTING, S.CULLED))
    assert written.progress.view.parameters == 500
    assert written.progress.view.seeds == {}


def test_what_a_rollback_undid_is_no_longer_shown() -> None:
    written = Written(terminal=False)
    written.write(0, started())
    written.write(50, validated(0.5))
    planted(written, 60)
    assert set(written.progress.view.seeds) == {"s1"}
    fault = RolledBack(fault="loss is NaN", blame="data", batch=61, to_step=50, after_sequence=1)
    written.write(50, fault)
    assert written.progress.view.seeds == {}
    assert written.progress.view.step == 50
    assert "loss is NaN; back to step 50 (data to blame)" in written.said


def test_a_resumed_run_shows_the_seeds_that_live_in_it() -> None:
    first = Written(terminal=False)
    first.write(0, started())
    planted(first, 60)
    first.write(100, validated(0.7, 620))
    second = Written(terminal=False)
    second.progress.view.note_earlier(first.progress.view.entries)
    second.sequence = first.sequence
    second.write(
        100,
        Resumed(
            incarnation=1, checkpoint="step-000000100-0", from_step=100, after_sequence=4, environment={}
        ),
    )
    assert set(second.progress.view.seeds) == {"s1"}
    assert second.progress.view.total_steps == 1000
    assert "resumed from checkpoint step-000000100-0 at step 100" in second.said


def test_the_time_to_go_counts_from_where_this_process_began() -> None:
    written = Written(terminal=False)
    written.write(0, started())
    assert written.progress.remaining() is None
    written.progress.on_step(901, 1.0)
    written.progress.on_step(951, 1.0)
    remaining = written.progress.remaining()
    assert remaining is not None
    assert 0 <= remaining < 5


def test_a_terminal_that_is_closed_ends_the_display_and_not_the_run() -> None:
    person, terminal = os.openpty()
    with os.fdopen(terminal, "w") as file:
        progress = Progress(Console(file=file, force_terminal=True, width=100))
        with progress.shown():
            progress.say("seen")
            shown = b""
            os.set_blocking(person, False)
            while b"seen" not in shown:  # raises where nothing more has been written
                shown += os.read(person, 65536)
            os.close(person)
            progress.say("not seen")
            progress.on_step(1, 0.5)
