"""Whether a blueprint fits a slot, and what it costs there."""

from esper_runtime.blueprint.call import Call
from esper_runtime.blueprint.graph import Graph, read
from esper_runtime.blueprint.inference import Cost, calls, costs
from esper_runtime.contracts import Blueprint, BlueprintError, Interface


def misfit(blueprint: Blueprint, interface: Interface) -> str | None:
    """Why a valid blueprint does not fit a slot, in words for the user; None when it fits."""
    if (reason := _wrong_kind(blueprint, interface)) is not None:
        return reason
    try:
        calls(read(blueprint), interface)
    except BlueprintError as error:
        return str(error)
    return None


def fitted(blueprint: Blueprint, interface: Interface) -> tuple[Graph, dict[str, Call]]:
    """The graph, and every node's operator applied to its input shapes in a slot.

    Raises:
        BlueprintError: rule ``fit``, when the blueprint does not fit the slot.
    """
    reason: object = _wrong_kind(blueprint, interface)
    if reason is None:
        try:
            graph = read(blueprint)
            return graph, calls(graph, interface)
        except BlueprintError as error:
            reason = error
    raise BlueprintError("fit", f"{blueprint.name} does not fit the slot: {reason}")


def cost(blueprint: Blueprint, interface: Interface) -> Cost:
    """Parameters, and forward MACs of one example at the interface's sizes.

    Raises:
        BlueprintError: rule ``fit``, when the blueprint does not fit the slot.
    """
    nodes = costs(*fitted(blueprint, interface)).values()
    return Cost(sum(node.parameters for node in nodes), sum(node.macs for node in nodes))


def _wrong_kind(blueprint: Blueprint, interface: Interface) -> str | None:
    if blueprint.interface is not interface.kind:
        return f"it is made for {blueprint.interface}, the slot carries {interface.kind}"
    if interface.causal and not blueprint.causal:
        return "the slot is causal; the blueprint may let a position see later ones"
    if blueprint.span and not interface.is_span:
        return "it widens a producer and its consumer; the slot is not such a span"
    if interface.is_span and not blueprint.span:
        return "the slot is a span of a producer and its consumer; the blueprint is not made for spans"
    return None
