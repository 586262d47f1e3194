"""Shapes of every node of a graph at one interface, and what the graph costs there."""

from dataclasses import dataclass

from esper_runtime.blueprint.call import Call, Shape
from esper_runtime.blueprint.graph import INPUT, Graph, Reference
from esper_runtime.contracts import BlueprintError, Interface, InterfaceKind

_AXES = {
    InterfaceKind.FEATURES: 0,
    InterfaceKind.SEQUENCE: 1,
    InterfaceKind.TOKENS: 1,
    InterfaceKind.IMAGE: 2,
}


@dataclass(frozen=True)
class Cost:
    """Trainable numbers, and multiply-accumulates of one forward pass of one example."""

    parameters: int
    macs: int


def calls(graph: Graph, interface: Interface) -> dict[str, Call]:
    """Every node's operator applied to its input shapes, in the graph's order.

    Raises:
        BlueprintError: rule ``shape``, naming the node whose rule is broken, or the graph when its output
            has not the shape that the interface needs.
    """
    found, given = _applied(graph, interface)
    needed = Shape(interface.width_out, interface.spatial_out)
    if given != needed:
        message = f"the output has {given}; the slot needs {needed}"
        raise BlueprintError("shape", message, graph.output.node)
    return found


def output_shape(graph: Graph, interface: Interface) -> Shape:
    """The shape that the graph yields for the interface's input, whatever its output should be.

    Raises:
        BlueprintError: rule ``shape``, naming the node whose rule is broken.
    """
    return _applied(graph, interface)[1]


def _applied(graph: Graph, interface: Interface) -> tuple[dict[str, Call], Shape]:
    for sizes in (interface.spatial_in, interface.spatial_out):
        if len(sizes) != _AXES[interface.kind]:
            message = (
                f"{interface.kind} has {_AXES[interface.kind]} axes of positions, the slot has {len(sizes)}"
            )
            raise BlueprintError("shape", message)
    shapes = {Reference(INPUT): Shape(interface.width_in, interface.spatial_in)}
    found: dict[str, Call] = {}
    for node in graph.nodes.values():
        call = Call(node.id, node.attributes, tuple(shapes[r] for r in node.inputs), interface)
        found[node.id] = call
        for port, shape in enumerate(node.operator.shape(call)):
            shapes[Reference(node.id, port)] = shape
    return found, shapes[graph.output]


def costs_of_nodes(graph: Graph, interface: Interface) -> dict[str, Cost]:
    """What each node costs; raises `BlueprintError` where the graph does not fit."""
    return costs(graph, calls(graph, interface))


def costs(graph: Graph, found: dict[str, Call]) -> dict[str, Cost]:
    """What each node costs, given what `calls` found."""
    return {
        id_: Cost(node.operator.parameters(found[id_]), node.operator.macs(found[id_]))
        for id_, node in graph.nodes.items()
    }
