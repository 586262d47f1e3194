"""Random draws from the grammar of blueprints: a chain of blocks that ends in a zero-initialised tail.

Every value is read by what comes after it, equal widths are joined only, and the last operator of each
summand is a tail, so that nearly all drawn graphs pass; the others are drawn anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from esper_runtime.blueprint import OPERATORS, screen
from esper_runtime.contracts import (
    Attribute,
    Blueprint,
    BlueprintBudget,
    GenerationError,
    KernelInterface,
    Node,
    Origin,
    Provenance,
)
from esper_runtime.karn.grammar import GENERATOR, NORMS, Grammar, Width

TRIES = 200
MOST_BLOCKS = 4
_BLOCK_NODES = 7
_TAIL_NODES = 3


def draw(slots: KernelInterface, budget: BlueprintBudget, random: Random) -> Blueprint:
    """A random blueprint for a class of slots, which has passed `screen`; the same for the same state of
    ``random``.

    Raises:
        GenerationError: none was found in `TRIES` tries: the budget is too small, or the class is one that
            nothing fits.
    """
    impossible = _impossible(Grammar(slots))
    if impossible is not None:
        raise GenerationError(f"no blueprint can be drawn for such slots: {impossible}")
    for _ in range(TRIES):
        blueprint = first_try(slots, budget, random)
        refused = screen(blueprint, slots, budget)
        if refused is None:
            return blueprint
    raise GenerationError(f"{TRIES} drawn blueprints were refused, the last one because: {refused}")


def first_try(slots: KernelInterface, budget: BlueprintBudget, random: Random) -> Blueprint:
    """What `draw` draws, passed or not."""
    return _Draft(Grammar(slots), budget, random).finish()


def _impossible(grammar: Grammar) -> str | None:
    if grammar.is_convolved:
        return "a convolution beside those of a span is not causal" if grammar.slots.causal else None
    if set(grammar.slots.stride) - {1}:
        return f"stride {grammar.slots.stride} without a span whose convolutions have it"
    return None


@dataclass(frozen=True)
class _Value:
    """What a node yields: its reference, its width where an expression says it, and the operator."""

    reference: str
    width: Width | None
    op: str = ""


class _Draft:
    """A graph while it is drawn."""

    def __init__(self, grammar: Grammar, budget: BlueprintBudget, random: Random) -> None:
        self.grammar, self.random = grammar, random
        self.room = budget.nodes - _TAIL_NODES
        self.nodes: list[Node] = []
        self.ready: list[_Value] = []
        """Values that later blocks may read too; all have the same positions."""

    def finish(self) -> Blueprint:
        """Draw blocks, then the tail."""
        value = self._begin()
        for _ in range(self.random.randint(0, MOST_BLOCKS)):
            if len(self.nodes) + _BLOCK_NODES > self.room:
                break
            self.ready.append(value)
            value = self.random.choice(self._blocks(value))(value)
        output = self._end(value)
        made = Provenance(origin=Origin.GENERATED, generator=GENERATOR)
        said = ", ".join(node.op for node in self.nodes)
        return self.grammar.blueprint(self.nodes, output.reference, made, said)

    # Beginning and end

    def _begin(self) -> _Value:
        start = _Value("input", "Cin")
        if not self.grammar.is_convolved:
            return start
        return self._conv(start, self._width(), self.grammar.side("producer"))

    def _end(self, value: _Value) -> _Value:
        ends = [value]
        others = [one for one in self.ready if one.reference != value.reference]
        if others and self.random.random() < 0.2:
            ends.append(self.random.choice(others))
        tails = [self._tail(end) for end in ends]
        return tails[0] if len(tails) == 1 else self._node("add", *tails)

    def _tail(self, value: _Value) -> _Value:
        if self.grammar.is_convolved:
            return self._conv(value, "Cout", self.grammar.side("consumer"))
        final = value.width in self.grammar.final_widths
        names = [name for name in self.grammar.mixers if final or name != "depthwise_conv"]
        useful = any(OPERATORS[node.op].useful for node in self.nodes)
        return self._node(
            self.random.choice([*names, *(["scale"] if final and useful else [])]), value, width="Cout"
        )

    def _conv(self, value: _Value, width: Width, geometry: dict[str, Attribute]) -> _Value:
        return self._node("conv", value, width=width, groups=1, **geometry)

    # Blocks: each reads a value and yields the next one

    def _blocks(self, value: _Value) -> list[Callable[[_Value], _Value]]:
        blocks: list[Callable[[_Value], _Value]] = [self._mix, self._mix, self._gate, self._residual]
        if value.op not in self.grammar.activations:
            blocks += [self._activate, self._activate]
        if value.op not in NORMS:
            blocks.append(self._normalise)
        if value.op != "dropout":
            blocks.append(self._drop)
        if len(self.ready) > 1:
            blocks.append(self._join)
        if value.width is not None and value.width not in (1, 2, 3):
            blocks.append(self._split)
        if self.grammar.allows("global_pool") and value.width is not None:
            blocks.append(self._squeeze)
        return blocks

    def _activate(self, value: _Value) -> _Value:
        return self._node(self.random.choice(self.grammar.activations), value)

    def _normalise(self, value: _Value) -> _Value:
        return self._node(self.random.choice(self.grammar.norms), value)

    def _drop(self, value: _Value) -> _Value:
        return self._node("dropout", value)

    def _mix(self, value: _Value, width: Width | None = None) -> _Value:
        """A weighted operator to a width."""
        wanted = self._width() if width is None else width
        names = [op for op in self.grammar.mixers if op != "depthwise_conv" or value.width == wanted]
        return self._node(self.random.choice(names), value, width=wanted)

    def _gate(self, value: _Value) -> _Value:
        width = self._width()
        gate = self._activate(self._mix(value, width))
        return self._node("multiply", gate, self._mix(value, width))

    def _residual(self, value: _Value) -> _Value:
        if value.width is None:
            return self._mix(value)
        inner = self._activate(self._normalise(value))
        return self._node("add", value, self._mix(inner, value.width))

    def _join(self, value: _Value) -> _Value:
        """Read an earlier value once more."""
        other = self.random.choice(self.ready[:-1])
        if other.width == value.width is not None and self.random.random() < 0.5:
            return self._node("add", value, other)
        return self._mix(self._node("concat", value, other))

    def _split(self, value: _Value) -> _Value:
        """One half of the channels gates the other."""
        halves = self._node("split", value)
        gate = self._activate(_Value(f"{halves.reference}.0", None))
        return self._mix(self._node("multiply", gate, _Value(f"{halves.reference}.1", None)))

    def _squeeze(self, value: _Value) -> _Value:
        """A gate for each channel, from the means over all positions."""
        assert value.width is not None
        op = self.grammar.at_a_point
        means = self._node("global_pool", value)
        hidden = self._activate(self._node(op, means, width=self._width()))
        gate = self._node("sigmoid", self._node(op, hidden, width=value.width))
        return self._node("multiply", value, self._node("broadcast", gate, value))

    def _width(self) -> Width:
        return self.random.choice(self.grammar.widths)

    def _node(self, op: str, *inputs: _Value, width: Width | None = None, **given: Attribute) -> _Value:
        """Add a node with the attributes that are given, and the others drawn."""
        id_ = f"n{len(self.nodes)}"
        attributes = self.grammar.attributes(op, self.random, width) | given
        self.nodes.append(
            Node(id=id_, op=op, inputs=tuple(one.reference for one in inputs), attributes=attributes)
        )
        if op in ("concat", "split"):
            return _Value(id_, None, op)
        return _Value(id_, width if "width" in OPERATORS[op].fields else inputs[0].width, op)
