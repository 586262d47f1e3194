"""The compute ledger: every multiply-accumulate of a run, by purpose."""

import copy
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import torch
from torch import nn

from esper_runtime.tolaria.macs import count_macs
from esper_runtime.tolaria.randomness import seeded

ResultT = TypeVar("ResultT")


class Purpose(StrEnum):
    """What compute is spent on. Their sum is the compute of the run."""

    FORWARD = "forward"  # training forward passes of the host with the seeds that contribute
    BACKWARD = "backward"  # their backward passes
    ISOLATED = "isolated"  # seeds that learn behind the host, forward and backward
    PROBE = "probe"  # telemetry of dormant slots and gains of candidates
    INITIALISATION = "initialisation"  # gradient statistics for informed initial weights
    CONTRIBUTION = "contribution"  # the same validation examples with and without a seed
    DIAGNOSIS = "diagnosis"  # passes that look for the cause of a fault, or for one before a checkpoint
    VALIDATION = "validation"
    TEST = "test"  # once, after the end


_SHARED = (Purpose.FORWARD, Purpose.BACKWARD, Purpose.ISOLATED)


class Ledger:
    """Counts multiply-accumulates (MACs) by purpose.

    A pass is counted operation by operation the first time that it is run with a certain structure, and from
    then on known: the count costs nothing in the steady state. What is counted are matrix products,
    convolutions and attention (`count_macs`); elementwise work, normalisation and the optimizer's update are
    not, as is usual. Counting changes no result.

    The ledger is never rolled back: what was spent on steps that were undone stays spent.

    Args:
        ranks: processes that share each training batch. The training passes of all are counted; what each of
            them does for itself alike, such as a validation, is counted once.
    """

    def __init__(self, ranks: int = 1) -> None:
        self._ranks = ranks
        self._totals: dict[Purpose, int] = dict.fromkeys(Purpose, 0)
        self._seeds: dict[str, int] = {}
        self._known: dict[tuple[Purpose, str], tuple[int, int]] = {}

    def measure(self, purpose: Purpose, structure: str, examples: int, fn: Callable[[], ResultT]) -> ResultT:
        """Run ``fn``, add what it computes to ``purpose`` and return its result.

        Args:
            purpose: what the compute is for.
            structure: everything that decides the cost of ``fn`` for one example, for example the
                architecture's generation and which seeds learn in isolation.
            examples: how many ``fn`` works on; a later number of examples scales the count.
            fn: the pass.
        """
        known = self._known.get((purpose, structure))
        if known is None:
            macs, result = count_macs(fn)
            macs *= self._ranks if purpose in _SHARED else 1
            self._known[purpose, structure] = (macs, examples)
            self._totals[purpose] += macs
            return result
        macs, known_examples = known
        self._totals[purpose] += (
            macs if examples == known_examples else round(macs * examples / known_examples)
        )
        return fn()

    def knows(self, structure: str, *purposes: Purpose) -> bool:
        """True where passes of ``structure`` for all ``purposes`` have been counted before."""
        return all((purpose, structure) in self._known for purpose in purposes)

    def add(self, purpose: Purpose, macs: int) -> None:
        """Add compute that is known from elsewhere."""
        self._totals[purpose] += macs

    def attribute(self, seed: str, macs: int) -> None:
        """Note that ``macs`` of what is counted were spent on a seed (not added to the total)."""
        self._seeds[seed] = self._seeds.get(seed, 0) + macs

    @property
    def total(self) -> int:
        """All MACs so far."""
        return sum(self._totals.values())

    @property
    def by_purpose(self) -> dict[str, int]:
        """MACs by purpose, those with none left out."""
        return {str(purpose): macs for purpose, macs in self._totals.items() if macs}

    @property
    def by_seed(self) -> dict[str, int]:
        """MACs of `total` that were spent on each seed, culled ones too."""
        return dict(self._seeds)

    def state(self) -> dict[str, Any]:
        """JSON data for a checkpoint."""
        known = [[str(purpose), key, *found] for (purpose, key), found in self._known.items()]
        return {"purposes": self.by_purpose, "seeds": self.by_seed, "known": known}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the counts of `state` (when a run is resumed, not when it is rolled back)."""
        self._totals = {purpose: int(state["purposes"].get(str(purpose), 0)) for purpose in Purpose}
        self._seeds = {seed: int(macs) for seed, macs in state["seeds"].items()}
        for purpose, key, macs, examples in state.get("known", ()):
            self._known[Purpose(purpose), key] = int(macs), int(examples)


def parameters_of(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs_per_example(host: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """MACs of a forward pass for one example.

    Runs a copy of ``host`` in evaluation mode: its buffers, gradients and mode and the global random
    generators stay as they are.

    Args:
        host: the model.
        args: positional inputs; the first axis of the first tensor among all inputs counts the examples.
        kwargs: inputs by name.
    """
    examples = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    trial = copy.deepcopy(host).eval()
    with seeded(0), torch.no_grad():
        macs, _ = count_macs(lambda: trial(*args, **kwargs))
    return round(macs / examples)
