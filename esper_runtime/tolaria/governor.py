"""The governor: notices numbers that go bad, finds what is to blame, and keeps the last good state.

What must outlive a restored state is kept outside it: here the count of rollbacks without progress, in the
journal and the feed the batches to skip.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from esper_runtime.tolaria.checkpoint import SavedState
from esper_runtime.tolaria.learning import Gradients

FaultKind = Literal["loss", "gradient", "divergence", "validation", "isolated"]

SETTLING = 20
"""Losses that the band is formed from before it judges."""
PATIENCE = 8
"""Successive losses above the band that count as divergence."""
MEMORY = 0.98
"""Weight of the past in the band's averages: it looks back about 50 steps."""
MOST_WITHOUT_PROGRESS = 5
"""Rollbacks without a new good state between them after which the run has failed."""


@dataclass(frozen=True)
class Fault:
    """Numbers gone bad.

    ``onset`` is how many batches before the present one the cause lies where it is not that batch itself: an
    update that ruins the parameters shows in the losses after it.
    """

    kind: FaultKind
    what: str
    seed: str | None = None
    onset: int = 0


class Band:
    """Where the training loss has been lately, and whether it has left that for good.

    Above the band is what exceeds the recent mean by eight mean deviations, by the mean itself, and by a
    tenth of the first losses: noisy and nearly solved tasks raise no alarm. While it settles, what exceeds
    the mean by five times its size is above, and by that tenth where it settles anew.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.mean = 0.0
        self.deviation = 0.0
        self.count = 0
        self.above = 0
        self.ceiling = math.inf

    def add(self, loss: float) -> bool:
        """Take note of a loss; True when it completes a sustained divergence. Costs about a microsecond."""
        if loss > self.ceiling:
            self.above += 1
            return self.above >= PATIENCE
        self.above = 0
        self.count += 1
        if self.count <= SETTLING:
            self.mean += (loss - self.mean) / self.count
            self.deviation += (abs(loss - self.mean) - self.deviation) / self.count
            self.ceiling = self.mean + max(5 * abs(self.mean), 5 * self.deviation, self._least())
            return False
        if self.first is None:
            self.first = self.mean
        weight = 1.0 - MEMORY
        self.deviation += weight * (abs(loss - self.mean) - self.deviation)
        self.mean += weight * (loss - self.mean)
        self.ceiling = self.mean + max(8 * self.deviation, abs(self.mean), self._least())
        return False

    def _least(self) -> float:
        """What the ceiling is above the mean at least, once the first losses are known."""
        return 0.0 if self.first is None else 0.1 * abs(self.first)

    def settle_anew(self) -> None:
        """Forget the recent level: the model was just changed so that the loss may jump."""
        self.count, self.above, self.ceiling = 0, 0, math.inf
        self.mean, self.deviation = 0.0, 0.0

    def state(self) -> dict[str, float | int | None]:
        """Its numbers as JSON."""
        ceiling = None if math.isinf(self.ceiling) else self.ceiling
        return {
            "first": self.first,
            "mean": self.mean,
            "deviation": self.deviation,
            "count": self.count,
            "above": self.above,
            "ceiling": ceiling,
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.first, self.mean, self.deviation = data["first"], data["mean"], data["deviation"]
        self.count, self.above = data["count"], data["above"]
        self.ceiling = math.inf if data["ceiling"] is None else data["ceiling"]


@dataclass(frozen=True)
class GoodState:
    """A state to go back to: what was captured at a boundary, and the last journal entry before it."""

    step: int
    sequence: int
    saved: SavedState


class Governor:
    """Judges each step and keeps the state to go back to.

    A state is good only when the loss of the step after it is sound too: an update that ruins the parameters
    shows in the next loss. So a captured state waits for one step before it replaces the one before it.
    """

    def __init__(self) -> None:
        self.band = Band()
        self.recent: deque[int] = deque(maxlen=2 * PATIENCE)
        """Numbers of the batches of the last steps."""
        self._good: GoodState | None = None
        self._waiting: GoodState | None = None
        self._without_progress = 0
        self._fault_step = -1

    def judge(self, gradients: Gradients, batch_number: int) -> Fault | None:
        """What is wrong with a step whose update has not been applied yet; None for a sound one."""
        self.recent.append(batch_number)
        if not math.isfinite(gradients.loss):
            return Fault("loss", f"the training loss is {gradients.loss}", onset=self.band.above + 1)
        if not math.isfinite(gradients.norm):
            what = f"the gradient norm is {gradients.norm} (loss {gradients.loss:.4g})"
            return Fault("gradient", what, onset=self.band.above + 1)
        for seed, (loss, norm) in gradients.isolated.items():
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"seed {seed} behind the host: loss {loss}, gradient norm {norm}"
                return Fault("isolated", what, seed)
        if self.band.add(gradients.loss):
            return Fault(
                "divergence",
                f"the training loss has been above {self.band.ceiling:.4g} for {PATIENCE} steps "
                f"(now {gradients.loss:.4g}, mean before {self.band.mean:.4g})",
                onset=PATIENCE,
            )
        if self._waiting is not None and self.band.above == 0:
            self._promote(self._waiting)
        return None

    def state(self) -> dict[str, Any]:
        """What a resumption needs, as JSON: a fault in the next steps is then blamed on the same batches."""
        return {
            "recent": list(self.recent),
            "withoutProgress": self._without_progress,
            "faultStep": self._fault_step,
        }

    def resume(self, data: Mapping[str, Any]) -> None:
        """Take over what `state` gave, in a new process; a rollback leaves it as it is."""
        self.recent.clear()
        self.recent.extend(data.get("recent", ()))
        self._without_progress = data.get("withoutProgress", 0)
        self._fault_step = data.get("faultStep", -1)

    def _promote(self, state: GoodState) -> None:
        self._good, self._waiting = state, None
        if state.step > self._fault_step:
            self._without_progress = 0

    @property
    def calm(self) -> bool:
        """True when the last loss was in the band: a state worth keeping."""
        return self.band.above == 0

    def keep(self, state: GoodState) -> None:
        """Offer a captured state; it becomes the one to go back to when the next step is sound."""
        if self._good is None:
            self._good = state
        else:
            self._waiting = state

    def replace(self, state: GoodState) -> None:
        """Make ``state`` the one to go back to at once: it was made from the good one."""
        self._good, self._waiting = state, None

    @property
    def good(self) -> GoodState:
        """The state to go back to."""
        assert self._good is not None, "keep() comes before the first step"
        return self._good

    def note_rollback(self, step: int) -> bool:
        """Count a rollback from ``step``; False when there have been too many without progress."""
        self._fault_step = max(self._fault_step, step)
        self._without_progress += 1
        self.recent.clear()
        self._waiting = None
        return self._without_progress <= MOST_WITHOUT_PROGRESS

    def last_batches(self, onset: int) -> tuple[int, ...]:
        """Numbers of the present batch and of ``onset`` before it, oldest first."""
        return tuple(self.recent)[-(onset + 1) :]
