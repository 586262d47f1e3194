"""Which blueprints could be planted where, and what each would cost."""

from collections.abc import Iterable

from esper_runtime.blueprint import cost, misfit
from esper_runtime.contracts import Blueprint, Candidate
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.slot import Slot

FORWARD = "forward_us"
"""The figure of a kernel that candidates carry: median microseconds of a forward pass, as Urabrask found."""


def candidates(model: Growable, blueprints: Iterable[str] | None = None) -> tuple[Candidate, ...]:
    """Every pair of a slot and a blueprint that fits it and may run, slot by slot; gains unmeasured.

    Where the model has a stock of kernels, a blueprint may run where there is a validated one for the slot.

    Args:
        model: that grows.
        blueprints: ids of those to look at; all that the model may use by default.
    """
    chosen = model.blueprints if blueprints is None else dict.fromkeys(blueprints)
    graphs = {identity: model.blueprints[identity] for identity in chosen}
    return tuple(
        candidate
        for slot in model.slots.values()
        for identity, blueprint in graphs.items()
        if identity not in model.quarantined
        and (candidate := _candidate(model, slot, identity, blueprint)) is not None
    )


def _candidate(model: Growable, slot: Slot, identity: str, blueprint: Blueprint) -> Candidate | None:
    interface = slot.place.interface
    kernel = None if model.stock is None else model.stock.find(identity, interface)
    if (model.stock is not None and kernel is None) or misfit(blueprint, interface) is not None:
        return None
    price = cost(blueprint, interface)
    candidate = Candidate(
        slot=slot.place.id,
        blueprint=identity,
        name=blueprint.name,
        parameters=price.parameters,
        macs_per_example=price.macs,
    )
    if kernel is None:
        return candidate
    return candidate.model_copy(
        update={
            "kernel": kernel.kernel,
            "tags": kernel.tags,
            "risk": kernel.risk,
            "forward_us": kernel.figures.get(FORWARD),
        }
    )
