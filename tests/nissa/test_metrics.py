"""What Prometheus is told of a training: what the journal says, without what was rolled back."""

import math
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from esper_runtime.contracts import RolledBack, SeedStage
from esper_runtime.nissa import Exposition, StatusServer, Tally, TrainingMetrics, WorkerMetrics, effective
from tests.nissa.journals import Writer, grown, not_grown, started


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_training_tells_its_step_losses_parameters_seeds_and_changes() -> None:
    entries = grown().entries
    metrics = TrainingMetrics(entries[:5], lambda: (True, 7))
    for entry in entries[5:]:
        metrics.on_event(entry)
    metrics.on_step(entries[-1].step, 0.25)
    found = samples(Exposition(metrics).text())
    tally = Tally(entries)
    assert tally.validated is not None
    assert found["esper_training_step",] == entries[-1].step
    assert found["esper_training_train_loss",] == 0.25
    assert found["esper_training_validation_loss",] == tally.validated.loss
    assert found["esper_training_parameters",] == tally.validated.parameters
    assert found["esper_training_seeds", "Fossilized"] == tally.seeds[SeedStage.FOSSILIZED] > 0
    grafts = sum(getattr(entry.event, "after", None) is SeedStage.GRAFTING for entry in entries)
    assert found["esper_training_structural_changes_total", "Grafting"] == grafts > 0
    assert found["esper_training_bus_connected",] == 1
    assert found["esper_training_telemetry_dropped_total",] == 7


def test_what_is_not_known_has_no_sample() -> None:
    found = samples(Exposition(TrainingMetrics()).text())
    assert math.isnan(found["esper_training_train_loss",])
    names = {name for name, *_ in found}
    assert not {"esper_training_validation_loss", "esper_training_parameters"} & names
    assert "esper_training_bus_connected" not in names


def test_a_tally_forgets_what_was_rolled_back() -> None:
    writer = Writer()
    writer.write(0, started())
    tally = Tally(writer.entries)
    for entry in grown().entries[1:]:
        tally.add(entry)
    assert tally.seeds
    assert tally.validated is not None
    writer.entries = list(tally.entries)
    writer.write(9, RolledBack(fault="loss", blame="unknown", to_step=0, after_sequence=0))
    tally.add(writer.entries[-1])
    assert (tally.seeds, tally.validated, tally.step) == ({}, None, 9)
    assert len(effective(tally.entries)) < len(tally.entries)


def test_a_worker_counts_by_outcome_and_answers_scrapes() -> None:
    counts = {"stored": 0, "failed": 0}
    with StatusServer(
        "127.0.0.1", 0, lambda: None, Exposition(WorkerMetrics("tezzeret", lambda: counts)).text
    ) as server:
        counts["stored"] = 3
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            found = samples(answer.read())
    assert found["esper_worker_items_total", "stored", "tezzeret"] == 3
    assert found["esper_worker_items_total", "failed", "tezzeret"] == 0


@pytest.mark.parametrize("run", [grown, not_grown])
def test_few_series(run) -> None:
    assert len(samples(Exposition(TrainingMetrics(run().entries, lambda: (False, 0))).text())) < 40
