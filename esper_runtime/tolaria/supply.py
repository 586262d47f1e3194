"""Kernels that come and go while a run trains: journalled first, admitted between two steps, never forgotten.

As with a person's commands, what is done again after a rollback or in a new process has each kernel from the
step on at which its arrival was journalled.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from esper_runtime.contracts import (
    Event,
    JournalEntry,
    KernelsArrived,
    KernelSelector,
    KernelsGone,
    KernelSpec,
    UsableKernel,
)
from esper_runtime.kasmina import Growable, KernelCache
from esper_runtime.tamiyo import why_not
from esper_runtime.urza import Offer

Change = KernelsArrived | KernelsGone


class Supply:
    """The kernels of one run.

    Args:
        known: verified kernels by id. Of those that the journal names, only these are admitted.
        entries: the journal so far.
        first: what is offered to begin with; all ranks have it.
        selector: which kernels the manifest allows.

    Attributes:
        offers: what arrives; another thread may append to it. Of several ranks, only rank 0 gets any.
        cache: of loaded kernels, where this process has one.
        wish: says which kernel is wanted, where it can be found or made; it comes as an offer.
    """

    def __init__(
        self,
        known: Mapping[str, UsableKernel] | None = None,
        entries: Iterable[JournalEntry] = (),
        first: Offer | None = None,
        selector: KernelSelector | None = None,
    ) -> None:
        self._selector = selector or KernelSelector(most_risk=1.0)
        self.known = dict(known or {})
        self.offers: deque[Offer] = deque()
        self.cache: KernelCache | None = None
        self.wish: Callable[[KernelSpec], None] | None = None
        self._first = [] if first is None else [first]
        self._journalled = [
            (entry.sequence, entry.step, entry.event)
            for entry in entries
            if isinstance(entry.event, KernelsArrived | KernelsGone)
        ]
        self._refused = {
            kernel: reason
            for _, _, event in self._journalled
            if isinstance(event, KernelsArrived)
            for kernel, reason in event.refused.items()
        }
        self._due = _in_order((step, event) for _, step, event in self._journalled)

    @property
    def waiting(self) -> bool:
        """True when something was offered that is not journalled yet."""
        return bool(self.offers)

    @property
    def idle(self) -> bool:
        """True when nothing was offered and nothing is due."""
        return not (self.offers or self._due or self._first)

    def arrived(self) -> list[Offer]:
        """Take what was offered."""
        found = []
        while self.offers:
            found.append(self.offers.popleft())
        return found

    def apply(
        self,
        step: int,
        model: Growable,
        record: Callable[[Event], None],
        sequence: Callable[[], int],
        new: Sequence[Offer],
    ) -> bool:
        """Let everything take effect that is due at ``step``, then journal and admit what is ``new``.

        Args:
            step: optimizer steps done.
            model: whose stock changes.
            record: writes a journal entry.
            sequence: that of the last entry.
            new: from `arrived`.

        Returns:
            Whether anything changed.
        """
        changed = False
        while self._due and self._due[0][0] <= step:
            self._obey(self._due.pop(0)[1], model)
            changed = True
        first, self._first = self._first, []
        for offer in (*first, *new):
            for event in self._events(offer, model, also_lost=offer in first):
                record(event)
                self._journalled.append((sequence(), step, event))
                self._obey(event, model)
                changed = True
        return changed

    def restore(self, sequence: int, model: Growable) -> None:
        """Give the model the kernels that it had after journal entry ``sequence``; what came later is due."""
        if model.stock is None:
            return
        model.stock.withdraw(dict.fromkeys(model.stock.admitted, "not admitted yet at this step"))
        for number, _, event in self._journalled:
            if number <= sequence:
                self._obey(event, model)
        self._due = _in_order((step, event) for n, step, event in self._journalled if n > sequence)

    def _events(self, offer: Offer, model: Growable, also_lost: bool) -> Iterable[Change]:
        """The journal's words for what an offer changes.

        ``also_lost``: kernels that the journal had, and that were not admitted again, are said to be gone.
        """
        assert model.stock is not None, "kernels are for models that have a stock"
        there = model.stock.admitted
        gone = {kernel: reason for kernel, reason in offer.gone.items() if also_lost or kernel in there}
        if gone:
            yield KernelsGone(kernels=gone)
        new = [k for k in offer.arrived if k.kernel not in there or there[k.kernel].digest != k.digest]
        refused, allowed = dict(offer.refused), []
        for kernel in new:
            reason = why_not(kernel, self._selector)
            if reason is None:
                allowed.append(kernel)
                self.known[kernel.kernel] = kernel
            elif self._refused.get(kernel.kernel) != (said := f"{kernel.name}: {reason}"):
                refused[kernel.kernel] = self._refused[kernel.kernel] = said
        if allowed or refused or offer.remade:
            yield KernelsArrived(
                kernels=tuple(kernel.summary() for kernel in allowed),
                reason=offer.reason,
                refused=refused,
                remade=offer.remade,
            )

    def _obey(self, event: Change, model: Growable) -> None:
        assert model.stock is not None
        if isinstance(event, KernelsGone):
            model.stock.withdraw(event.kernels)
            return
        model.admit(self.known[kernel.kernel] for kernel in event.kernels if kernel.kernel in self.known)


def _in_order(due: Iterable[tuple[int, Change]]) -> list[tuple[int, Change]]:
    return sorted(due, key=lambda pair: pair[0])


def offer_at_start(
    wanted: Mapping[str, UsableKernel],
    refused: Mapping[str, str],
    entries: Iterable[JournalEntry],
    lost: Mapping[str, str],
    remade: Mapping[str, str],
) -> Offer:
    """What changes for a run that begins or goes on: kernels that its journal does not have yet, and those
    that it has and that may not be used any more.

    Args:
        wanted: the kernels that the manifest asks for, verified now.
        refused: why others that it asks for may not be used.
        entries: the journal so far.
        lost: why kernels that the journal names may not be used now.
        remade: why artifacts of kernels that were made anew were refused.
    """
    had: dict[str, str] = {}
    told: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry.event, KernelsArrived):
            had |= {kernel.kernel: kernel.digest for kernel in entry.event.kernels}
            told |= entry.event.refused
        elif isinstance(entry.event, KernelsGone):
            for kernel in entry.event.kernels:
                had.pop(kernel, None)
    why = {**refused, **lost}
    return Offer(
        arrived=tuple(k for k in wanted.values() if had.get(k.kernel) != k.digest),
        gone={kernel: why[kernel] for kernel in had if kernel in why},
        refused={k: reason for k, reason in refused.items() if k not in had and told.get(k) != reason},
        remade=dict(remade),
        reason="validated before the run began" if not had else "validated since the run was interrupted",
    )
