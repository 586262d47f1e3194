"""What the library holds, as one process sees it: records and index, kept up as values come in."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from esper_runtime.artifact import Trust, TrustList
from esper_runtime.blueprint import canonical_id, parse_blueprint
from esper_runtime.contracts import (
    INNOVATION_PREFIX,
    BlueprintEntry,
    BlueprintError,
    ContractModel,
    InnovationWish,
    KernelRecord,
    KernelWish,
    Role,
)
from esper_runtime.urza.fold import fold
from esper_runtime.urza.index import KernelIndex
from esper_runtime.urza.words import Fault, Word, hear

M = TypeVar("M", bound=ContractModel)

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Value:
    """A value in a bucket: its key, its place in the order of all that was put there, and its bytes."""

    key: str
    sequence: int
    data: bytes


@dataclass
class _Kernel:
    """What there is about one kernel: the words by bucket and sequence, and a wish."""

    words: dict[tuple[Role, int], Word] = field(default_factory=dict)
    wish: KernelWish | None = None


class LibraryView:
    """Everything in the library, folded. Values may be given in any order and any number of times.

    Words that do not count are passed over and counted in ``ignored``, each once for each reason.

    Args:
        trust: whose words count; a change of it is seen at the next `settle`.
    """

    def __init__(self, trust: Trust) -> None:
        self.records: dict[str, KernelRecord] = {}
        self.blueprints: dict[str, BlueprintEntry] = {}
        self.innovations: dict[str, InnovationWish] = {}
        """Wishes for blueprints that are to be invented."""
        self.index = KernelIndex()
        self.ignored: Counter[Fault] = Counter()
        self._trust = trust
        self._judged_by = _Stamp.of(trust)
        self._values: dict[tuple[Role, int], Value] = {}
        self._faults: dict[tuple[Role, int], Fault] = {}
        self._kernels: dict[str, _Kernel] = {}
        self._of_blueprint: dict[str, set[str]] = {}
        self._stale: set[str] = set()

    def add_word(self, role: Role, value: Value) -> None:
        """A value in the bucket of ``role``."""
        if self._values.setdefault((role, value.sequence), value) is value:
            self._hear(role, value)

    def add_wish(self, value: Value) -> None:
        """A value in the bucket of wishes; they carry no signature and change no kernel that is known."""
        if value.key.startswith(INNOVATION_PREFIX):
            self._add_innovation(value)
            return
        wish = _parsed(KernelWish, value.data)
        if wish is None or wish.spec.kernel_id != value.key:
            self.ignored[Fault.MALFORMED if wish is None else Fault.MISPLACED] += 1
            return
        self._kernels.setdefault(value.key, _Kernel()).wish = wish
        self._stale.add(value.key)

    def _add_innovation(self, value: Value) -> None:
        wish = _parsed(InnovationWish, value.data)
        if wish is None or wish.wish_id != value.key:
            self.ignored[Fault.MALFORMED if wish is None else Fault.MISPLACED] += 1
            return
        self.innovations[value.key] = wish

    def add_blueprint(self, value: Value) -> None:
        """A value in the bucket of blueprints, which is checked as if a person had handed it in."""
        entry = _parsed(BlueprintEntry, value.data)
        try:
            known = self.blueprints.get(value.key)
            if entry is not None and (known is None or known.graph != entry.graph):
                parse_blueprint(entry.graph.model_dump(mode="json", by_alias=True))
        except BlueprintError:
            entry = None
        if entry is None:
            self.ignored[Fault.MALFORMED] += 1
        elif not entry.blueprint == canonical_id(entry.graph) == value.key:
            self.ignored[Fault.MISPLACED] += 1
        else:
            self.blueprints[value.key] = entry
            self._stale |= self._of_blueprint.get(value.key, set())

    def remove_blueprint(self, key: str) -> None:
        """An entry was deleted from the bucket, which only an administrator of the bus does."""
        self.blueprints.pop(key, None)

    def settle(self) -> dict[str, KernelRecord]:
        """Fold again what has changed since the last time.

        Returns:
            The records that are not what they were.
        """
        judged_by = _Stamp.of(self._trust)
        if judged_by != self._judged_by:
            self._judged_by = judged_by
            for (role, _), value in self._values.items():
                self._hear(role, value)
        changed = {}
        for kernel in self._stale:
            about = self._kernels[kernel]
            words = [about.words[place] for place in sorted(about.words, key=lambda place: place[1])]
            record = fold(words, about.wish)
            self._offer(kernel, record)
            if record != self.records.get(kernel):
                if record is None:
                    del self.records[kernel]
                else:
                    self.records[kernel] = changed[kernel] = record
                    self._of_blueprint.setdefault(record.spec.blueprint, set()).add(kernel)
        self._stale.clear()
        return changed

    @property
    def wishes(self) -> Mapping[str, KernelWish]:
        """What trainings have wished for, by kernel."""
        return {kernel: about.wish for kernel, about in self._kernels.items() if about.wish is not None}

    def words(self) -> list[tuple[Role, Word]]:
        """The words that count, in the order in which each role has said them."""
        found = [
            (role, sequence, word)
            for about in self._kernels.values()
            for (role, sequence), word in about.words.items()
        ]
        return [(role, word) for role, _, word in sorted(found, key=lambda one: one[:2])]

    def words_about(self, kernel: str) -> list[Word]:
        """The words that count about one kernel."""
        about = self._kernels.get(kernel)
        return [] if about is None else list(about.words.values())

    def faults(self) -> list[tuple[Role, Value, Fault]]:
        """The words that lie in the buckets and do not count."""
        return [(place[0], self._values[place], fault) for place, fault in sorted(self._faults.items())]

    def named_digests(self) -> set[str]:
        """Digests in the bucket of artifacts' words, also those of words that do not count: 64 hex digits, as
        they stand there."""
        found: set[str] = set()
        for (role, _), value in self._values.items():
            if role is Role.TEZZERET:
                found.update(match.decode() for match in _DIGEST.findall(value.data))
        return found

    def _hear(self, role: Role, value: Value) -> None:
        place = (role, value.sequence)
        heard = hear(value.data, role, value.key, self._trust)
        if isinstance(heard, Word):
            self._faults.pop(place, None)
            self._kernels.setdefault(heard.statement.kernel, _Kernel()).words[place] = heard
            self._stale.add(heard.statement.kernel)
            return
        if self._faults.get(place) != heard:
            self._faults[place] = heard
            self.ignored[heard] += 1
        kernel = value.key.partition(".")[0]
        about = self._kernels.get(kernel)
        if about is not None and about.words.pop(place, None) is not None:
            self._stale.add(kernel)

    def _offer(self, kernel: str, record: KernelRecord | None) -> None:
        """Have queries answered with a record, unless its blueprint is archived."""
        entry = self.blueprints.get(record.spec.blueprint) if record is not None else None
        if record is None or (entry is not None and entry.archived is not None):
            self.index.remove(kernel)
        else:
            self.index.put(record)


@dataclass(frozen=True)
class _Stamp:
    """What the judgement of words depends on besides the words: the list, and which keys are over."""

    keys: TrustList
    over: int

    @classmethod
    def of(cls, trust: Trust) -> "_Stamp":
        keys, now = trust.keys, datetime.now(UTC)
        return cls(keys, sum(key.not_after is not None and key.not_after < now for key in keys.keys))


def _parsed(model: type[M], data: bytes) -> M | None:
    try:
        return model.model_validate_json(data, by_alias=True, by_name=False)
    except ValidationError:
        return None
