"""`esper run --listen`: a training that may be asked how it stands while it goes on."""

import io
import re
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from esper_runtime.contracts import InputError
from esper_runtime.local import run_manifest
from tests.tolaria.runs import manifest


def written(folder: Path, steps: int) -> Path:
    run = manifest(steps, growth={"controller": {"kind": "Off"}}, host={"builtin": "mlp"})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


def test_a_run_tells_its_step_and_loss_while_it_trains(tmp_path: Path) -> None:
    screen, scraped = io.StringIO(), []

    def ask() -> None:
        while (found := re.search(r"metrics at (http://\S+)", screen.getvalue())) is None:
            time.sleep(0.01)
        while not scraped or b"esper_training_validation_loss " not in scraped[-1]:
            with urllib.request.urlopen(found[1], timeout=5) as answer:
                scraped.append(answer.read())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    path = written(tmp_path, 400)
    run = manifest(400, growth={"controller": {"kind": "Off"}}, host={"builtin": "mlp"})
    console = Console(file=screen, width=200)
    assert run_manifest(run, path, tmp_path / "runs", listen=("127.0.0.1", 0), console=console) == 0
    asking.join(10)
    assert not asking.is_alive()
    assert b"esper_training_steps_planned 400.0" in scraped[-1]
    assert b"esper_training_bus_connected" not in scraped[-1]  # it has none


def test_an_address_that_is_taken_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot listen at 203"):
        run_manifest(
            manifest(5, growth={"controller": {"kind": "Off"}}, host={"builtin": "mlp"}),
            written(tmp_path, 5),
            tmp_path / "runs",
            listen=("203.0.113.1", 80),
        )
    assert not (tmp_path / "runs" / "small" / "journal.jsonl").exists()
