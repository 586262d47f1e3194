"""Running a module forward and backward, the same way in the sandbox and for the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass yielded.

    Attributes:
        output: as the module returned it.
        gradients: of the input (``x``) and of the parameters by name (``p.NAME``); what got none is absent.
    """

    output: Tensor
    gradients: dict[str, Tensor]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Copies of all of it under names that begin with ``prefix``."""
        return {f"{prefix}.y": self.output.detach().clone()} | {
            f"{prefix}.g.{name}": gradient.clone() for name, gradient in self.gradients.items()
        }


def run(module: nn.Module, x: Tensor, gradient: Tensor | None, parameters: bool = True) -> Pass:
    """One pass; ``x`` itself is given to the module. Without ``gradient``, or one that fits, only forward."""
    if gradient is None:
        with torch.no_grad():
            return Pass(module(x), {})
    learned = dict(module.named_parameters()) if parameters else {}
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = module(x)
        if not y.requires_grad or y.shape != gradient.shape:
            return Pass(y.detach(), {})
        wanted = [x, *learned.values()]
        found = torch.autograd.grad(y, wanted, gradient, allow_unused=True)
    names = ["x", *(f"p.{name}" for name in learned)]
    return Pass(
        y.detach(), {name: value for name, value in zip(names, found, strict=True) if value is not None}
    )
