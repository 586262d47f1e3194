"""A thread that notices when a kernel of the run may be used no more: revoked, quarantined, or damaged."""

import logging
import os
import threading
from collections.abc import Collection

from esper_runtime.artifact import Trust
from esper_runtime.contracts import EsperError
from esper_runtime.kasmina import Shelf
from esper_runtime.tolaria.supply import Offer, Supply

LOOK_SECONDS = 2.0

log = logging.getLogger(__name__)


class ShelfWatch:
    """Looks at keys and shelf every few seconds, and verifies the run's kernels again where either changed.

    Args:
        supply: of the run; what is found wrong is offered to it as gone.
        shelf: where the kernels lie.
        trust: whom we believe.
    """

    def __init__(self, supply: Supply, shelf: Shelf, trust: Trust) -> None:
        self._supply, self._shelf, self._trust = supply, shelf, trust
        self._gone: set[str] = set()
        self._before = self._state()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="esper-shelf", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            try:
                state = self._state()
                if state != self._before:
                    self._before = state
                    self._look(tuple(self._supply.known))
            except (EsperError, OSError) as error:
                log.warning("the kernels on the shelf cannot be looked at: %s", error)

    def _state(self) -> tuple[int, int]:
        """Changes with every new revocation and every file that is put on the shelf."""
        return hash(self._trust.keys.model_dump_json()), os.stat(self._shelf.folder).st_mtime_ns

    def _look(self, kernels: Collection[str]) -> None:
        usable, refused = self._shelf.usable(kernels, self._trust)
        gone = {kernel: str(error) for kernel, error in refused.items() if kernel not in self._gone}
        self._gone = (self._gone | gone.keys()) - usable.keys()
        if gone:
            self._supply.offers.append(Offer(gone=gone))
