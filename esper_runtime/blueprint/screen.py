"""Whether a blueprint is worth making kernels of: valid, fitting a class of slots, and within a budget."""

from esper_runtime.blueprint.checks import validate
from esper_runtime.blueprint.fit import cost
from esper_runtime.blueprint.samples import sample_slots
from esper_runtime.contracts import Blueprint, BlueprintBudget, BlueprintError, KernelInterface


def screen(blueprint: Blueprint, slots: KernelInterface, budget: BlueprintBudget) -> BlueprintError | None:
    """Why a blueprint is of no use in a class of slots; None where it may be.

    It goes through the same static check as a person's. Its price is that in the sample slots of the class:
    for a class of exact widths, the price in the slot.

    Args:
        blueprint: any.
        slots: the class.
        budget: most that it may cost.
    """
    try:
        validate(blueprint)
    except BlueprintError as error:
        return error
    if len(blueprint.nodes) > budget.nodes:
        return BlueprintError("price", f"{len(blueprint.nodes)} nodes; at most {budget.nodes} are wanted")
    samples = sample_slots(blueprint, slots)
    if not samples:
        return BlueprintError("fit", "it fits no slot of the class")
    prices = [cost(blueprint, slot) for slot in samples]
    for name, limit in (("parameters", budget.parameters), ("macs", budget.macs)):
        price = max(getattr(each, name) for each in prices)
        if limit is not None and price > limit:
            return BlueprintError("price", f"{price:,} {name} in a slot; at most {limit:,} are wanted")
    return None
