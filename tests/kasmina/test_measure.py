"""What is measured about slots and seeds is true, and measuring changes nothing."""

import copy
import math

import pytest
import torch
from torch import nn

from esper_runtime.contracts import Operation, PlanKind
from esper_runtime.kasmina import (
    Growable,
    Trial,
    initialise_from_gradients,
    measure_contribution,
    probe_slots,
    summary,
    wrap,
)
from tests.kasmina.test_lifecycle import command, germinate, growable


def trial(model: Growable, examples: int = 32) -> Trial:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(examples, 6, generator=generator)
    y = torch.randint(0, 3, (examples,), generator=generator)
    return Trial((x,), {}, lambda output: nn.functional.cross_entropy(output, y, reduction="none"))


def losses(model: Growable, batch: Trial) -> torch.Tensor:
    with torch.no_grad():
        return batch.losses(model(*batch.args))


def test_a_contribution_is_the_loss_without_the_seed_minus_the_loss_with_it() -> None:
    model = growable().eval()
    batch = trial(model)
    without = losses(model, batch)
    model.submit(germinate())
    model.boundary(0)
    for parameter in model.seed("s1").body.parameters():
        nn.init.normal_(parameter)
    gain = without - losses(model, batch)
    measured = measure_contribution(model, model.seed("s1"), [batch])
    assert measured is not None
    assert measured.count == 32
    assert measured.mean == pytest.approx(gain.double().mean().item())
    assert measured.standard_error == pytest.approx(gain.double().std().item() / math.sqrt(32))


def test_an_isolated_seed_is_measured_at_full_strength_and_stays_isolated() -> None:
    model = growable().eval()
    batch = trial(model)
    model.submit(germinate(kind=PlanKind.ISOLATED))
    model.boundary(0)
    for parameter in model.seed("s1").body.parameters():
        nn.init.normal_(parameter)
    own = losses(model, batch)
    measured = measure_contribution(model, model.seed("s1"), [batch])
    assert measured is not None
    assert measured.mean != 0.0
    assert torch.equal(losses(model, batch), own)
    assert model.seed("s1").alpha == 0.0


def test_a_loss_that_is_not_finite_leaves_the_contribution_unmeasured() -> None:
    model = growable()
    model.submit(germinate())
    model.boundary(0)
    broken = Trial((torch.randn(4, 6),), {}, lambda output: output.sum(dim=1) * float("nan"))
    assert measure_contribution(model, model.seed("s1"), [broken]) is None


def test_a_standard_error_needs_two_values() -> None:
    with pytest.raises(ValueError, match="at least two"):
        summary(torch.ones(1))


def test_telemetry_tells_dead_from_living_channels() -> None:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        host[0].weight[:4] = 0.0
        host[0].bias[:4] = -1.0
    model = wrap(host, torch.randn(4, 6))
    state = copy.deepcopy(host.state_dict())
    probe_slots(model, trial(model))
    telemetry = model.slots["1.output"].telemetry
    assert telemetry.dead_fraction == 0.5
    assert telemetry.gradient_norm is not None
    assert telemetry.gradient_norm > 0
    assert telemetry.effective_rank is not None
    assert 1.0 < telemetry.effective_rank <= 4.0
    assert all(torch.equal(state[k], v) for k, v in host.state_dict().items())
    assert all(p.grad is None for p in host.parameters())


def test_a_slot_that_was_never_probed_has_no_telemetry() -> None:
    assert growable().slots["1.output"].telemetry.gradient_norm is None


def test_gradient_statistics_make_the_first_step_of_the_tail_larger() -> None:
    model = growable().eval()
    batch = trial(model)
    model.submit(germinate())
    model.boundary(0)
    seed = model.seed("s1")
    before = losses(model, batch)

    def tail_gradient() -> float:
        model.zero_grad()
        batch.losses(model(*batch.args)).mean().backward()
        tails = [p for n, p in seed.body.named_parameters() if n.startswith("tail.weight")]
        return sum(p.grad.square().sum().item() for p in tails if p.grad is not None)

    random = tail_gradient()
    assert initialise_from_gradients(model, seed, [batch])
    assert torch.equal(losses(model, batch), before)
    assert tail_gradient() > random


def test_rebuilding_from_architecture_and_state_gives_the_same_model() -> None:
    model = growable()
    model.submit(germinate())
    model.submit(germinate("3.output", kind=PlanKind.ISOLATED))
    model.boundary(0)
    model.submit(command(Operation.EVALUATE))
    model.boundary(3)
    for parameter in model.living.parameters():
        nn.init.normal_(parameter)
    twin = growable()
    twin.rebuild(model.architecture())
    twin.load_state_dict(model.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(model(x), twin(x))
    assert twin.architecture() == model.architecture()
    assert [s.stage for s in twin.seeds] == [s.stage for s in model.seeds]


def test_behind_a_host_with_batch_norm_a_gain_is_what_the_host_would_have_once_it_is_used_to_the_seed() -> (
    None
):
    """The host's running statistics do not know the seed; by the batch, the gain is that of its training."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    batch = trial(growable())
    model = wrap(host, *batch.args)
    for _ in range(50):
        model(*batch.args)
    model.submit(germinate(kind=PlanKind.ISOLATED))
    model.boundary(0)
    seed = model.seed("s1")
    for parameter in seed.body.parameters():
        nn.init.normal_(parameter, std=3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        without = batch.losses(twin(*batch.args)).mean().item()
        twin.seed("s1").isolated_gain = summary(torch.tensor([0.0, 1.0]))
        twin.submit(command(Operation.GRAFT))
        twin.boundary(1)
        gain = without - batch.losses(twin(*batch.args)).mean().item()
    measured = measure_contribution(model, seed, [batch])
    assert measured is not None
    assert measured.mean == pytest.approx(gain, rel=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
