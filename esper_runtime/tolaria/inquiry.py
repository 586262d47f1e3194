"""Whether passes give good numbers, and what is to blame where they do not."""

import math

import torch

from esper_runtime.kasmina import detached_call, untouched_random_state
from esper_runtime.tolaria.diagnosis import Blame, find_blame, pass_is_sound
from esper_runtime.tolaria.evaluate import trial_of
from esper_runtime.tolaria.governor import Fault, GoodState, Governor
from esper_runtime.tolaria.ledger import Purpose
from esper_runtime.tolaria.macs import count_macs
from esper_runtime.tolaria.parts import Parts
from esper_runtime.tolaria.tasks import Batch
from esper_runtime.tolaria.training_state import restore


class Inquiry:
    """Looks for the cause of a fault; what it computes is counted as diagnosis.

    Args:
        parts: of the run.
        governor: knows the last good state and what a loss may be.
    """

    def __init__(self, parts: Parts, governor: Governor) -> None:
        self._parts, self._governor = parts, governor
        self._group = parts.group

    def next_step_is_sound(self) -> bool:
        """Whether the next step's loss will be sound: to go on from a ruined state would help nobody."""
        parts = self._parts
        trial = trial_of(parts.task, parts.feed.batch(parts.feed.upcoming()))

        def loss() -> float:
            with parts.settings.trials.autocast(), torch.no_grad(), untouched_random_state():
                output = detached_call(parts.model, trial.args, trial.kwargs)
                return trial.losses(output).mean().item()

        found = parts.ledger.measure(Purpose.DIAGNOSIS, parts.learner.structure, 1, loss)
        found = self._group.mean(found)
        return math.isfinite(found) and found <= self._governor.band.ceiling

    def blame(self, fault: Fault, batch: Batch, step: int) -> Blame:
        """What is to blame for a fault in the pass with ``batch``. May leave the model in the good state."""
        parts = self._parts
        with parts.settings.trials.autocast():
            if fault.kind == "validation":
                data = parts.task.validation

                def sound() -> bool:
                    return all(
                        map(math.isfinite, self._group.share(parts.evaluate(data, Purpose.VALIDATION)))
                    )
            else:

                def sound() -> bool:
                    return self._pass_is_sound(batch, self._governor.band.ceiling)

            def was_sound() -> bool:
                good = self._governor.good.saved
                restore(good, parts.model, parts.optimizer)
                ceiling = good.facts["band"]["ceiling"]
                return self._pass_is_sound(batch, math.inf if ceiling is None else ceiling)

            return find_blame(fault, parts.model, batch, sound, was_sound, step, self._found_by_any)

    def _found_by_any(self, found: str | None) -> str | None:
        """What the first rank that found something found."""
        blobs = self._group.gather_bytes((found or "").encode())
        return next((blob.decode() for blob in blobs if blob), None)

    def batches_to_skip(self, fault: Fault, blame: Blame, batch: Batch, good: GoodState) -> tuple[int, ...]:
        """The batches that brought the fault. May leave the model in the good state, or changed from it."""
        if blame.who == "seed":
            return ()
        if blame.who == "data" or fault.kind == "validation":
            return self._governor.last_batches(0)
        if fault.kind != "divergence":
            parts = self._parts
            restore(good.saved, parts.model, parts.optimizer)
            with parts.settings.trials.autocast():
                innocent = self._pass_is_sound(batch, math.inf)
            if not innocent:
                return self._governor.last_batches(0)
        return self._governor.last_batches(fault.onset)

    def _pass_is_sound(self, batch: Batch, ceiling: float) -> bool:
        """Whether forward and backward pass give good numbers; counted, also where it ends half-way."""
        trial = trial_of(self._parts.task, batch)
        macs, sound = count_macs(lambda: pass_is_sound(self._parts.model, trial, ceiling, self._group.mean))
        self._parts.ledger.add(Purpose.DIAGNOSIS, macs)
        return sound
