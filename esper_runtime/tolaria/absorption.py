"""At the end of a run, before the model is saved: seeds that widen two layers become part of them."""

from collections.abc import Callable
from dataclasses import replace

from esper_runtime.contracts import AbsorbWhen, Event
from esper_runtime.kasmina import absorb_all, modules_of
from esper_runtime.tolaria.batches import to_device
from esper_runtime.tolaria.parts import Parts

EXAMPLES = 2
"""What the host is traced with."""


def absorb_at_end(parts: Parts, journal: Callable[[Event], None]) -> None:
    """Absorb every seed that can be, where the manifest wants it; the optimizer follows.

    ``journal`` is given an event for each seed, also for one that stays, with the reason.
    """
    if parts.run.spec.growth.lifecycle.absorb is not AbsorbWhen.AT_END:
        return
    batch = {name: tensor[:EXAMPLES] for name, tensor in parts.task.train.items()}
    args, kwargs = parts.task.inputs(to_device(batch, parts.device))
    report = absorb_all(parts.model, args, kwargs, journal)
    for merged in report.merged:
        parts.optimizer.absorb(merged.absorption.seed, merged.moves)
    if report.merged:
        parts.learner.structure_changed()
        with parts.model.bare():
            modules = modules_of(parts.model.host, args, kwargs)
        parts.survey = replace(parts.survey, modules=modules)
