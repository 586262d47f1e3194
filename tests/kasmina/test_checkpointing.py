"""Hosts that checkpoint activations: what runs again in the backward pass does what the forward pass did."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esper_runtime.contracts import Directive, GraftingPlan, HostError, Operation, PlanKind
from esper_runtime.kasmina import Growable, Trial, learn_isolated, probe_slots, wrap

X = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
each_kind = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "re-entrant"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(torch.relu(self.up(x))))


class Host(nn.Module):
    """Blocks of which each is checkpointed; ``shared`` calls one block three times."""

    def __init__(self, shared: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        self.inlet = nn.Linear(10, 8)
        one = Block()
        self.blocks = nn.ModuleList([one, one, one] if shared else [Block(), Block(), Block()])
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            if self.reentrant is None or not self.training:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class Inner(nn.Module):
    """A producer outside of the checkpointed part, its consumer inside."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.producer = nn.Linear(10, 8)
        self.consumer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant

    def _rest(self, x: Tensor) -> Tensor:
        return torch.tanh(self.consumer(torch.relu(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.producer(x)
        if self.reentrant is None or not self.training:
            return self.head(self._rest(x))
        return self.head(checkpoint(self._rest, x, use_reentrant=self.reentrant))


def both(make: Callable[..., nn.Module], slots: list[str], reentrant: bool, **given: Any) -> list[Growable]:
    """The same model with the same seeds, without checkpointing and with it."""
    torch.manual_seed(0)
    plain = make(**given)
    models = []
    for kind in (None, reentrant):
        host = copy.deepcopy(plain).train()
        host.reentrant = kind  # type: ignore[assignment]
        model = wrap(host, X)
        for slot in slots:
            plant(model, slot)
        for parameter in model.living.parameters():
            torch.nn.init.normal_(
                parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel())
            )
        models.append(model)
    return models


def plant(model: Growable, slot: str, plan: PlanKind = PlanKind.IMMEDIATE) -> None:
    kind = "widen-linear" if ".." in slot else "low-rank"
    blueprint = next(i for i, b in model.blueprints.items() if b.name.startswith(kind))
    given = {"slot": slot, "blueprint": blueprint, "plan": GraftingPlan(kind=plan)}
    model.submit(Directive(operation=Operation.GERMINATE, explanation="the test says so", **given))
    changes = model.boundary(0)
    assert not changes.refused, changes.refused


def step(model: Growable) -> dict[str, Tensor]:
    torch.manual_seed(3)
    loss = model(X).square().sum()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance, msg=name)


@each_kind
@pytest.mark.parametrize(
    "slot", ["blocks.1.dropout.output", "blocks.1.output", "blocks.1.up..blocks.1.down", "inlet.output"]
)
def test_a_seed_learns_the_same_with_checkpointing(slot: str, reentrant: bool) -> None:
    plain, checkpointed = both(Host, [slot], reentrant)
    expected = step(plain)
    assert any(name.startswith("living.") for name in expected)
    assert_equal(expected, step(checkpointed))


@each_kind
@pytest.mark.parametrize("call", [0, 1, 2])
def test_calls_of_a_shared_block_are_told_apart_when_it_runs_again(call: int, reentrant: bool) -> None:
    slot = f"blocks.0.dropout.output#{call}".removesuffix("#0")
    plain, checkpointed = both(Host, [slot], reentrant, shared=True)
    for _ in range(2):  # from the second forward pass on, every call is recognised by what it was given
        # The gradients of a shared weight are summed in another order.
        assert_equal(step(plain), step(checkpointed), tolerance=1e-5)


def test_a_span_into_a_checkpointed_part_reads_what_the_forward_pass_read() -> None:
    plain, checkpointed = both(Inner, ["producer..consumer"], reentrant=False)
    assert_equal(step(plain), step(checkpointed))


def test_a_span_into_a_part_with_reentrant_checkpointing_is_refused() -> None:
    _, checkpointed = both(Inner, ["producer..consumer"], reentrant=True)
    with pytest.raises(HostError, match="use_reentrant=False"):
        step(checkpointed)


def test_a_backward_pass_through_an_earlier_forward_pass_is_refused_where_it_would_read_the_wrong_one() -> (
    None
):
    _, checkpointed = both(Inner, ["producer..consumer"], reentrant=False)
    first = checkpointed(X).sum()
    checkpointed(2 * X).sum().backward()
    with pytest.raises(HostError, match="call backward after each forward"):
        first.backward()


@each_kind
def test_a_seed_learns_behind_a_checkpointed_host_without_touching_it(reentrant: bool) -> None:
    plain, checkpointed = both(Host, [], reentrant)
    found = []
    for model in (plain, checkpointed):
        plant(model, "blocks.1.dropout.output", PlanKind.ISOLATED)
        (seed,) = model.isolating()
        torch.manual_seed(4)
        loss = learn_isolated(model, seed, (X,), {}, lambda output: output.square().sum())
        assert all(p.grad is None for p in model.host.parameters())
        found.append(
            {"loss": loss, **{n: p.grad for n, p in seed.body.named_parameters() if p.grad is not None}}
        )
    assert len(found[0]) > 1
    assert_equal(*found)


@each_kind
def test_telemetry_of_a_checkpointed_host_is_that_of_the_host(reentrant: bool) -> None:
    models = both(Host, [], reentrant)
    for model in models:
        torch.manual_seed(5)
        probe_slots(model, Trial((X,), {}, lambda output: output.square().sum(1)))
    one, other = ([slot.telemetry for slot in model.slots.values()] for model in models)
    assert one == other
    assert all(t is not None and t.gradient_norm is not None for t in one)


@each_kind
def test_a_seed_that_fails_in_a_checkpointed_part_leaves_the_identity_path(reentrant: bool) -> None:
    plain, checkpointed = both(Host, ["blocks.1.dropout.output"], reentrant)
    for model in (plain, checkpointed):
        with torch.no_grad():
            for parameter in model.living.parameters():
                parameter.fill_(float("nan"))
    bare, found = step(plain), step(checkpointed)
    assert [seed.failure is not None for seed in checkpointed.seeds] == [True]
    assert_equal(bare, found)
    assert_equal(step(plain), step(checkpointed))


def test_a_direct_call_of_a_submodule_is_still_refused() -> None:
    model, _ = both(Host, ["blocks.1.dropout.output"], reentrant=False)
    with pytest.raises(HostError, match="outside of a forward pass"):
        model.host.blocks[1](torch.randn(2, 8))  # type: ignore[index, operator]
