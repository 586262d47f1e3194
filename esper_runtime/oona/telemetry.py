"""The bounded buffer between the training thread and the bus: oldest dropped, every sample accounted for."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper_runtime.contracts import ContractModel, TelemetryCounts

Item = ContractModel | Mapping[str, Any]
"""What may be sent: a contract model, or what JSON can hold. It must not change after it was handed over."""

MAX_BATCH = 256
MAX_BATCH_BYTES = 64 * 1024
"""A batch is made in one go; these bounds keep that, and so the interpreter lock, near a millisecond."""


@dataclass(frozen=True)
class Batch:
    """Samples ``first`` to ``first + size - 1``, serialised as a `TelemetryBatch`."""

    first: int
    size: int
    data: bytes


def item_json(item: Item) -> bytes:
    """The item as JSON.

    Raises:
        ValueError: it holds what JSON cannot, e.g. a tensor, NaN or infinity.
    """
    if isinstance(item, ContractModel):
        return item.model_dump_json(by_alias=True).encode()
    try:
        return json.dumps(dict(item), allow_nan=False).encode()
    except TypeError as error:
        raise ValueError(str(error)) from error


class TelemetryBuffer:
    """Filled by one thread, emptied by another, without a lock: only `deque` operations touch both.

    Samples are numbered from 0. What is missing in the numbers that come out was dropped.

    Args:
        capacity: samples kept while the bus is away; the oldest make room.
    """

    def __init__(self, capacity: int) -> None:
        self._samples: deque[tuple[int, Item]] = deque(maxlen=capacity)
        self._produced = 0
        self._next = 0
        self._ahead: tuple[int, Item] | None = None
        self.delivered = 0
        self.dropped = 0
        self.unusable = 0
        """Samples dropped because JSON cannot hold them; a part of ``dropped``."""

    def put(self, item: Item) -> None:
        """Add a sample; called by the producing thread only."""
        number = self._produced
        self._samples.append((number, item))
        self._produced = number + 1

    def counts(self) -> TelemetryCounts:
        """Produced, delivered, dropped and the rest; may be called from any thread."""
        delivered, dropped = self.delivered, self.dropped
        produced = self._produced
        return TelemetryCounts(
            produced=produced,
            delivered=delivered,
            dropped=dropped,
            waiting=max(0, produced - delivered - dropped),
        )

    def take(self) -> Batch | None:
        """The next samples with consecutive numbers; None when there are none. Emptying thread only."""
        first, parts, size = self._next, list[bytes](), 0
        dropped_before = self.dropped
        while len(parts) < MAX_BATCH and size < MAX_BATCH_BYTES:
            taken = self._pop()
            if taken is None:
                break
            number, item = taken
            if number != self._next:
                if parts:
                    self._ahead = taken
                    break
                self.dropped += number - self._next
                first, dropped_before = number, self.dropped
            try:
                data = item_json(item)
            except ValueError:
                if parts:
                    self._ahead = taken
                    break
                self.unusable += 1
                self.dropped += 1
                self._next = first = number + 1
                dropped_before = self.dropped
                continue
            parts.append(data)
            size += len(data)
            self._next = number + 1
        if not parts:
            return None
        head = f'{{"first": {first}, "dropped": {dropped_before}, "samples": ['.encode()
        return Batch(first, len(parts), head + b", ".join(parts) + b"]}")

    def drop_rest(self) -> None:
        """Count everything that was not delivered as dropped; nothing may be put in any more."""
        self._samples.clear()
        self._ahead = None
        self._next = self._produced
        self.dropped = self._produced - self.delivered

    def _pop(self) -> tuple[int, Item] | None:
        if self._ahead is not None:
            taken, self._ahead = self._ahead, None
            return taken
        try:
            return self._samples.popleft()
        except IndexError:
            return None
