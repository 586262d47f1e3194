"""Bars: a model with its widenings absorbed computes the same and costs what a plain wider model costs."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.line import bar
from benchmarks.timing import interleaved, ratio
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import HostError, OptimizerName
from esper_runtime.kasmina import absorb
from tests.kasmina.absorbing import HOSTS, fossilize, gap, grown, pair, plant, train
from tests.kasmina.test_absorb import NORMALISED, REFUSED, X, fossil

COMMAND = "python -m benchmarks.absorption"
FURTHER_STEPS = 50
WIDTH, BATCH = 256, 128


def errors(dtype: torch.dtype, bound: float) -> None:
    """Outputs at once and after more training, over all hosts and both optimizers."""
    at_once, later, lagging = {}, {}, {}
    for name in HOSTS:
        for kind in OptimizerName:
            (model, optimizer), (twin, twin_optimizer, _), x = pair(name, dtype, kind)
            at_once[f"{name} {kind}"] = gap(model, twin, x)
            train(model, optimizer, x, FURTHER_STEPS)
            train(twin, twin_optimizer, x, FURTHER_STEPS)
            later[f"{name} {kind}"] = gap(model, twin, x, (True,))
            lagging[f"{name} {kind}"] = gap(model, twin, x, (False,))
    short = str(dtype).removeprefix("torch.")
    for what, found in (("at once", at_once), (f"after {FURTHER_STEPS} more steps, training mode", later)):
        worst = max(found.values())
        bar(
            f"absorption: largest error of the output {what}, {short}",
            command=COMMAND,
            figure=worst,
            bound=f"<= {bound:g}",
            passed=worst <= bound,
            detail={key: float(f"{value:.3g}") for key, value in found.items()},
        )
    bar(
        f"absorption: after {FURTHER_STEPS} more steps, evaluation mode, {short}",
        command=COMMAND,
        figure={
            "hosts without batch norm": max(v for k, v in lagging.items() if k.split()[0] not in NORMALISED),
            "hosts with batch norm": max(v for k, v in lagging.items() if k.split()[0] in NORMALISED),
        },
        bound="none: behind a bias that batch norm takes out, running means lag; training is the same",
        passed=None,
    )


def wide(hidden: int) -> nn.Module:
    """A plain model with so many hidden units."""
    return nn.Sequential(nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10))


def step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return run


def cost() -> None:
    """The absorbed model against a plain one of its shape, and against the model with the seed beside."""
    x = torch.randn(BATCH, 64)
    model = grown(wide(WIDTH), x)
    blueprint = next(b for b in catalogue().values() if b.name == "widen-linear-bn-24")
    for _ in range(2):
        fossilize(model, plant(model, "0..3", blueprint))
    beside = copy.deepcopy(model)
    for seed in list(model.seeds):
        absorb(model, seed.identity, (x,))
    plain = wide(WIDTH + 48)
    same = [type(m) for m in model.host.modules()] == [type(m) for m in plain.modules()]
    shapes = {k: v.shape for k, v in model.host.state_dict().items()}
    equal = same and shapes == {k: v.shape for k, v in plain.state_dict().items()}
    bar(
        "absorption: modules and state dict are those of the plain wider model",
        command=COMMAND,
        figure=equal,
        bound="== True",
        passed=equal,
        detail={"modules": len(list(model.host.modules())), "plain": len(list(plain.modules()))},
    )
    plain.load_state_dict(model.host.state_dict())
    # Copies made one after another, so that none has a better place in memory.
    seconds = interleaved(
        {
            "absorbed": step(copy.deepcopy(model.host), x),
            "plain": step(copy.deepcopy(plain), x),
            "plain again": step(copy.deepcopy(plain), x),
        },
        rounds=400,
    )
    # In a turn of its own: what runs after a longer step finds its weights out of the cache.
    apart = interleaved({"seeds beside": step(beside, x), "plain": step(plain, x)}, rounds=100)
    figure, low, high = ratio(seconds["absorbed"], seconds["plain"])
    control, control_low, control_high = ratio(seconds["plain again"], seconds["plain"])
    bar(
        "absorption: step time over that of the plain wider model",
        command=COMMAND,
        figure=round(figure, 4),
        bound="interval reaches 1.0, or not above the control's",
        passed=low <= max(1.0, control_high),
        control=[round(control, 4), round(control_low, 4), round(control_high, 4)],
        detail={
            "interval": [round(low, 4), round(high, 4)],
            "seeds beside, over plain": round(ratio(apart["seeds beside"], apart["plain"])[0], 3),
        },
    )


def refusals() -> None:
    """Every case that could not be exact is refused with its reason."""
    found = {}
    for case, (build, blueprint, reason) in REFUSED.items():
        torch.manual_seed(0)
        model = fossil(build(), X, blueprint)
        try:
            absorb(model, "s1", (X,))
            found[case] = "absorbed"
        except HostError as error:
            found[case] = "refused" if reason in str(error) else str(error)
    for norm in (nn.LayerNorm(8), nn.RMSNorm(8)):
        model = grown(nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 3)), X)
        absent = not any(place.interface.is_span for place in model.places.values())
        found[type(norm).__name__] = "refused" if absent else "a span slot"
    count = sum(outcome == "refused" for outcome in found.values())
    bar(
        "absorption: refused where it could not be exact",
        command=COMMAND,
        figure=count,
        bound=f"== {len(found)} cases",
        passed=count == len(found),
        detail=found,
    )


def main() -> None:
    """Write the lines."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    errors(torch.float64, 1e-12)
    errors(torch.float32, 1e-5)
    cost()
    refusals()


if __name__ == "__main__":
    main()
