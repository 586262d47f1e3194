"""What Karn draws and mutates is valid, fits, is the zero function at birth, and the same everywhere."""

import math
import subprocess
import sys
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.grammar import BUDGET, measure, parents_for, sorts_of_slots
from esper_runtime.blueprint import (
    OPERATORS,
    canonical_id,
    catalogue,
    cost,
    misfit,
    parse_blueprint,
    validate,
)
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import (
    Blueprint,
    BlueprintBudget,
    GenerationError,
    Interface,
    InterfaceKind,
    KernelInterface,
    Node,
    Origin,
)
from esper_runtime.karn import GENERATOR, draw, mutate
from esper_runtime.karn.grammar import VALUES
from tests.blueprint.graphs import residual_slot
from tests.karn.slots import class_of, interfaces

SEEDS = st.integers(0, 2**32)
MOST_PARAMETERS = BUDGET.parameters or 0


def sound(blueprint: Blueprint, slot: Interface) -> None:
    """Valid as a file, fitting, of a price within the budget, and exactly zero when built."""
    validate(blueprint)
    assert parse_blueprint(blueprint.model_dump(mode="json", by_alias=True)) == blueprint
    assert misfit(blueprint, slot) is None
    price = cost(blueprint, slot)
    assert 0 < price.parameters <= MOST_PARAMETERS
    assert 0 <= price.macs < math.inf
    assert blueprint.name == f"karn-{canonical_id(blueprint).removeprefix('bp-')}"
    assert blueprint.provenance.generator == GENERATOR
    body = build(blueprint, slot, 3)
    assert sum(p.numel() for p in body.parameters()) == price.parameters
    body.eval()
    kind = slot.kind
    shape_in, shape_out = ((2, width) for width in (slot.width_in, slot.width_out))
    if kind is InterfaceKind.TOKENS:
        given_, wanted = (2, *slot.spatial_in, slot.width_in), (2, *slot.spatial_out, slot.width_out)
    else:
        given_, wanted = (*shape_in, *slot.spatial_in), (*shape_out, *slot.spatial_out)
    yielded = body(torch.randn(*given_, generator=torch.Generator().manual_seed(1)))
    assert tuple(yielded.shape) == wanted
    assert bool((yielded == 0).all())


@settings(max_examples=60, deadline=None)
@given(interfaces(), SEEDS)
def test_every_drawn_blueprint_is_valid_fits_its_slot_and_is_zero_at_birth(
    slot: Interface, seed: int
) -> None:
    blueprint = draw(class_of(slot), BUDGET, Random(seed))
    sound(blueprint, slot)
    assert blueprint.provenance.origin is Origin.GENERATED
    assert blueprint == draw(class_of(slot), BUDGET, Random(seed))


@settings(max_examples=60, deadline=None)
@given(interfaces(), SEEDS, st.integers(1, 4))
def test_every_mutation_is_valid_and_another_one_than_its_parent(
    slot: Interface, seed: int, generations: int
) -> None:
    random, slots = Random(seed), class_of(slot)
    parent = draw(slots, BUDGET, random)
    for _ in range(generations):
        child = mutate(parent, slots, BUDGET, random)
        sound(child, slot)
        assert child.provenance.origin is Origin.MUTATED
        assert child.provenance.parents == (canonical_id(parent),)
        assert canonical_id(child) != canonical_id(parent)
        assert child.description.startswith(f"{parent.name}: ")
        parent = child


@pytest.mark.parametrize("sort", sorts_of_slots())
def test_the_catalogue_can_be_mutated_for_each_sort_of_slots(sort: str) -> None:
    slots = sorts_of_slots()[sort]
    parents = parents_for(slots)
    assert parents
    random = Random(7)
    for parent in parents:
        assert canonical_id(mutate(parent, slots, BUDGET, random)) != canonical_id(parent)


def test_nearly_all_first_draws_pass_and_nearly_all_differ() -> None:
    for sort in ("features", "image", "sequence span", "causal tokens"):
        shares = measure(sorts_of_slots()[sort], samples=60)
        assert shares["passed at once"] >= 0.9, (sort, shares)
        assert shares["drawn distinct"] >= 0.8, (sort, shares)
        assert shares["mutated distinct"] >= 0.7, (sort, shares)


def test_every_operator_but_those_that_do_nothing_is_drawn_somewhere() -> None:
    seen = {
        node.op
        for slots in sorts_of_slots().values()
        for seed in range(40)
        for node in draw(slots, BUDGET, Random(seed)).nodes
    }
    assert seen == set(OPERATORS) - {"identity"}


def test_every_attribute_of_every_operator_has_values_to_be_drawn() -> None:
    drawn = {"width", "causal", "padding", *VALUES}
    for operator in OPERATORS.values():
        assert set(operator.fields) <= drawn, operator.name
        for name in set(operator.fields) & set(VALUES):
            for value in VALUES[name]:
                if (operator.name, name) != ("group_norm", "groups"):
                    operator.fields[name].parse(value)


def test_the_same_seed_gives_the_same_blueprints_in_every_process() -> None:
    script = (
        "from random import Random; from benchmarks.grammar import BUDGET, parents_for, sorts_of_slots;"
        "from esper_runtime.karn import draw, mutate; import sys;"
        "print([f(s) for s in sorts_of_slots().values() for f in (lambda s: draw(s, BUDGET, Random(5)).name, "
        "lambda s: mutate(parents_for(s)[0], s, BUDGET, Random(5)).name)], 'torch' in sys.modules)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for hashes in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0].endswith(" False\n")


def test_a_budget_is_kept_and_one_that_nothing_keeps_is_said() -> None:
    slots = class_of(residual_slot(InterfaceKind.FEATURES, 64))
    small = BlueprintBudget(parameters=600, macs=600, nodes=12)
    for seed in range(40):
        blueprint = draw(slots, small, Random(seed))
        price = cost(blueprint, residual_slot(InterfaceKind.FEATURES, 64))
        assert price.parameters <= 600
        assert price.macs <= 600
        assert len(blueprint.nodes) <= 12
    with pytest.raises(GenerationError, match=r"200 drawn blueprints were refused, .*at most 1 are wanted"):
        draw(slots, BlueprintBudget(parameters=1), Random(0))
    with pytest.raises(GenerationError, match="mutations of mlp were refused"):
        mutate(catalogue()["mlp"], slots, BlueprintBudget(parameters=1), Random(0))


def test_slots_that_nothing_fits_and_parents_for_other_slots_are_said() -> None:
    def slots(**more: object) -> KernelInterface:
        plain = class_of(residual_slot(InterfaceKind.IMAGE, 8))
        return plain.model_copy(update=more)

    with pytest.raises(GenerationError, match=r"stride \(2, 2\) without a span"):
        draw(slots(stride=(2, 2)), BUDGET, Random(0))
    with pytest.raises(GenerationError, match="it is made for others"):
        mutate(catalogue()["mlp"], slots(), BUDGET, Random(0))


def test_a_parent_of_one_node_that_takes_from_the_host_is_mutated_too() -> None:
    lone = Blueprint(
        name="lone",
        interface="features",
        nodes=(Node(id="tail", op="linear", inputs=("input",), attributes={"width": "Cout"}),),
        output="tail",
    )
    slots = class_of(residual_slot(InterfaceKind.FEATURES, 8))
    children = {mutate(lone, slots, BUDGET, Random(seed)).name for seed in range(20)}
    assert len(children) > 3
