import json

import pytest

from esper_runtime.contracts import LOCAL_NAMESPACE, Channel, Progress, run_subject
from esper_runtime.nissa import read_journal
from esper_runtime.oona import Bridge, BundledServer
from esper_runtime.tolaria import BusObserver, Trainer
from tests.oona.bus import messages
from tests.tolaria.runs import IMMEDIATE, Script, manifest

STEPS = 60


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the bus knows of a run that was interrupted at step 30 and resumed, and the run's journal."""
    folder = tmp_path_factory.mktemp("told")
    run = manifest(STEPS, growth={"controller": {"everySteps": 5}, "budget": {"parameters": "8x"}})
    journal, counts = folder / "run" / "journal.jsonl", []
    with BundledServer(folder / "bus") as server:
        for stop_at in (30, None):
            earlier = read_journal(journal) if journal.exists() else []
            with Bridge(server.address, LOCAL_NAMESPACE, "small", "/runs/local/small", journal) as bridge:
                observer = BusObserver(bridge, earlier)
                trainer = Trainer(run, folder / "run", observer, controller=Script((10, IMMEDIATE)))

                def stopping(step, loss, observe=observer.on_step, stop=stop_at, trainer=trainer):
                    observe(step, loss)
                    if step == stop:
                        trainer.request_stop("the test says so")

                observer.on_step = stopping
                trainer.run()
                counts.append(bridge.close(30))
        stored = {name: messages(server.address, name) for name in ("TELEMETRY", "PROGRESS", "EVENTS")}
    return stored, read_journal(journal), counts


def test_every_step_is_told_once(told):
    stored, _, counts = told
    samples = [sample for event in stored["TELEMETRY"] for sample in event["data"].get("samples", ())]
    assert [sample["step"] for sample in samples] == list(range(1, STEPS + 1))
    assert all(sample["loss"] > 0 and sample["seconds"] >= 0 for sample in samples)
    assert [count.telemetry.dropped for count in counts] == [0, 0]


def test_the_journal_on_the_bus_is_the_one_in_the_folder(told):
    stored, entries, _ = told
    copied = [event["data"] for event in stored["EVENTS"]]
    assert copied == [json.loads(entry.model_dump_json(by_alias=True)) for entry in entries]


def test_the_last_progress_says_how_the_run_ended(told):
    stored, entries, counts = told
    (event,) = stored["PROGRESS"]
    progress = Progress.model_validate(event["data"])
    finished = entries[-1].event
    assert (progress.step, progress.total_steps, progress.incarnation) == (STEPS, STEPS, 1)
    assert (progress.outcome, progress.eta_seconds) == ("Complete", None)
    assert (progress.parameters_start, progress.parameters) == (
        finished.parameters_start,
        finished.parameters,
    )
    assert progress.metric == finished.validation_metric
    assert sum(progress.seeds.values()) == 1
    assert progress.telemetry == counts[-1].telemetry
    assert event["source"] == "/runs/local/small"
    assert run_subject(LOCAL_NAMESPACE, "small", Channel.PROGRESS) == "esper.run.local.small.progress"
