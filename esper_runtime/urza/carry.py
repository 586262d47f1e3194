"""What the runs of a namespace say for the library, carried to it: on a cluster they cannot write there."""

import logging
from collections import Counter, deque

from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.contracts import INNOVATION_PREFIX, InnovationWish, InputError, KernelWish
from esper_runtime.oona import Kept, Tail
from esper_runtime.urza.library import Library
from esper_runtime.urza.reports import StoredReport

MOST_WISHES = 2000
"""Kernels that the runs of one namespace may wish for: the forge's time is shared by all."""

_log = logging.getLogger(__name__)


class Carrier:
    """Reads the wishes and field reports of a namespace's runs, and enters in the library what makes sense.

    Args:
        client: a connection to the namespace's account with all rights (`BusKeeper.namespace`).
        library: with the planner's rights.
        ignored: counts what is passed over; default: a counter of its own.
    """

    def __init__(self, client: Client, library: Library, ignored: Counter[str] | None = None) -> None:
        self.ignored: Counter[str] = Counter() if ignored is None else ignored
        """What was passed over, by reason."""
        self._library = library
        self._wishes = Tail(client.jetstream(), "WISHES")
        self._reports = Tail(client.jetstream(), "REPORTS")
        self._wishes_left: deque[Kept] = deque()
        self._reports_left: deque[Kept] = deque()
        self._wished: set[str] = set()
        self._known: set[str] | None = None

    async def carry(self) -> int:
        """Carry what came since the last time; after an error it goes on with what was not carried.

        Returns:
            How many wishes and reports were new to the library.

        Raises:
            BusError: one of both does not answer.
        """
        new = 0
        self._wishes_left += await self._wishes.read()
        while self._wishes_left:
            new += await self._wish(self._wishes_left[0])
            self._wishes_left.popleft()
        if self._known is None:
            self._known = set(await self._library.reports())
        self._reports_left += await self._reports.read()
        while self._reports_left:
            new += await self._report(self._reports_left[0], self._known)
            self._reports_left.popleft()
        return new

    async def _wish(self, kept: Kept) -> bool:
        subject = kept.subject
        if subject.rpartition(".")[2].startswith(INNOVATION_PREFIX):
            return await self._innovation(subject, kept.data)
        try:
            wish = KernelWish.model_validate_json(kept.data, by_alias=True, by_name=False)
        except ValidationError:
            return self._ignore("malformed wish", subject)
        kernel = wish.spec.kernel_id
        if subject.rpartition(".")[2] != kernel:
            return self._ignore("misplaced wish", subject)
        if kernel not in self._wished and len(self._wished) >= MOST_WISHES:
            return self._ignore("too many wishes", subject)
        self._wished.add(kernel)
        return await self._library.wish(wish)

    async def _innovation(self, subject: str, data: bytes) -> bool:
        """A wish for blueprints that are to be invented; each run has one, under its own subject."""
        try:
            wish = InnovationWish.model_validate_json(data, by_alias=True, by_name=False)
        except ValidationError:
            return self._ignore("malformed wish", subject)
        _, _, namespace, run, _, key = subject.split(".")
        if wish.run != f"{namespace}/{run}" or key != wish.wish_id:
            return self._ignore("misplaced wish", subject)
        return await self._library.want_invented(wish)

    async def _report(self, kept: Kept, known: set[str]) -> bool:
        try:
            report = StoredReport.read(kept.subject, kept.data)
        except InputError:
            return self._ignore("malformed report", kept.subject)
        if report.identity in known:
            return False
        await self._library.put_report(report)
        known.add(report.identity)
        return True

    def _ignore(self, why: str, subject: str) -> bool:
        self.ignored[why] += 1
        if self.ignored[why] == 1:  # who may send anything must not fill the log
            _log.warning("%s: %s; this and all others are counted and not carried", subject, why)
        return False
