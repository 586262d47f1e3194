"""A run whose manifest wants it ends with a model of plain wider layers."""

from pathlib import Path

import pytest
import torch

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Absorbed,
    Decision,
    Directive,
    GraftingPlan,
    Operation,
    SeedStage,
    SystemState,
)
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.replay import replay_run
from esper_runtime.nissa import explain, read_journal, render_report
from esper_runtime.tolaria import Trainer, load, load_task
from tests.tolaria.runs import manifest

PLAN = GraftingPlan(grafting_steps=5)


class Keeper:
    """Plants one widening and one adapter, and keeps both."""

    name = "Keeper"

    def decide(self, state: SystemState) -> Decision:
        directives = []
        planted = {seed.slot for seed in state.seeds}
        if state.step >= 5:
            for slot, name in (
                ("layers.0.linear..head", "widen-linear-bn-6"),
                ("layers.0.activation.output", "mlp-4"),
            ):
                if slot not in planted and (name.startswith("widen") or self.adapters):
                    directives.append(
                        Directive(
                            operation=Operation.GERMINATE,
                            slot=slot,
                            blueprint=canonical_id(catalogue()[name]),
                            plan=PLAN,
                            explanation="planted",
                        )
                    )
        for seed in state.seeds:
            onward = {SeedStage.GRAFTING: Operation.EVALUATE, SeedStage.EVALUATING: Operation.FOSSILIZE}
            if seed.ready and seed.stage in onward:
                directives.append(Directive(operation=onward[seed.stage], seed=seed.seed, explanation="kept"))
        return Decision(explanation="by the script", directives=tuple(directives))

    def __init__(self, adapters: bool) -> None:
        self.adapters = adapters

    def lesson(self, lesson: object) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Nothing to restore."""


@pytest.mark.parametrize("adapters", [False, True])
def test_widenings_are_absorbed_before_the_model_is_saved(tmp_path: Path, adapters: bool) -> None:
    run = manifest(
        60,
        host={"builtin": "mlp", "args": {"hidden": [6], "norm": "batch"}},
        growth={
            "controller": {"everySteps": 5},
            "budget": {"parameters": "4x"},
            "blueprints": {"include": ["widen-linear-bn-6", "mlp-4"]},
            "lifecycle": {"absorb": "AtEnd"},
        },
    )
    result = Trainer(run, tmp_path / "run", controller=Keeper(adapters)).run()
    entries = read_journal(tmp_path / "run" / "journal.jsonl")
    events = [entry.event for entry in entries if isinstance(entry.event, Absorbed)]
    model = load(tmp_path / "run" / "model")
    task = load_task(run.spec.task, 0)
    trainer, comparison = replay_run(RunFolder(tmp_path / "run"))
    trainer.run()
    found = comparison.outcome()
    assert found.equal, found
    again = read_journal(found.folder / "journal.jsonl")
    assert [e.event.refused is None for e in again if isinstance(e.event, Absorbed)] == [
        event.refused is None for event in events
    ]
    x = task.validation["x"] if "x" in task.validation else next(iter(task.validation.values()))
    assert torch.isfinite(model(x[:4].float())).all()
    if adapters:
        assert [event.refused is not None for event in events] == [True, True]
        assert "connected at layers.0.activation.output" in (events[0].refused or "")
        assert len(list(model.seeds)) == 2
        assert "cannot be absorbed" in explain(entries)
        return
    assert [event.refused for event in events] == [None]
    assert not list(model.seeds)
    assert model.host.layers[0].linear.out_features == 12
    assert list(model.host.state_dict()) == list(load_names(run))
    finished = result.finished
    assert finished is not None
    assert finished.parameters == sum(p.numel() for p in model.host.parameters())
    assert {m.name: m.parameters for m in finished.modules}["head"] == 12 * 10 + 10
    assert "have 6" in explain(entries)
    assert "Absorbed at the end" in render_report(entries)
    again = load(tmp_path / "run" / "model")
    assert torch.equal(again(x[:4].float()), model(x[:4].float()))
    program = torch.export.export(model, (x[:4].float(),), strict=False)
    torch.testing.assert_close(program.module()(x[:4].float()), model(x[:4].float()))


def load_names(run: object) -> list[str]:
    """State dict keys of the host as the manifest names it."""
    from esper_runtime.tolaria.hosts import build_host

    return list(build_host(run.spec.host, load_task(run.spec.task, 0), 0, None).state_dict())  # type: ignore[attr-defined]
