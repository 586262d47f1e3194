"""Loaded kernels in memory: as many as a bound of bytes allows; a thread reads the rest when asked for."""

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from esper_runtime.artifact import Trust
from esper_runtime.blueprint import sample_slots
from esper_runtime.contracts import EsperError
from esper_runtime.kasmina.kernels.loader import Kernel, load
from esper_runtime.urza import Shelf

MOST_BYTES = 256 * 1024 * 1024
"""Default bound: some ten thousand plain graphs, or a hundred compiled kernels."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheCounts:
    """What became of lookups and loads.

    Attributes:
        hits: lookups that found the kernel loaded.
        misses: lookups that did not; the kernel was asked for.
        loads: kernels read, verified and built.
        evictions: kernels dropped for want of room.
        refused: loads that failed; the kernel is gone, damaged or not validated any more.
        bytes: of the kernels that are loaded now.
    """

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    refused: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of the lookups that were hits; None where there was none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class KernelCache:
    """Kernels of a shelf, loaded; the least recently used ones are dropped where the bound is passed.

    Kernels are named by their artifacts (`UsableKernel.artifact`), so that what is loaded is what was meant.
    `get` and `prefetch` are for the training thread: dictionary and queue operations, with no lock held
    across anything that waits. All reading, verifying and building is done by a thread of the cache's own.

    Args:
        shelf: where kernels come from.
        trust: whom we believe.
        most_bytes: of loaded kernels; the last one used stays, also where it alone is larger.
    """

    def __init__(self, shelf: Shelf, trust: Trust, most_bytes: int = MOST_BYTES) -> None:
        self._shelf, self._trust, self._most_bytes = shelf, trust, most_bytes
        self._loaded: OrderedDict[str, Kernel] = OrderedDict()
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self.failures: dict[str, str] = {}
        """Why kernels could not be loaded, by the names of their artifacts."""
        self._hits = self._misses = 0
        self._theirs = CacheCounts()
        self._keeping = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="esper-kernels", daemon=True)
        self._thread.start()

    def get(self, kernel: str) -> Kernel | None:
        """The loaded kernel; None where it is not loaded, and then it is being loaded from now on."""
        found = self._loaded.get(kernel)
        if found is None:
            self._misses += 1
            self._ask(kernel)
            return None
        self._hits += 1
        try:
            self._loaded.move_to_end(kernel)
        except KeyError:  # dropped by the other thread just now; the kernel is good all the same
            self._ask(kernel)
        return found

    def prefetch(self, kernels: Iterable[str]) -> None:
        """Have kernels loaded that will be needed soon; those that are loaded count as used."""
        for kernel in kernels:
            try:
                self._loaded.move_to_end(kernel)
            except KeyError:
                self._ask(kernel)

    def counts(self) -> CacheCounts:
        """What became of all lookups so far."""
        return replace(self._theirs, hits=self._hits, misses=self._misses)

    def fill(self, kernels: Iterable[str]) -> None:
        """Load kernels in the calling thread, as far as there is room; for before a training.

        Raises:
            EsperError: one of them is not there, or may not run.
        """
        for kernel in kernels:
            if self._theirs.bytes >= self._most_bytes:
                return
            if kernel not in self._loaded:
                self._load(kernel)

    def close(self) -> None:
        """End the thread; what is loaded stays."""
        self._closed = True
        self._wanted.put(None)
        self._thread.join()

    def __deepcopy__(self, memo: dict[int, Any]) -> "KernelCache":
        """Itself: copies of a model share what is loaded."""
        return self

    def _ask(self, kernel: str) -> None:
        if kernel in self._asked or self._closed:
            return
        self._asked.add(kernel)
        self._wanted.put(kernel)

    def _serve(self) -> None:
        while not self._closed and (kernel := self._wanted.get()) is not None:
            try:
                if kernel not in self._loaded:
                    self._load(kernel)
            except EsperError as error:
                log.warning("kernel %s cannot be loaded: %s", kernel, error)
            except Exception as error:  # whatever is wrong with one kernel, the others are still served
                log.exception("kernel %s cannot be loaded", kernel)
                self.failures[kernel] = f"{type(error).__name__}: {error}"
            finally:
                self._asked.discard(kernel)

    def _load(self, kernel: str) -> None:
        try:
            made = load(self._shelf.open(kernel, self._trust))
            _load_parts(made)
        except EsperError as error:
            with self._keeping:
                self._theirs = replace(self._theirs, refused=self._theirs.refused + 1)
            self.failures[kernel] = str(error)
            raise
        self.failures.pop(kernel, None)
        with self._keeping:
            counts = self._theirs
            size, evictions = counts.bytes, counts.evictions
            if kernel not in self._loaded:
                size += made.bytes
            self._loaded[kernel] = made
            while size > self._most_bytes and len(self._loaded) > 1:
                _, dropped = self._loaded.popitem(last=False)
                size, evictions = size - dropped.bytes, evictions + 1
            self._theirs = replace(counts, loads=counts.loads + 1, evictions=evictions, bytes=size)


def _load_parts(kernel: Kernel) -> None:
    """Have native code loaded here, and not where the first twin is made."""
    if kernel.compiled:
        (slot, *_) = sample_slots(kernel.blueprint, kernel.spec.interface)
        body = kernel.body(slot, seed=0)
        kernel.twin(body.to(device=kernel.spec.target.device, dtype=getattr(torch, slot.dtype)))
