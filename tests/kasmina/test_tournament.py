"""Several candidates of one slot learn behind the host side by side; at most one of them is let in."""

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.tournament import check_alone, check_host
from esper_runtime.blueprint import canonical_id, catalogue, misfit
from esper_runtime.contracts import (
    Directive,
    GraftingPlan,
    Measured,
    Operation,
    PlanKind,
    SeedStage,
    SlotState,
)
from esper_runtime.kasmina import Growable, Limits, cohorts, learn_isolated, learn_side_by_side, wrap
from tests.kasmina.hosts import HOSTS

SLOT = "1.output"
OTHER = "3.output"
GAIN = Measured(mean=0.1, standard_error=0.01, count=10)

each_host = pytest.mark.parametrize("name", list(HOSTS))


class Counted(nn.ReLU):
    """Counts how often it is run, and on how many values."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def growable(limits: Limits | None = None, last: nn.Module | None = None) -> Growable:
    torch.manual_seed(0)
    middle = last or nn.ReLU()
    host = nn.Sequential(nn.Linear(6, 8), Counted(), nn.Linear(8, 8), middle, nn.Linear(8, 3))
    model = wrap(host, torch.randn(4, 6), limits=limits)
    host[1].calls = 0
    return model


def directives(model: Growable, slot: str = SLOT, count: int = 4, **plan: object) -> list[Directive]:
    place = model.place(slot)
    fitting = [b for b in catalogue().values() if misfit(b, place.interface) is None][:count]
    return [
        Directive(
            operation=Operation.GERMINATE,
            slot=slot,
            blueprint=canonical_id(blueprint),
            plan=GraftingPlan.model_validate({"kind": PlanKind.TOURNAMENT, **plan}),
            explanation="test",
        )
        for blueprint in fitting
    ]


def held(model: Growable, slot: str = SLOT, count: int = 4, **plan: object) -> list[str]:
    """Begin a tournament at step 0; the ids of its candidates."""
    for directive in directives(model, slot, count, **plan):
        model.submit(directive)
    changes = model.boundary(0)
    assert not changes.refused
    for parameter in model.living.parameters():
        nn.init.normal_(parameter, std=0.1)
    return [seed.identity for seed in changes.born]


def told(model: Growable, step: int, *commands: tuple[Operation, str]) -> list[str]:
    """Give commands at a step; the reasons of those refused."""
    for operation, seed in commands:
        model.submit(Directive(operation=operation, seed=seed, explanation="test"))
    return [reason for _, reason in model.boundary(step).refused]


def loss(output: Tensor) -> Tensor:
    return (output - 1).square().mean()


@each_host
def test_candidates_side_by_side_do_not_touch_the_host(name: str) -> None:
    assert check_host(name, steps=8) == 0.0


@each_host
def test_each_candidate_learns_what_it_would_alone(name: str) -> None:
    worst, tournaments, together = check_alone(name)
    assert worst <= 1e-5
    assert together >= tournaments - 1


def test_four_candidates_take_one_pass_of_the_host() -> None:
    model = growable()
    held(model)
    model.host[1].calls = 0
    learn_side_by_side(model, model.isolating(), (torch.randn(4, 6),), {}, loss)
    assert model.host[1].calls == 1
    assert all(p.grad is not None for p in model.living.parameters())


class Branching(nn.Module):
    """Looks at values, which a pass for several candidates at once cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > 1e9 else x.tanh()


