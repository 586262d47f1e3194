"""What a model may be grown with: the validated kernels that are admitted, and what makes bodies of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import Interface, KernelError, Pipeline, UsableKernel
from esper_runtime.kasmina.kernels.cache import KernelCache

Maker = Callable[[Interface, int], nn.Module]
"""From a slot's interface and a seed number to a body: float32, on the CPU, the same for the same number."""

_EVERYWHERE = Pipeline.FAST
"""Of this pipeline is the kernel that a seed is planted with; others are twins of what it makes."""


class Stock:
    """The kernels that seeds of one model may be made of.

    It changes only when `admit` or `withdraw` is called, between two steps; whatever happens on the shelf
    meanwhile has no effect. With a cache, a seed's body comes from the kernel that it has loaded. Without
    one, bodies are built at once from the graphs of the admitted kernels: so replays do, ranks that rank 0
    has told what it verified, and trials on copies of the model.

    Args:
        kernels: admitted from the start; each was verified.
        cache: of loaded kernels.
    """

    def __init__(self, kernels: Iterable[UsableKernel] = (), cache: KernelCache | None = None) -> None:
        self._cache = cache
        self._admitted: dict[str, UsableKernel] = {}
        self._of_blueprint: dict[str, dict[str, UsableKernel]] = {}
        self._found: dict[tuple[str, Interface], UsableKernel | None] = {}
        self._gone: dict[str, tuple[UsableKernel, str]] = {}
        self.admit(kernels)

    @property
    def admitted(self) -> Mapping[str, UsableKernel]:
        """By kernel id."""
        return self._admitted

    def admit(self, kernels: Iterable[UsableKernel]) -> None:
        """Let kernels be used from now on."""
        changed = set()
        for kernel in kernels:
            changed.add(kernel.blueprint)
            self._admitted[kernel.kernel] = kernel
            self._of_blueprint.setdefault(kernel.blueprint, {})[kernel.kernel] = kernel
            self._gone.pop(kernel.kernel, None)
        self._forget(changed)

    def withdraw(self, kernels: Mapping[str, str]) -> None:
        """Let kernels be used no more, for the reasons given by their ids; living seeds stay as they are."""
        changed = set()
        for kernel, reason in kernels.items():
            gone = self._admitted.pop(kernel, None)
            if gone is not None:
                del self._of_blueprint[gone.blueprint][kernel]
                self._gone[kernel] = (gone, reason)
                changed.add(gone.blueprint)
        self._forget(changed)

    def _forget(self, blueprints: set[str]) -> None:
        self._found = {key: found for key, found in self._found.items() if key[0] not in blueprints}

    def find(self, blueprint: str, interface: Interface) -> UsableKernel | None:
        """The admitted kernel that a seed of this blueprint would be made of in such a slot."""
        key = (blueprint, interface)
        try:
            return self._found[key]
        except KeyError:
            found = self._search(blueprint, interface)
            self._found[key] = found
            return found

    def cached(self, blueprint: str, interface: Interface) -> Maker | None:
        """What makes the body, where the kernel is loaded; None where it is being loaded from now on.

        Raises:
            KernelError: no admitted kernel fits, or it cannot be loaded; the text says why.
        """
        kernel = self.find(blueprint, interface)
        if kernel is None:
            raise KernelError(self.why_not(blueprint, interface))
        if self._cache is None:
            return _maker(kernel)
        loaded = self._cache.get(kernel.artifact)
        if loaded is not None:
            return loaded.body
        reason = self._cache.failures.pop(kernel.artifact, None)
        if reason is not None:
            raise KernelError(reason)
        return None

    def compiled_for(self, blueprint: str, interface: Interface) -> list[UsableKernel]:
        """Admitted kernels with compiled parts for this blueprint in such a slot."""
        return [
            kernel
            for kernel in self._of_blueprint.get(blueprint, {}).values()
            if kernel.pipeline is not _EVERYWHERE and kernel.interface.contains(interface)
        ]

    def why_not(self, blueprint: str, interface: Interface) -> str:
        """Why no seed of this blueprint may be planted in such a slot."""
        what = f"{blueprint} has no validated kernel for such a slot"
        for kernel, reason in self._gone.values():
            if kernel.blueprint == blueprint and kernel.interface.contains(interface):
                return f"{what}: {kernel.kernel} was withdrawn, {reason}"
        return f"{what}: no seed runs that Urabrask has not passed"

    def prefetch(self, pairs: Iterable[tuple[str, Interface]]) -> None:
        """Have the kernels of these blueprints and slots loaded, which are likely to be needed soon."""
        if self._cache is not None:
            found = (self.find(blueprint, interface) for blueprint, interface in pairs)
            self._cache.prefetch(kernel.artifact for kernel in found if kernel is not None)

    def built_at_once(self) -> "Stock":
        """The same kernels, bodies built from their graphs without waiting for any of them to be loaded."""
        return Stock(self._admitted.values())

    def _search(self, blueprint: str, interface: Interface) -> UsableKernel | None:
        fitting = [
            kernel
            for kernel in self._of_blueprint.get(blueprint, {}).values()
            if kernel.pipeline is _EVERYWHERE and kernel.interface.contains(interface)
        ]
        return min(fitting, key=lambda kernel: kernel.kernel, default=None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stock":
        """The same kernels; what is loaded is shared."""
        return Stock(self._admitted.values(), self._cache)

    def __reduce__(self) -> tuple[Any, ...]:
        """A saved model has its kernels' graphs, and no thread that loads them."""
        return (Stock, (tuple(self._admitted.values()),))


def _maker(kernel: UsableKernel) -> Maker:
    return lambda interface, seed: build(kernel.graph, interface, seed)
