"""Random numbers drawn on the side, so that a run goes on as if nothing had been drawn."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the generators of torch, NumPy and Python go on as if nothing had been."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if initialized else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def random_state_of(device: torch.device) -> Tensor:
    """State of the generator that operations on ``device`` draw from, as bytes on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state_of(device: torch.device, state: Tensor) -> None:
    """Put the generator of ``device`` in a state that `random_state_of` gave."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
