"""Many equal seeds run as one: their parameters are stacked, and each operation works on all of them at once.

`torch.vmap` turns the linear layers of K bodies into one batched matrix product and their convolutions into
one grouped convolution. A Python loop spends nearly all of its time between operations as small as these.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from esper_runtime.kasmina.kernels import Twin
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.stacked import stacks

MANY = 8
"""From so many equal seeds on they are run as one; below, a loop is faster (measured: `many_seeds`)."""

_direct: ContextVar[bool] = ContextVar("esper_direct_gradients", default=False)


@contextmanager
def direct_gradients() -> Iterator[None]:
    """Inside, seeds run as one learn in one stack: their gradients go from it into each parameter's ``grad``.

    Their parameters and buffers become slices of that stack, so that nothing is copied from pass to pass.
    Only where the pass ends in ``backward()``: for `torch.autograd.grad` the parameters must be part of the
    graph. A ``grad`` that was dropped is overwritten in the next pass: copy what is to be kept.
    """
    token = _direct.set(not torch.distributed.is_available() or not torch.distributed.is_initialized())
    try:
        yield
    finally:
        _direct.reset(token)


class Batch:
    """Bodies of one blueprint at one kind of place, run as one.

    Args:
        bodies: modules of the same code with parameters of the same shapes; at least one.

    Raises:
        ValueError: they differ, or draw random numbers, of which each would get others than by itself.
    """

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        self.bodies = tuple(bodies)
        if not bodies:
            raise ValueError("no bodies were given; give at least one")
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in bodies[0].modules()):
            raise ValueError("a body draws random numbers; run such bodies one after another")
        if any(isinstance(body, Twin) for body in bodies):
            raise ValueError("a body has a compiled twin, which runs by itself")
        first = _shapes(bodies[0])
        for number, body in enumerate(bodies):
            if _shapes(body) != first or getattr(body, "code", "") != getattr(bodies[0], "code", ""):
                raise ValueError(f"body {number} is not equal to the first; give bodies of one blueprint")
        self._parameters = stacks(bodies, "_parameters")
        self._buffers = stacks(bodies, "_buffers")

    def __call__(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Outputs of all bodies, ``[K, ...]``, equal up to rounding to those of each by itself.

        Args:
            x: one input for all, or one for each, of the same shape.

        Gradients land in each body's own parameters, buffers are updated like those of each by itself.
        """
        y, buffers = self.run(x)
        self.keep(buffers)
        return y

    def run(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs, and the buffers after the pass, which are those of the bodies once they are kept."""
        direct = _direct.get()
        weights = {name: s.leaf() if direct else s.copied() for name, s in self._parameters.items()}
        state = {name: s.shared().clone() if direct else s.copied() for name, s in self._buffers.items()}
        shared = isinstance(x, Tensor)

        def one(weights: dict[str, Tensor], state: dict[str, Tensor], given: Tensor) -> Any:
            return functional_call(self.bodies[0], (weights, state), (given,))

        y = vmap(one, in_dims=(0, 0, None if shared else 0))(
            weights, state, x if isinstance(x, Tensor) else torch.stack(list(x))
        )
        return y, state

    def keep(self, buffers: dict[str, Tensor]) -> None:
        """Make the bodies' buffers those that `run` gave."""
        if self.bodies[0].training:
            for name, stack in self._buffers.items():
                stack.write(buffers[name])

    def same(self, bodies: Sequence[nn.Module]) -> bool:
        """True where these are the bodies."""
        return len(bodies) == len(self.bodies) and all(map(_is, bodies, self.bodies))


def contributions(batch: Batch, seeds: Sequence[Seed], x: Tensor, value: Tensor) -> list[Tensor] | None:
    """What `Seed.contribute` gives for each of the seeds whose bodies ``batch`` holds.

    None where one of them fails, with nothing changed: each is then to be asked by itself, so that only that
    one is out.
    """
    try:
        outputs, buffers = batch.run(x)
    except Exception:  # whatever a seed raises must not end the host's step; alone, it will say so again
        return None
    if outputs.shape[1:] != value.shape:
        return None
    sums = outputs.detach().flatten(1).sum(dim=1, dtype=torch.float32)
    if not bool(torch.isfinite(sums).all()):
        return None
    batch.keep(buffers)
    same = outputs if outputs.dtype == value.dtype else outputs.to(value.dtype)
    return [y if s.alpha == 1.0 else y * s.alpha for y, s in zip(same.unbind(), seeds, strict=True)]


class Choir:
    """The seeds of one slot around two layers, which all read the same activation: equal ones run as one.

    Each seed still adds by a graft of its own, in the order of germination.
    """

    def __init__(self) -> None:
        self.members: list[Seed] = []
        self._batches: dict[str, Batch | None] = {}
        self._ready: dict[str, Tensor] = {}
        self._alone: set[str] = set()
        self._read: ReferenceType[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_batches": {}, "_ready": {}, "_alone": set(), "_read": None}

    def join(self, seed: Seed, order: list[str]) -> None:
        """Take a seed up; ``order`` are the ids of all living seeds in the order of germination."""
        places = {identity: place for place, identity in enumerate(order)}
        self.members = sorted([*self.members, seed], key=lambda member: places[member.identity])

    def leave(self, seed: Seed) -> None:
        """Let a seed go."""
        self.members = [member for member in self.members if member is not seed]
        self._batches.pop(seed.blueprint_id, None)
        self._ready.clear()
        self._alone.clear()

    def contribute(self, seed: Seed, x: Tensor, value: Tensor) -> Tensor | None:
        """`Seed.contribute` for one of the members, in the order in which they add."""
        if len(self.members) < MANY or torch.compiler.is_compiling():
            return seed.contribute(x, value)
        if self._read is not None and self._read() is x:
            ready = self._ready.pop(seed.identity, None)
            if ready is not None:
                return ready
            if seed.identity in self._alone:
                self._alone.remove(seed.identity)
                return seed.contribute(x, value)
        alike = [m for m in self.members if m.blueprint_id == seed.blueprint_id]
        group = [member for member in alike if member.alpha > 0 and member.failure is None]
        batch = self._batch(seed.blueprint_id, [member.body for member in group])
        if batch is None or seed not in group:
            return seed.contribute(x, value)
        found = contributions(batch, group, x, value)
        if self._read is None or self._read() is not x:
            self._alone.clear()
        self._read = ref(x)
        if found is None:  # the others are not to be tried together again: some have had their pass by then
            self._alone |= {member.identity for member in group}
            self._alone.remove(seed.identity)
            return seed.contribute(x, value)
        self._alone -= {member.identity for member in group}
        self._ready |= {member.identity: y for member, y in zip(group, found, strict=True)}
        return self._ready.pop(seed.identity)

    def _batch(self, blueprint: str, bodies: list[nn.Module]) -> Batch | None:
        if len(bodies) < MANY or len({body.training for body in bodies}) > 1:
            return None
        if any(body._forward_hooks for body in bodies):  # one run for all calls the first one's alone
            return None
        batch = self._batches.get(blueprint)
        if batch is None or not batch.same(bodies):
            try:
                batch = Batch(bodies)
            except ValueError:
                return None
            self._batches[blueprint] = batch
        return batch


class Voice:
    """What the graft of a choir's member calls."""

    def __init__(self, choir: Choir, seed: Seed) -> None:
        self._choir = choir
        self._seed = seed

    def contribute(self, x: Tensor, value: Tensor) -> Tensor | None:
        """What the seed adds."""
        return self._choir.contribute(self._seed, x, value)


def _is(one: object, other: object) -> bool:
    return one is other


def _shapes(body: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    named = [*body.named_parameters(), *body.named_buffers()]
    return [(name, tensor.shape, tensor.dtype) for name, tensor in named]
