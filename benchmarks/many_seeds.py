"""Bar: 1,024 seeds of one blueprint, forward and backward, in a tenth of the time of a Python loop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.line import bar
from benchmarks.timing import interleaved, ratio
from esper_runtime.blueprint import catalogue
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface, InterfaceKind, SpanGeometry
from esper_runtime.kasmina import Batch, direct_gradients

COMMAND = "python -m benchmarks.many_seeds"
SEEDS, EXAMPLES, WIDTH = 1024, 16, 16
BLUEPRINTS = ("widen-linear-6", "widen-linear-bn-12", "mlp-4")
ROUNDS = 20
FEW = (2, 4, 8, 16, 64)


def bodies(name: str, count: int, dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """Bodies of one blueprint whose tails are no longer zero."""
    flat = SpanGeometry(kernel=(), stride=(), padding=(), dilation=(), groups=1)
    span = {"producer": flat, "consumer": flat, "activation": "relu"} if catalogue()[name].span else {}
    interface = Interface(kind=InterfaceKind.FEATURES, width_in=WIDTH, width_out=WIDTH, **span)
    made = [build(catalogue()[name], interface, number).to(dtype) for number in range(count)]
    for body in made:
        for parameter in body.parameters():
            nn.init.normal_(parameter, std=0.1)
    return made


def steps(name: str, count: int) -> dict[str, Callable[[], object]]:
    """Forward and backward over all seeds: by a loop, twice, and as one, directly or through the graph."""
    made, x = bodies(name, count), torch.randn(EXAMPLES, WIDTH)
    parameters = [parameter for body in made for parameter in body.parameters()]
    batch = Batch(made)

    def learn(run: Callable[[], Tensor]) -> None:
        run().square().mean().backward()
        for parameter in parameters:  # each way drops what it made, as a training step does
            parameter.grad = None

    def loop() -> None:
        learn(lambda: torch.stack([body(x) for body in made]))

    def direct() -> None:
        with direct_gradients():
            learn(lambda: batch(x))

    return {
        "loop": loop,
        "loop again": loop,
        "as one": direct,
        "in the graph": lambda: learn(lambda: batch(x)),
    }


def error(name: str, dtype: torch.dtype) -> float:
    """Largest difference from the loop, of outputs and gradients, over their scale."""
    made, x = bodies(name, SEEDS, dtype), torch.randn(EXAMPLES, WIDTH, dtype=dtype)
    parameters = [parameter for body in made for parameter in body.parameters()]
    found: list[list[Tensor]] = []
    for way in ("loop", "as one"):
        for parameter in parameters:
            parameter.grad = None
        given = x.clone().requires_grad_()
        with direct_gradients():
            y = Batch(made)(given) if way == "as one" else torch.stack([body(given) for body in made])
            y.square().mean(dim=(1, 2)).sum().backward()
        gradients = [parameter.grad for parameter in parameters]
        assert all(gradient is not None for gradient in gradients)
        assert given.grad is not None
        found.append([y.detach(), given.grad / SEEDS, *(g for g in gradients if g is not None)])
    return max(float((a - b).abs().max() / (1 + a.abs().max())) for a, b in zip(*found, strict=True))


def main() -> None:
    """Time and compare; write the lines."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for number, name in enumerate(BLUEPRINTS):
        seconds = interleaved(steps(name, SEEDS), rounds=ROUNDS, warmup=3, again=1)
        figure, low, high = ratio(seconds["as one"], seconds["loop"])
        control = ratio(seconds["loop again"], seconds["loop"])
        detail = {
            "interval": [round(low, 4), round(high, 4)],
            "loop ms": round(1000 * sorted(seconds["loop"])[ROUNDS // 2], 1),
            "as one ms": round(1000 * sorted(seconds["as one"])[ROUNDS // 2], 1),
            "with parameters in the graph": round(ratio(seconds["in the graph"], seconds["loop"])[0], 3),
        }
        bar(
            f"{SEEDS} seeds of {name} as one, forward and backward, over a Python loop",
            command=COMMAND,
            figure=round(figure, 4),
            bound="<= 0.1" if number == 0 else "none: other blueprints, for comparison",
            passed=figure <= 0.1 if number == 0 else None,
            control=[round(value, 3) for value in control],
            detail=detail,
        )
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        errors = {name: error(name, dtype) for name in BLUEPRINTS}
        bar(
            f"{SEEDS} seeds as one: outputs and gradients, {str(dtype).removeprefix('torch.')}",
            command=COMMAND,
            figure=max(errors.values()),
            bound=f"<= {bound:g}",
            passed=max(errors.values()) <= bound,
            detail=errors,
        )
    few = {}
    for count in FEW:
        seconds = interleaved(steps(BLUEPRINTS[0], count), rounds=100)
        few[count] = round(ratio(seconds["as one"], seconds["loop"])[0], 3)
    bar(
        "seeds as one over a Python loop, by their number",
        command=COMMAND,
        figure=few,
        bound="none: says from how many on it pays",
        passed=None,
    )


if __name__ == "__main__":
    main()
