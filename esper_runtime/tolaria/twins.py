"""Compiled twins of kept seeds: wished for, loaded in the background, measured in place, swapped in between
two steps where they are faster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper_runtime.contracts import (
    EsperError,
    Event,
    InputError,
    Interface,
    KernelError,
    KernelSpec,
    Pipeline,
    SeedStage,
    TwinChanged,
    UsableKernel,
)
from esper_runtime.kasmina import Growable, Kernel, KernelCache, Seed, spec_for
from esper_runtime.kasmina.kernels import MARGIN, Twin, compare, current_target, twin_of

Recorded = Mapping[int, tuple[TwinChanged, ...]]


@dataclass(frozen=True)
class TwinSource:
    """Where twins come from.

    Attributes:
        cache: of loaded kernels.
        wish: says which kernel is wanted.
        batch: examples in a batch of the training.
        margin: how many times as fast a twin must be.
    """

    cache: KernelCache
    wish: Callable[[KernelSpec], None]
    batch: int
    margin: float = MARGIN


class Twins:
    """The compiled twins of one model.

    Args:
        model: whose fossilized seeds may have twins.
        source: where they come from.
        record: writes a journal entry.
        recorded: by step, what a journal says of them: then nothing is measured, and this is done.
    """

    def __init__(
        self,
        model: Growable,
        source: TwinSource,
        record: Callable[[Event], None],
        recorded: Recorded | None = None,
    ) -> None:
        self._model, self._source, self._record, self._recorded = model, source, record, recorded
        self._wished: set[tuple[str, Interface]] = set()
        self._judged: set[tuple[str, str]] = set()

    def look(self, step: int) -> None:
        """Between two steps: wish for twins of seeds that were kept, and swap in one that is faster."""
        if self._recorded is not None:
            for event in self._recorded.get(step, ()):
                self._repeat(event)
            return
        for seed in self._model.seeds:
            if seed.stage is SeedStage.FOSSILIZED and seed.twin is None and seed.failure is None:
                self._look_at(seed)

    def reattach(self) -> None:
        """After the model was built again: give seeds the twins that they had, and say so where one is gone.

        This reads and loads in the calling thread: nothing trains meanwhile.
        """
        for seed in self._model.seeds:
            if seed.twin is None or isinstance(seed.body, Twin):
                continue
            kernel, digest = seed.twin
            try:
                seed.body = twin_of(self._load(kernel, digest), seed.body)
            except EsperError as error:
                seed.twin = None
                self._record(TwinChanged(seed=seed.identity, reason=f"{kernel} cannot be loaded: {error}"))

    def detach(self, why: str) -> None:
        """Put the bodies back in the places of their twins."""
        for seed in self._model.seeds:
            if isinstance(seed.body, Twin):
                self._record(TwinChanged(seed=seed.identity, reason=why))
                seed.body, seed.twin = seed.body.eager, None

    def _look_at(self, seed: Seed) -> None:
        kernel = self._best(seed)
        if kernel is None:
            self._wish(seed)
            return
        if (seed.identity, kernel.artifact) in self._judged:
            return
        loaded = self._source.cache.get(kernel.artifact)
        if loaded is None:
            return
        self._judged.add((seed.identity, kernel.artifact))
        twin = twin_of(loaded, seed.body)
        found = compare(twin, seed.interface, self._source.batch)
        if not found.faster(self._source.margin):
            return
        event = TwinChanged(
            seed=seed.identity,
            kernel=kernel.kernel,
            digest=kernel.digest,
            speedup=found.speedup,
            reason=f"in place it is {found.speedup:.2f} times as fast, two equal bodies differ by "
            f"{found.noise:.0%}",
        )
        self._record(event)
        seed.body, seed.twin = twin, (kernel.kernel, kernel.digest)

    def _best(self, seed: Seed) -> UsableKernel | None:
        """The admitted kernel with compiled parts for this seed that won most in its test, if enough."""
        stock = self._model.stock
        fitting = [] if stock is None else stock.compiled_for(seed.blueprint_id, seed.interface)
        learns = any(parameter.requires_grad for parameter in seed.body.parameters())
        figure = "training_speedup" if learns else "forward_speedup"
        able = [k for k in fitting if k.trains or not learns]
        able = [k for k in able if k.figures.get(figure, 0.0) >= self._source.margin]
        return max(able, key=lambda k: (k.figures[figure], k.kernel), default=None)

    def _wish(self, seed: Seed) -> None:
        key = (seed.blueprint_id, seed.interface)
        if key not in self._wished:
            self._wished.add(key)
            spec = spec_for(seed.blueprint_id, seed.interface, current_target(), Pipeline.STANDARD)
            self._source.wish(spec)

    def _repeat(self, event: TwinChanged) -> None:
        if event.seed not in self._model.living:
            return
        seed = self._model.seed(event.seed)
        if event.kernel is None or event.digest is None:
            seed.body, seed.twin = (seed.body.eager if isinstance(seed.body, Twin) else seed.body), None
        else:
            try:
                seed.body = twin_of(self._load(event.kernel, event.digest), seed.body)
            except EsperError as error:
                raise InputError(
                    f"the recorded run ran the compiled kernel {event.kernel} in seed {event.seed} from here "
                    f"on, and it cannot be loaded: {error}"
                ) from error
            seed.twin = (event.kernel, event.digest)
        self._record(event)

    def _load(self, kernel: str, digest: str) -> Kernel:
        name = f"{kernel}-{digest[:16]}"
        found = self._source.cache.get(name)
        if found is None:
            self._source.cache.fill([name])
            found = self._source.cache.get(name)
        if found is None:
            raise KernelError(f"{name} is not loaded")
        return found
