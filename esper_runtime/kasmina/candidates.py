"""Which blueprints could be planted where, and what each would cost."""

from collections.abc import Iterable

from esper_runtime.blueprint import cost, misfit
from esper_runtime.contracts import Blueprint, Candidate, Interface, UsableKernel
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.slot import Slot

FORWARD = "forward_us"
"""The figure of a kernel that candidates carry: median microseconds of a forward pass, as Urabrask found."""

Found = dict[tuple[str, str], tuple[Interface, UsableKernel | None, Candidate | None]]
"""What was found for pairs of slot and blueprint: it holds as long as interface and kernel are the same."""


def candidates(
    model: Growable, blueprints: Iterable[str] | None = None, found: Found | None = None
) -> tuple[Candidate, ...]:
    """Every pair of a slot and a blueprint that fits it and may run, slot by slot; gains unmeasured.

    Where the model has a stock of kernels, a blueprint may run where there is a validated one for the slot.

    Args:
        model: that grows.
        blueprints: ids of those to look at; all that the model may use by default.
        found: what earlier calls have found, so that only what is new costs time; it is brought up to date.
    """
    memory: Found = {} if found is None else found
    chosen = model.blueprints if blueprints is None else dict.fromkeys(blueprints)
    graphs = {identity: model.blueprints[identity] for identity in chosen}
    return tuple(
        candidate
        for slot in model.slots.values()
        for identity, blueprint in graphs.items()
        if identity not in model.quarantined
        and (candidate := _known(model, slot, identity, blueprint, memory)) is not None
    )


def _known(
    model: Growable, slot: Slot, identity: str, blueprint: Blueprint, found: Found
) -> Candidate | None:
    interface = slot.place.interface
    kernel = None if model.stock is None else model.stock.find(identity, interface)
    before = found.get((slot.place.id, identity))
    if before is not None and before[0] is interface and before[1] is kernel:
        return before[2]
    candidate = _candidate(model, slot, identity, blueprint, kernel)
    found[slot.place.id, identity] = (interface, kernel, candidate)
    return candidate


def _candidate(
    model: Growable, slot: Slot, identity: str, blueprint: Blueprint, kernel: UsableKernel | None
) -> Candidate | None:
    interface = slot.place.interface
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
