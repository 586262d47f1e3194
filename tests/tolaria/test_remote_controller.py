import time

import pytest

from esper_runtime.contracts import (
    AnswerRefused,
    ControllerChanged,
    Decided,
    Finished,
    Growth,
    InputError,
    Interrupted,
    SeedChanged,
    SeedStage,
)
from esper_runtime.nissa import explain, read_journal, render_report, verify_journal
from esper_runtime.tolaria import Trainer
from tests.tamiyo.links import Link, honest
from tests.tolaria.runs import Recorder, manifest

SERVICE = {
    "controller": {"everySteps": 4, "placement": "Service", "patienceSeconds": 0.05, "deadline": 0.05},
    "slots": {"include": ["1..5"]},
    "blueprints": {"include": ["widen-linear-6", "widen-linear-12", "widen-linear-24"]},
    "budget": {"parameters": "2x"},
}
HASTY = {**SERVICE, "controller": {**SERVICE["controller"], "patienceSeconds": 0.001}}
PATIENT = {**SERVICE, "controller": {**SERVICE["controller"], "patienceSeconds": 600}}


def run_with(link, folder, growth, stop_at=None, steps=160):
    recorder = Recorder(stop_at)
    trainer = Trainer(manifest(steps, growth=growth), folder, recorder, link=link)
    recorder.trainer = trainer
    return recorder, trainer.run()


def events(folder, kind):
    return [e.event for e in read_journal(folder / "journal.jsonl") if isinstance(e.event, kind)]


def test_a_run_grows_by_what_a_service_decides_and_its_records_say_so(tmp_path):
    link = Link()
    _, result = run_with(link, tmp_path, PATIENT)
    assert result.outcome == "Complete"
    deciders = {e.controller for e in events(tmp_path, Decided) if e.directives}
    assert deciders == {"Heuristic 0.1.0 (service)"}
    stages = {e.after for e in events(tmp_path, SeedChanged)}
    assert stages & {SeedStage.FOSSILIZED, SeedStage.CULLED}
    assert events(tmp_path, AnswerRefused) == events(tmp_path, ControllerChanged) == []
    assert link.questions[0].growth == Growth.model_validate(
        {**PATIENT, "controller": {**PATIENT["controller"], "everySteps": 8, "trialShare": 1 / 1.5}}
    )
    text = explain(read_journal(tmp_path / "journal.jsonl"))
    assert "Who decided\n  Service and Heuristic 0.1.0 (service)" in text


def test_a_run_whose_service_is_silent_decides_by_itself_and_tells_since_when(tmp_path):
    _, result = run_with(Link(lambda question: []), tmp_path, HASTY)
    assert result.outcome == "Complete"
    (handover,) = events(tmp_path, ControllerChanged)
    assert handover.after == "Embedded"
    assert {e.controller for e in events(tmp_path, Decided) if e.directives} == {"Heuristic (embedded)"}
    entries = read_journal(tmp_path / "journal.jsonl")
    assert verify_journal(tmp_path / "journal.jsonl") == []
    assert "the embedded controller decides from here on (epoch 2)" in explain(entries)
    assert "the embedded controller decides from here on (epoch 2)" in render_report(entries)


def test_answers_of_a_lying_service_are_in_the_records_and_nothing_is_planted_by_it(tmp_path):
    link = Link(lambda question: [a.model_copy(update={"epoch": 0}) for a in honest(question)])
    run_with(link, tmp_path, PATIENT)
    refused = events(tmp_path, AnswerRefused)
    assert refused
    assert all("its epoch 0 is over, the present one is 1" in e.reason for e in refused)
    assert events(tmp_path, SeedChanged) == []
    entries = read_journal(tmp_path / "journal.jsonl")
    assert "not obeyed: its epoch 0 is over" in explain(entries)
    assert "not obeyed: its epoch 0 is over" in render_report(entries)


def test_a_resumed_run_asks_in_a_later_epoch_and_refuses_answers_to_the_process_before(tmp_path):
    first = Link()
    run_with(first, tmp_path, PATIENT, stop_at=60)
    assert events(tmp_path, Interrupted)
    late = honest(first.questions[-1])
    second = Link()
    second.waiting = [(0, answer) for answer in late]
    _, result = run_with(second, tmp_path, PATIENT)
    assert result.outcome == "Complete"
    assert second.questions[0].epoch > first.questions[-1].epoch
    assert second.questions[0].incarnation == 1
    assert second.questions[0].memory["trial_compute"] > 0
    assert [e.reason for e in events(tmp_path, AnswerRefused)] == [
        "it is for incarnation 0 of the run, this is 1"
    ]


def test_a_slow_service_does_not_make_the_run_wait(tmp_path):
    started = time.monotonic()
    _, result = run_with(Link(late=10**9), tmp_path, PATIENT, steps=40)
    assert result.outcome == "Complete"
    assert time.monotonic() - started < 20
    assert events(tmp_path, Finished)


def test_without_a_bus_a_run_with_the_controller_in_a_service_is_wrong_input(tmp_path):
    with pytest.raises(InputError, match="placement is Service, and this process has no bus"):
        Trainer(manifest(20, growth=SERVICE), tmp_path).run()