def test_where_the_host_branches_on_values_each_candidate_has_a_pass_of_its_own() -> None:
    model = growable(last=Branching())
    held(model)
    seeds, x = model.isolating(), torch.randn(4, 6)
    expected = []
    for seed in seeds:
        learn_isolated(model, seed, (x,), {}, loss)
        expected.append([p.grad.clone() for p in seed.body.parameters() if p.grad is not None])
    learn_side_by_side(model, seeds, (x,), {}, loss)
    assert all(seed.apart for seed in seeds)
    for seed, gradients in zip(seeds, expected, strict=True):
        found = [p.grad for p in seed.body.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    model.host[1].calls = 0
    learn_side_by_side(model, seeds, (x,), {}, loss)
    assert model.host[1].calls == 4, "the attempt that failed is made once, not at every step"


def test_an_attempt_at_one_pass_that_fails_leaves_the_candidates_own_statistics_alone() -> None:
    """Else a resumed run, which makes the attempt again, would not be the one never interrupted."""
    model, again = growable(last=Branching()), growable(last=Branching())
    normalised = [b for b in catalogue().values() if b.name in ("mlp-bn", "mlp-bn-double")]
    for copied in (model, again):
        for directive, blueprint in zip(directives(copied, count=2), normalised, strict=True):
            copied.submit(directive.model_copy(update={"blueprint": canonical_id(blueprint)}))
        copied.boundary(0)
    x = torch.randn(4, 6)
    learn_side_by_side(model, model.isolating(), (x,), {}, loss)
    for seed in again.isolating():
        learn_isolated(again, seed, (x,), {}, loss)
    pairs = zip(model.living.buffers(), again.living.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_candidate_that_yields_no_numbers_fails_alone(value: float) -> None:
    model = growable()
    names = held(model)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 6)
    with torch.no_grad():
        next(iter(model.seed(names[1]).body.parameters())).fill_(value)
    losses = learn_side_by_side(model, model.isolating(), (x,), {}, loss)
    expected = learn_side_by_side(twin, twin.isolating(), (x,), {}, loss)
    assert "non-finite" in (model.seed(names[1]).failure or "")
    for index, name in enumerate(names):
        if index == 1:
            continue
        assert model.seed(name).failure is None
        assert losses[index] == expected[index]
        pairs = zip(model.seed(name).parameters(), twin.seed(name).parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    model.boundary(1)
    assert [seed.identity for seed in model.isolating()] == [names[0], *names[2:]]
    assert model.slots[SLOT].state is SlotState.OCCUPIED


def test_a_candidate_that_cannot_be_built_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = growable()
    build = model.make_body

    def broken(blueprint, slot, random_seed, make=None):
        if model._germinated == 1:
            raise RuntimeError("no memory")
        return build(blueprint, slot, random_seed, make)

    monkeypatch.setattr(model, "make_body", broken)
    for directive in directives(model, embargoSteps=50):
        model.submit(directive)
    changes = model.boundary(0)
    assert not changes.refused
    assert [seed.identity for seed in changes.born] == ["s2", "s3", "s4"]
    assert "s1" not in model.living
    assert model.slots[SLOT].state is SlotState.OCCUPIED


def test_nobody_joins_a_tournament_later_and_nobody_else_the_slot() -> None:
    model = growable()
    held(model, count=3)
    late, other = directives(model)[3], directives(model, kind=PlanKind.IMMEDIATE)[0]
    model.submit(late)
    model.submit(other)
    reasons = [reason for _, reason in model.boundary(1).refused]
    assert "began at step 0 with s1, s2, s3" in reasons[0]
    assert "germinate at the same boundary" in reasons[0]
    assert "only a Dormant slot" in reasons[1]


def test_a_tournament_does_not_begin_in_a_slot_with_another_young_seed() -> None:
    model = growable()
    model.submit(directives(model, kind=PlanKind.ISOLATED)[0])
    model.submit(directives(model)[1])
    ((_, reason),) = model.boundary(0).refused
    assert "only a Dormant slot" in reason


def test_only_one_of_a_cohort_is_ever_let_in() -> None:
    model = growable()
    held(model)
    for seed in model.seeds:
        seed.isolated_gain = GAIN
    (reason,) = told(model, 5, (Operation.GRAFT, "s2"), (Operation.GRAFT, "s3"))
    assert "seed s2 of the same tournament" in reason
    assert "cull s3" in reason
    model.seed("s2").contribution = GAIN
    assert told(model, 6, (Operation.EVALUATE, "s2")) == []
    assert told(model, 7, (Operation.FOSSILIZE, "s2")) == []
    assert model.slots[SLOT].state is SlotState.OCCUPIED, "its rivals still learn there"
    (reason,) = told(model, 8, (Operation.GRAFT, "s4"))
    assert "seed s2 of the same tournament" in reason
    assert [s.identity for s in model.seeds if s.contributing] == ["s2"]
    assert told(model, 9, *((Operation.CULL, s) for s in ("s1", "s3", "s4"))) == []


def test_a_gain_has_to_be_measured_first() -> None:
    model = growable()
    held(model)
    (reason,) = told(model, 5, (Operation.GRAFT, "s1"))
    assert "its gain in isolation has not been measured" in reason


def test_losers_leave_the_slot_without_a_rest_and_all_culled_count_as_one() -> None:
    model = growable()
    held(model, embargoSteps=10)
    for seed in model.seeds:
        seed.isolated_gain = GAIN
    commands = [(Operation.GRAFT, "s1"), *((Operation.CULL, f"s{n}") for n in (2, 3, 4))]
    assert told(model, 5, *commands) == []
    slot = model.slots[SLOT]
    assert (slot.state, slot.culls) == (SlotState.OCCUPIED, 0)

    model = growable()
    held(model, embargoSteps=10)
    assert told(model, 5, *((Operation.CULL, f"s{n}") for n in (1, 2, 3, 4))) == []
    slot = model.slots[SLOT]
    assert (slot.state, slot.culls, slot.until) == (SlotState.EMBARGOED, 1, 15)


def test_the_budget_is_charged_for_the_dearest_candidate_and_seeds_for_each() -> None:
    model = growable()
    names = held(model)
    prices = [model.seed(name).price for name in names]
    host = model.host_parameters
    dearest = max(price.parameters for price in prices)

    held(growable(Limits(parameters=host + dearest)))
    poor = growable(Limits(parameters=host + dearest - 1))
    for directive in directives(poor):
        poor.submit(directive)
    reasons = [reason for _, reason in poor.boundary(0).refused]
    assert len(reasons) == sum(price.parameters == dearest for price in prices)
    assert all(f"{host + dearest} parameters" in reason for reason in reasons)

    few = growable(Limits(concurrent_seeds=3))
    for directive in directives(few):
        few.submit(directive)
    ((_, reason),) = few.boundary(0).refused
    assert "3 seeds are not fossilized yet" in reason


def test_two_tournaments_and_a_lone_seed_learn_in_groups_of_their_own() -> None:
    model = growable()
    for directive in (*directives(model, SLOT, 2), *directives(model, OTHER, 2)):
        model.submit(directive)
    lone = next(slot for slot in model.slots if slot not in (SLOT, OTHER))
    model.submit(directives(model, lone, 1, kind=PlanKind.ISOLATED)[0])
    model.boundary(0)
    groups = [[seed.identity for seed in group] for group in cohorts(model.isolating())]
    assert groups == [["s1", "s2"], ["s3", "s4"], ["s5"]]


def test_a_model_built_again_in_the_middle_knows_the_cohort() -> None:
    model, again = growable(), growable()
    held(model)
    for seed in model.seeds:
        seed.isolated_gain = GAIN
    told(model, 5, (Operation.GRAFT, "s2"))
    again.rebuild(model.architecture())
    again.load_state_dict(model.state_dict())
    assert again.architecture() == model.architecture()
    (reason,) = told(again, 6, (Operation.GRAFT, "s3"))
    assert "seed s2 of the same tournament" in reason
    assert [s.stage for s in again.seeds].count(SeedStage.TRAINING) == 3
