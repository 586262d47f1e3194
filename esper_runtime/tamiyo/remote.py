"""A controller elsewhere decides, training does not wait for it, and an embedded one stands in.

Control is fenced by an *epoch*: it rises when another one takes over, when the run goes back to an earlier
state and when the controller learns of a fault. An answer of any other epoch is refused, so that what was
decided for a state that is no more can do nothing.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from esper_runtime.contracts import (
    Answer,
    AnswerRefused,
    CheckpointError,
    ControllerChanged,
    Decision,
    Event,
    Growth,
    Question,
    SystemState,
    UnreadableAnswer,
)
from esper_runtime.tamiyo.answers import Asker, cost_of, narrowed, why_illegal, why_stale
from esper_runtime.tamiyo.protocol import Controller, Lesson

MOST_EXPLAINED = 8
"""Refusals with different reasons that are journalled one by one at a boundary; the rest are counted."""
LONGEST_RESEND = 2.0
"""Seconds after which an unanswered question is sent again, at most: a message or its reader may be lost."""

Holder = Literal["Embedded", "Service"]


class ControllerLink(Protocol):
    """The way to a controller service. Neither call waits for anything."""

    def ask(self, question: Question) -> None:
        """Send a question; one that was not sent yet may be forgotten for it."""

    def answers(self) -> Sequence[Answer | UnreadableAnswer]:
        """What has come since the last call, in order."""


@dataclass
class _Open:
    """The question that is to be answered; ``state`` is what it was asked about."""

    question: Question
    asked: float
    sent: float


class RemoteController:
    """Asks a service at each boundary and obeys what has arrived by the next one.

    The memory is that of the embedded controller: it travels in each question and comes back changed in the
    answer, so that either can go on where the other left.

    Args:
        embedded: decides while the service is silent.
        link: the way to the service.
        growth: the manifest's settings of growth.
        total_steps: length of the run in optimizer steps.
        run: its name.
        incarnation: number of this process in the life of the run.
        patience_seconds: for how long the service may give no answer that can be obeyed.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        embedded: Controller,
        link: ControllerLink,
        growth: Growth,
        total_steps: int,
        run: str,
        incarnation: int = 0,
        patience_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal: Callable[[Event], None] = lambda event: None
        """Takes each hand-over and each refusal; the trainer sets it once there is a journal."""
        self.epoch = 1
        self.holder: Holder = "Service"
        """Who decides now."""
        self.refused = 0
        """Answers refused so far by this process."""
        self._embedded, self._link, self._clock = embedded, link, clock
        self._growth = narrowed(growth, total_steps)
        self._most_trials = growth.controller.trial_share * total_steps
        self._total_steps = total_steps
        self._asker = Asker(run, incarnation, secrets.token_hex(8))
        self._patience = patience_seconds
        self._resend = min(LONGEST_RESEND, patience_seconds / 4)
        self._number = 0
        self._taken: Answer | None = None
        self._trial_compute = 0.0
        self._said = "the controller service has been asked and has not answered yet"
        self._name = "Service"
        self._open: _Open | None = None
        self._waiting_since: float | None = None
        self._trials_of: Holder | None = None
        self._last_refusal = ""

    @property
    def name(self) -> str:
        """Who decided last: ``Heuristic (embedded)``, ``Heuristic 0.1.0 (service)``."""
        return self._name

    def decide(self, state: SystemState) -> Decision:
        """What the service has answered, or what the embedded controller decides; returns at once."""
        trials_of, self._trials_of = self._trials_of, None
        if trials_of == "Embedded":
            return self._decide_here(state)
        if trials_of == "Service":
            self._ask(state)
            return self._as_before()
        answer = self._take_answer(state)
        now = self._clock()
        if self.holder == "Service":
            if answer is not None:
                return self._obey(answer, state)
            if self._waiting_since is None or now - self._waiting_since <= self._patience:
                self._ask_again(state, now)
                return self._as_before()
            self._take_over()
        elif answer is not None:
            self._hand_back(answer)
            self._ask(state)
            return self._as_before()
        if self._open is not None and now - self._open.asked > self._patience:
            self._open = None
        self._ask_again(state, now)
        return self._decide_here(state)

    def state(self) -> dict[str, Any]:
        """Epoch, count of questions and the memory."""
        return {
            "epoch": self.epoch,
            "number": self._number,
            "trialCompute": self._trial_compute,
            "said": self._said,
            "memory": self._embedded.state(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from what `state` gave, in a new epoch; also from what an embedded controller left.

        Raises:
            CheckpointError: it is neither.
        """
        self._embedded.restore(data.get("memory", data))
        if "memory" in data:
            try:
                self.epoch = max(self.epoch, int(data["epoch"]))
                self._number = max(self._number, int(data["number"]))
                self._trial_compute = float(data["trialCompute"])
                self._said = str(data["said"])
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"the state of the remote controller cannot be restored ({error!r}); resume with the "
                    f"version that wrote the checkpoint"
                ) from error
        self._trials_of = None
        self._begin_epoch()

    def lesson(self, lesson: Lesson) -> None:
        """Take note of a fault; answers by one that does not know of it are no longer obeyed."""
        self._embedded.lesson(lesson)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self._open = None
        self._waiting_since = None

    def _as_before(self) -> Decision:
        """Nothing new: the same words, so that they are journalled once."""
        return Decision(explanation=self._said)

    def _decide_here(self, state: SystemState) -> Decision:
        decision = self._embedded.decide(state)
        if decision.probe is not None:
            self._trials_of = "Embedded"
        else:
            self._said = decision.explanation
        self._name = f"{self._embedded.name} (embedded)"
        return decision

    # Asking

    def _ask(self, state: SystemState) -> None:
        self._number += 1
        question = Question(
            run=self._asker.run,
            asker=self._asker.word,
            incarnation=self._asker.incarnation,
            epoch=self.epoch,
            number=self._number,
            growth=self._growth,
            total_steps=self._total_steps,
            state=state,
            memory=self._embedded.state(),
        )
        now = self._clock()
        self._open = _Open(question, now, now)
        if self._waiting_since is None:
            self._waiting_since = now
        self._link.ask(question)

    def _ask_again(self, state: SystemState, now: float) -> None:
        """Ask where no question is open; send an open one once more when it may have been lost."""
        if self._open is None:
            self._ask(state)
        elif now - self._open.sent > self._resend:
            self._open.sent = now
            self._link.ask(self._open.question)

    # Answers

    def _take_answer(self, state: SystemState) -> Answer | None:
        """The answer to the open question if it has come and can be obeyed; all others are refused."""
        accepted: Answer | None = None
        refused: dict[str, AnswerRefused] = {}
        for answer in self._link.answers():
            reason = self._why_not(answer, state)
            if reason is None and isinstance(answer, Answer):
                accepted = accepted or answer
            elif reason:
                self._refuse(answer, reason, refused)
        for event in refused.values():
            self.journal(event)
        return accepted

    def _why_not(self, answer: Answer | UnreadableAnswer, state: SystemState) -> str | None:
        """Why the answer is refused; empty where it only repeats the one that was taken."""
        if isinstance(answer, UnreadableAnswer):
            return answer.reason
        number = self._open.question.number if self._open is not None else None
        reason = why_stale(answer, self._asker, self.epoch, number)
        if reason is not None:
            return "" if answer == self._taken else reason
        assert self._open is not None
        obeyed = self.holder == "Service"
        at = state if obeyed else self._open.question.state
        reason = why_illegal(answer.decision, at, self._most_trials - self._trial_compute)
        if reason is None:
            reason = self._take_memory(answer, keep=obeyed)
        self._open = None
        if reason is None:
            self._taken = answer
        return reason

    def _take_memory(self, answer: Answer, keep: bool) -> str | None:
        """Make the answer's memory ours, or with ``keep`` False only try; the reason where that fails."""
        before = self._embedded.state()
        try:
            self._embedded.restore(answer.memory)
        except CheckpointError as error:
            return str(error)
        if not keep:
            self._embedded.restore(before)
        return None

    def _refuse(
        self, answer: Answer | UnreadableAnswer, reason: str, refused: dict[str, AnswerRefused]
    ) -> None:
        """Count a refusal; those with the same reason make one entry, as do those beyond `MOST_EXPLAINED`."""
        self.refused += 1
        self._last_refusal = reason
        key = reason if reason in refused or len(refused) < MOST_EXPLAINED - 1 else ""
        if key in refused:
            refused[key] = refused[key].model_copy(update={"count": refused[key].count + 1})
        elif not key:
            refused[key] = AnswerRefused(reason=f"other reasons, among them: {reason}")
        elif isinstance(answer, Answer):
            refused[key] = AnswerRefused(
                reason=reason,
                controller=answer.controller,
                epoch=answer.epoch,
                in_reply_to=answer.in_reply_to,
            )
        else:
            refused[key] = AnswerRefused(reason=reason)

    def _obey(self, answer: Answer, state: SystemState) -> Decision:
        self._waiting_since = None
        self._last_refusal = ""
        self._name = f"{answer.controller} {answer.version} (service)"
        decision = answer.decision
        if decision.probe is not None:
            self._trial_compute += cost_of(decision.probe, state)
            self._trials_of = "Service"
            return decision
        self._said = decision.explanation
        if not decision.directives:
            self._ask(state)
        return decision

    # Who decides

    def _take_over(self) -> None:
        why = f"the service has given no answer that can be obeyed for {self._patience:g} s"
        if self._last_refusal:
            why += f"; the last one was refused: {self._last_refusal}"
        self._change("Embedded", why)

    def _hand_back(self, answer: Answer) -> None:
        self._change("Service", f"the service answers again: {answer.controller} {answer.version}")

    def _change(self, holder: Holder, reason: str) -> None:
        before, self.holder = self.holder, holder
        self._begin_epoch()
        self._last_refusal = ""
        self.journal(ControllerChanged(before=before, after=holder, epoch=self.epoch, reason=reason))
