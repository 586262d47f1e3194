"""A thread that looks at the shelf for a run: for kernels that it wishes for, and for those that may be used
no more because they are revoked, quarantined or damaged."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from esper_runtime.artifact import Trust
from esper_runtime.contracts import EsperError, KernelSpec
from esper_runtime.tolaria.supply import Supply
from esper_runtime.urza import Offer, Shelf

LOOK_SECONDS = 2.0

log = logging.getLogger(__name__)


class ShelfWatch:
    """Looks at keys and shelf every few seconds, and verifies those kernels of the run again that changed.

    Where the list of keys changed, that is all of them. One that has just come was verified by who put it
    there, and is again when it is loaded.

    Args:
        supply: of the run; what is found wrong is offered to it as gone.
        shelf: where the kernels lie.
        trust: whom we believe.
        elsewhere: is told of a wish that the shelf does not fulfil.
    """

    def __init__(
        self,
        supply: Supply,
        shelf: Shelf,
        trust: Trust,
        elsewhere: Callable[[KernelSpec], None] | None = None,
    ) -> None:
        self._supply, self._shelf, self._trust, self._elsewhere = supply, shelf, trust, elsewhere
        self._wishes: deque[KernelSpec] = deque()
        self._woken = threading.Event()
        self._gone: set[str] = set()
        self._keys, self._marks = self._trust.keys, shelf.marks()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="esper-shelf", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._woken.set()
        self._thread.join()

    def wish(self, spec: KernelSpec) -> None:
        """Say that the run can use one more kernel; it comes as an offer, if it comes. Returns at once."""
        self._wishes.append(spec)
        self._woken.set()

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._woken.wait(LOOK_SECONDS)
            self._woken.clear()
            try:
                while self._wishes:
                    self._fulfil(self._wishes.popleft())
                self.look()
            except (EsperError, OSError) as error:
                log.warning("the kernels on the shelf cannot be looked at: %s", error)

    def _fulfil(self, spec: KernelSpec) -> None:
        there, _ = self._shelf.usable([spec.kernel_id], self._trust)
        if there:
            self._supply.offers.append(Offer(arrived=tuple(there.values())))
        elif self._elsewhere is not None:
            self._elsewhere(spec)

    def look(self) -> int:
        """Verify what has changed since the last look; returns how many kernels that were."""
        keys, marks = self._trust.keys, self._shelf.marks()
        seen = self._marks.keys() | self._gone
        changed = tuple(
            kernel
            for kernel in tuple(self._supply.known)
            if keys != self._keys or (kernel in seen and marks.get(kernel) != self._marks.get(kernel))
        )
        self._keys, self._marks = keys, marks
        if not changed:
            return 0
        usable, refused = self._shelf.usable(changed, self._trust)
        gone = {kernel: str(error) for kernel, error in refused.items() if kernel not in self._gone}
        self._gone = (self._gone | gone.keys()) - usable.keys()
        if gone:
            self._supply.offers.append(Offer(gone=gone))
        return len(changed)
