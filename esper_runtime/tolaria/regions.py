"""Compiled regions: each repeated block of a host compiled by itself, for training steps only.

Outside of `Regions.compiled` the host is plain: copies, probes, validations, checkpoints and exports never
see a compiled module. A compiled block has no hooks inside, so that a seed is never compiled in or
forgotten: a block with a seed between its ends runs eagerly as long as the seed lives, from the step on at
which it comes, and compiled again when it is gone. So growth never waits for a compiler; what a grown block
gives up is what compiling gained there. (Compiling it anew in the training process would stop the run for
seconds to minutes.)
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from esper_runtime.kasmina import Growable

log = logging.getLogger(__name__)

MOST_VARIANTS = 64
"""Blocks of one class with different sizes or settings that are compiled; further ones run eagerly."""
BACKEND = "inductor"
"""Of `torch.compile`."""
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Regions:
    """The blocks of a host, and which of them are compiled now (``parts``).

    Args:
        model: the host and its seeds.
    """

    def __init__(self, model: Growable) -> None:
        self._model = model
        self.blocks = list(blocks_of(model.host))
        self._forwards: dict[nn.Module, Callable[..., Any]] = {}
        self.parts: list[nn.Module] = []
        if not self.blocks:
            log.warning("training.compile: Regions: this host has no repeated blocks; it runs eagerly")
        elif not compiler_works(next((p.device for p in model.host.parameters()), torch.device("cpu"))):
            self.blocks = []
        else:
            config: Any = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, MOST_VARIANTS)
            config.suppress_errors = True
        self.update()

    def update(self) -> None:
        """Choose anew what is compiled, after seeds came or went."""
        self.parts = [
            block
            for block in self.blocks
            if not any(_hooked(inner) for inner in block.modules() if inner is not block)
        ]
        for part in self.parts:
            if part not in self._forwards:
                self._forwards[part] = torch.compile(part.forward, dynamic=False, backend=BACKEND)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside, the chosen blocks run compiled; a block is compiled when it is first called."""
        for part in self.parts:
            part.__dict__["forward"] = self._forwards[part]
        try:
            yield
        finally:
            for part in self.parts:
                part.__dict__.pop("forward", None)


def blocks_of(host: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that lie in lists and sequences of modules and have submodules, each once."""
    seen: set[nn.Module] = set()

    def search(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(module, _CONTAINERS) and _compilable(child):
                if child not in seen:
                    seen.add(child)
                    yield child
            else:
                yield from search(child)

    return search(host)


def _compilable(module: nn.Module) -> bool:
    return (
        not isinstance(module, nn.ModuleList | nn.ModuleDict)
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
        and "forward" not in module.__dict__
    )


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def compiler_works(device: torch.device) -> bool:
    """Try `torch.compile` on a small function; where it fails, say so in the log."""
    try:
        torch.compile(_twice, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # compilers fail in many ways; each means that there is none to be used
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning(
            "training.compile: Regions: there is no working compiler here (%s); it runs eagerly", first
        )
        return False
    return True


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2
