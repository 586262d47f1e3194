"""What a run says of itself, folded into a status that stays small whatever the run does."""

import json

from esper_operator.kube import EVENT
from esper_operator.live import Live, duration, seeds_summary, short_count
from esper_operator.status import parsed_status
from esper_runtime.contracts import (
    Checkpointed,
    Event,
    Finished,
    JournalEntry,
    Progress,
    Resumed,
    RolledBack,
    SeedChanged,
    SeedStage,
)
from tests.operator.world import KEY, World

WIDE = "é" * 400
"""Longer than any field may be, and two bytes a character."""


def entry(sequence: int, event: Event) -> JournalEntry:
    return JournalEntry(
        sequence=sequence,
        time="2026-01-01T00:00:00.000+00:00",
        incarnation=0,
        step=sequence,
        event=event,
        previous="0" * 64,
    ).sealed()


def change(after: SeedStage, seed: str = "s1", text: str = "because") -> SeedChanged:
    return SeedChanged(
        seed=seed,
        slot="layer.1",
        blueprint="bp-0123456789ab",
        name="widen",
        before=None,
        after=after,
        parameters=10,
        alpha=1.0,
        reason=text,
    )


def heard(world: World) -> Live:
    live = world.process.runs.live(KEY)
    assert live is not None
    return live


def running() -> World:
    world = World()
    world.apply()
    world.settle()
    return world


def test_progress_and_journal_are_shown_and_told_once() -> None:
    world = running()
    live = heard(world)
    progress = Progress(
        step=30,
        total_steps=60,
        metric_name="accuracy",
        metric=0.91234,
        parameters_start=1200,
        parameters=1_500_000,
        seeds={"Training": 1, "Fossilized": 2},
        eta_seconds=4000.4,
    )
    live.hear(progress, "2026-01-01T00:00:00Z")
    events: list[Event] = [
        change(SeedStage.GERMINATED),
        change(SeedStage.GRAFTING),
        change(SeedStage.FOSSILIZED),
        Checkpointed(checkpoint="/var/esper/runs/small/checkpoints/30", digest="a" * 64),
        change(SeedStage.CULLED, "s2"),
        RolledBack(fault="NaN", blame="seed", to_step=3, after_sequence=1),
    ]
    for number, event in enumerate(events):
        live.fold(entry(number, event))
    world.process.one_pass()
    status = world.status
    assert status["progress"]["summary"] == "30/60"
    assert (status["progress"]["metricText"], status["progress"]["eta"]) == ("0.9123", "66m")
    assert status["parameters"]["summary"] == "1.2k>1.5M"
    assert status["seedsSummary"] == "1 Training, 2 Fossilized"
    assert (status["checkpoint"]["step"], status["checkpoint"]["architectureGeneration"]) == (3, 2)
    assert status["adaptations"][-1]["stage"] == "RolledBack"
    assert world.condition("Growing")["status"] == "True"
    assert world.condition("Checkpointed")["status"] == "True"
    told = sorted(event["reason"] for event in world.cluster.of(EVENT))
    structural = ["Grafted", "Fossilized", "Checkpointed", "Culled", "RolledBack"]
    assert told == sorted(["Valid", "PodsReady", *structural])
    before = len(world.cluster.writes())
    world.process.one_pass()
    assert len(world.cluster.writes()) == before
    heard(world).fold(entry(1, events[1]))  # comes again, since its acknowledgement was lost
    world.process.one_pass()
    assert len(world.cluster.of(EVENT)) == len(told)


def test_what_was_heard_outlives_the_operator() -> None:
    world = running()
    heard(world).hear(Progress(step=30, total_steps=60), "2026-01-01T00:00:00Z")
    heard(world).fold(entry(0, change(SeedStage.GRAFTING)))
    world.process.one_pass()
    before = world.status
    world.begin().one_pass()
    assert world.status == before
    heard(world).fold(entry(1, change(SeedStage.FOSSILIZED)))
    world.process.one_pass()
    assert [item["stage"] for item in world.status["adaptations"]] == ["Grafting", "Fossilized"]
    assert world.status["progress"]["summary"] == "30/60"


def test_a_status_is_small_after_ten_thousand_adaptations_of_the_longest_texts() -> None:
    world = running()
    live = heard(world)
    stages = list(SeedStage)
    live.hear(Progress(step=1, total_steps=2, seeds={stage.value: 9 for stage in stages}), "x")
    made = entry(0, change(SeedStage.CULLED))
    for number in range(10_000):
        text = WIDE + str(number)
        event = change(stages[number % len(stages)], str(number) + WIDE, text)
        event = event.model_copy(update={"slot": text, "blueprint": text})
        live.fold(made.model_copy(update={"event": event, "sequence": number, "step": number}))
    live.fold(entry(10_000, Checkpointed(checkpoint=WIDE * 4, digest="a" * 64)))
    assert len(live.notices) <= 50
    world.process.one_pass()
    assert len(json.dumps(world.status, ensure_ascii=False).encode()) <= 32 * 1024
    assert 0 < len(world.status["adaptations"]) <= 20
    assert parsed_status(world.run).adaptations


def test_the_end_of_the_journal_is_the_result() -> None:
    world = running()
    end = Finished(
        outcome="Complete",
        reason="all steps are done",
        test_metric=0.9,
        parameters_start=10,
        parameters=20,
        macs_per_example=5,
        cpu_seconds=7.0,
        wall_seconds=8.0,
        weights_digest="b" * 64,
    )
    heard(world).fold(entry(0, end))
    world.cluster.run_jobs(end="Complete")
    world.process.one_pass()
    assert world.status["result"]["testMetric"] == 0.9
    assert world.status["usage"]["wallSeconds"] == 8.0
    assert world.status["phase"] == "Succeeded"


def test_restarts_that_the_journal_tells_of_are_bounded() -> None:
    world = World()
    world.apply(retry={"restarts": 2})
    world.settle()
    resumed = Resumed(incarnation=3, checkpoint="c", from_step=0, after_sequence=0, environment={})
    heard(world).fold(entry(1, resumed))
    world.process.one_pass()
    assert world.condition("Failed")["reason"] == "TooManyRestarts"
    assert world.status["usage"]["restarts"] == 3


def test_figures_are_short_enough_for_a_column() -> None:
    counts = [short_count(number) for number in (0, 999, 1000, 1_234_567, 5 * 10**9)]
    assert counts == ["0", "999", "1k", "1.23M", "5G"]
    times = [duration(seconds) for seconds in (45, 119, 120, 7199, 12_000, 200_000)]
    assert times == ["45s", "119s", "2m", "119m", "3h20m", "2d7h"]
    assert seeds_summary({"Culled": 3, "Training": 1, "Loading": 0}) == "1 Training, 3 Culled"
