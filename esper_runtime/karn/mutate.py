"""Mutations: a blueprint with one to three small changes, each of which leaves a graph that may work."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from esper_runtime.blueprint import OPERATORS, canonical_id, screen
from esper_runtime.contracts import (
    Attribute,
    Blueprint,
    BlueprintBudget,
    BlueprintError,
    GenerationError,
    KernelInterface,
    Node,
    Origin,
    Provenance,
)
from esper_runtime.karn.grammar import GENERATOR, Grammar

TRIES = 200
_CHANGES = (1, 1, 1, 2, 2, 3)
_SIDES = ("producer", "consumer")


def mutate(parent: Blueprint, slots: KernelInterface, budget: BlueprintBudget, random: Random) -> Blueprint:
    """Another blueprint near ``parent``, which has passed `screen`; the same for the same ``random``.

    An operator is inserted, removed, replaced by another of its sort or bypassed by a sum, or a width, kernel
    size or other attribute is changed. The text of the new one says which.

    Args:
        parent: a valid blueprint.
        slots: the class of slots that the new one has to fit.
        budget: most that it may cost there.
        random: where the draws come from.

    Raises:
        GenerationError: none was found in `TRIES` tries, or the parent is made for other slots.
    """
    grammar = Grammar(slots)
    if (parent.interface, parent.span) != (slots.kind, grammar.is_span):
        sort = f"{slots.kind}{' spans' if grammar.is_span else ''}"
        raise GenerationError(f"{parent.name} cannot be changed into one for {sort}: it is made for others")
    identity = canonical_id(parent)
    refused: object = "nothing was changed"
    made = Provenance(origin=Origin.MUTATED, parents=(identity,), generator=GENERATOR)
    for _ in range(TRIES):
        edit = _Edit(parent, grammar, random)
        for _ in range(random.choice(_CHANGES)):
            edit.change()
        try:
            said = f"{parent.name}: {'; '.join(edit.said)}"
            child = grammar.blueprint(edit.reachable(), edit.output, made, said)
        except (BlueprintError, ValueError) as error:
            refused = error
            continue
        reason = screen(child, slots, budget)
        if reason is None and child.name != f"karn-{identity.removeprefix('bp-')}":
            return child
        refused = reason or "it is its parent again"
    raise GenerationError(f"{TRIES} mutations of {parent.name} were refused, the last one because: {refused}")


@dataclass(frozen=True)
class _Place:
    """Who reads: input number ``port`` of a node, or the output of the graph where ``node`` is None."""

    node: int | None
    port: int = 0


class _Edit:
    """A graph while it is changed."""

    def __init__(self, parent: Blueprint, grammar: Grammar, random: Random) -> None:
        self.nodes, self.output = list(parent.nodes), parent.output
        self.said: list[str] = []
        self._grammar, self._random = grammar, random

    def change(self) -> None:
        """Make one change; one that is impossible here leaves the graph as it is."""
        changes: tuple[Callable[[], str | None], ...] = (
            self._insert,
            self._remove,
            self._replace,
            self._bypass,
            self._alter,
            self._alter,
        )
        said = self._random.choice(changes)()
        if said is not None:
            self.said.append(said)

    def reachable(self) -> list[Node]:
        """The nodes that the output needs."""
        by_id = {node.id: node for node in self.nodes}
        needed, waiting = set(), [self.output]
        while waiting:
            id_ = _node_of(waiting.pop())
            if id_ in by_id and id_ not in needed:
                needed.add(id_)
                waiting.extend(by_id[id_].inputs)
        return [node for node in self.nodes if node.id in needed]

    def _insert(self) -> str:
        """An operator on one edge."""
        grammar, place = self._grammar, self._random.choice(self._places())
        reader = None if place.node is None else self.nodes[place.node]
        names = [*grammar.activations, *grammar.norms, "dropout", "scale"]
        names += [name for name in grammar.mixers if name == "depthwise_conv"]
        if reader is not None and "width" in OPERATORS[reader.op].fields:  # takes any width
            names += grammar.mixers
        op = self._random.choice(names)
        source = self.output if reader is None else reader.inputs[place.port]
        id_ = self._free_id()
        attributes = grammar.attributes(op, self._random)
        self.nodes.append(Node(id=id_, op=op, inputs=(source,), attributes=attributes))
        self._read_instead(place, id_)
        return f"{op} before {'the output' if reader is None else reader.id}"

    def _remove(self) -> str | None:
        """A node; what read it reads one of its inputs."""
        if len(self.nodes) == 1:
            return None
        node = self._random.choice(self.nodes)
        source = self._random.choice(node.inputs)
        for place in self._places():
            if _node_of(self._source(place)) == node.id:
                self._read_instead(place, source)
        self.nodes.remove(node)
        return f"without {node.id}"

    def _replace(self) -> str | None:
        """An operator by another of its sort, with the attributes that both have."""
        number = self._random.randrange(len(self.nodes))
        node, grammar = self.nodes[number], self._grammar
        joins = ("add", "multiply")
        for sort in (grammar.activations, grammar.norms, grammar.mixers, joins):
            others = [name for name in sort if name != node.op]
            if node.op in sort and others:
                op = self._random.choice(others)
                drawn = grammar.attributes(op, self._random)
                kept = {name: value for name, value in node.attributes.items() if name in drawn}
                self.nodes[number] = node.model_copy(update={"op": op, "attributes": drawn | kept})
                return f"{op} for {node.op} at {node.id}"
        return None

    def _bypass(self) -> str:
        """What a node yields, and what it reads, added up."""
        node = self._random.choice(self.nodes)
        source, id_ = self._random.choice(node.inputs), self._free_id()
        for place in self._places():
            if self._source(place) == node.id:
                self._read_instead(place, id_)
        self.nodes.append(Node(id=id_, op="add", inputs=(node.id, source)))
        return f"a way past {node.id}"

    def _alter(self) -> str | None:
        """One attribute of one node; what is taken from the host's layers stays."""
        fields = [
            (number, name)
            for number, node in enumerate(self.nodes)
            for name in OPERATORS[node.op].fields
            if node.attributes.get(name) not in _SIDES
        ]
        if not fields:
            return None
        number, name = self._random.choice(fields)
        node = self.nodes[number]
        before: Attribute | None = node.attributes.get(name, OPERATORS[node.op].fields[name].default)
        after = self._grammar.value(node.op, name, self._random)
        self.nodes[number] = node.model_copy(update={"attributes": {**node.attributes, name: after}})
        return f"{name} of {node.id} {before} -> {after}"

    def _places(self) -> list[_Place]:
        """All that read something."""
        found = [_Place(i, port) for i, node in enumerate(self.nodes) for port in range(len(node.inputs))]
        return [*found, _Place(None)]

    def _source(self, place: _Place) -> str:
        return self.output if place.node is None else self.nodes[place.node].inputs[place.port]

    def _read_instead(self, place: _Place, source: str) -> None:
        if place.node is None:
            self.output = source
            return
        node = self.nodes[place.node]
        inputs = (*node.inputs[: place.port], source, *node.inputs[place.port + 1 :])
        self.nodes[place.node] = node.model_copy(update={"inputs": inputs})

    def _free_id(self) -> str:
        taken = {node.id for node in self.nodes}
        return next(id_ for number in range(len(taken) + 1) if (id_ := f"k{number}") not in taken)


def _node_of(reference: str) -> str:
    return reference.partition(".")[0]
