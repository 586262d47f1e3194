"""The training data as a run sees it: the position is one number, and some batches may be barred."""

import torch

from esper_runtime.tolaria.batches import BatchOrder, take, to_device
from esper_runtime.tolaria.tasks import Batch


class Feed:
    """Training batches in order.

    Args:
        data: all training examples.
        order: which examples form which batch.
        device: where the batches are wanted; the data is moved there once.
        rank: whose part of each batch is learned from, of
        ranks: that share it evenly.
    """

    def __init__(
        self, data: Batch, order: BatchOrder, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> None:
        share = order.batch_size // ranks
        self._share = slice(rank * share, (rank + 1) * share) if ranks > 1 else None
        self._data = to_device(data, device)
        self._order = order
        self.position = 0
        """Number of the next batch that has not been learned from."""
        self.barred: set[int] = set()
        """Batches that are never used: they held numbers that ruined a step."""

    def upcoming(self) -> int:
        """Number of the batch to learn from next."""
        number = self.position
        while number in self.barred:
            number += 1
        return number

    def batch(self, number: int) -> Batch:
        """The batch of that number; of several ranks, this one's part of it."""
        indices = self._order.indices(number)
        return take(self._data, indices if self._share is None else indices[self._share])

    def coming(self, index: int) -> Batch:
        """The ``index``-th of the batches to come, whole, without moving on."""
        number = self.upcoming()
        for _ in range(index):
            number += 1
            while number in self.barred:
                number += 1
        return take(self._data, self._order.indices(number))
