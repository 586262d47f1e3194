"""Which blueprints are widenings that two host layers could take up, by the look of their graph alone."""

from esper_runtime.blueprint.graph import INPUT, read
from esper_runtime.blueprint.rules import ACTIVATIONS
from esper_runtime.contracts import Blueprint

_MIXERS = frozenset({"linear", "conv"})
_BETWEEN = frozenset(ACTIVATIONS) | {"span_activation", "batch_norm", "group_norm"}


def unabsorbable(blueprint: Blueprint) -> str | None:
    """Why no seed of this blueprint can ever be absorbed; None where it can, in a host that agrees."""
    if not blueprint.span:
        return "it is an adapter on one activation: there are no two layers that it could widen"
    graph = read(blueprint)
    nodes = list(graph.nodes.values())
    names = [node.operator.name for node in nodes]
    before = INPUT
    for node in nodes:
        if [reference.node for reference in node.inputs] != [before]:
            return f"node {node.id!r} does not read the one before it: it is not a chain of layers"
        before = node.id
    if len(nodes) < 2 or names[0] not in _MIXERS or names[-1] not in _MIXERS:
        return "it does not begin and end with a linear layer or a convolution"
    for node, name in zip(nodes[1:-1], names[1:-1], strict=True):
        if name in _MIXERS:
            return f"it has a layer more ({node.id!r}) than a widening, which would need blocks of zeros"
        if name not in _BETWEEN:
            return f"{name} ({node.id!r}) is neither an activation nor a norm of single channels or groups"
    if nodes[-1].attributes.get("bias"):
        return "its last layer has a bias: merged with the consumer's, it would learn at half the pace"
    return None
