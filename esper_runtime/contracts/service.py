"""What a run asks of a controller service, and what it is answered.

The service keeps nothing of a run: a question carries the snapshot, the settings and the controller's memory,
an answer the decision and the memory as it is after it.
"""

from typing import Any

from pydantic import Field, ValidationError

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.directive import Decision
from esper_runtime.contracts.growth import Growth
from esper_runtime.contracts.signals import SystemState

LONGEST_REASON = 500


class Question(ContractModel):
    """Asked at a boundary. Subject ``esper.run.<namespace>.<run>.state``; may be sent more than once.

    ``asker`` is a random word of the asking process, so that nothing meant for an earlier run of the same
    name is taken for an answer. ``epoch`` rises with every change of who decides, and with every rollback and
    resumption, so that an answer to what is no longer so can be told by it. ``number`` counts the questions
    of a run. ``growth`` holds the settings that the decision is to follow, which may be narrower than the
    manifest's.
    """

    run: str = Field(min_length=1, max_length=63)
    asker: str = Field(min_length=1, max_length=64)
    incarnation: int = Field(ge=0)
    epoch: int = Field(ge=0)
    number: int = Field(ge=1)
    growth: Growth
    total_steps: int = Field(ge=1)
    state: SystemState
    memory: dict[str, Any] = Field(description="What the controller remembers, as its `state` gives it.")


class Answer(ContractModel):
    """Subject ``esper.run.<namespace>.<run>.directive``. ``in_reply_to`` is the question's number.

    ``run``, ``asker``, ``incarnation`` and ``epoch`` are those of the question.
    """

    run: str = Field(min_length=1, max_length=63)
    asker: str = Field(min_length=1, max_length=64)
    incarnation: int = Field(ge=0)
    epoch: int = Field(ge=0)
    in_reply_to: int = Field(ge=0)
    decision: Decision
    memory: dict[str, Any]
    controller: str = Field(min_length=1, max_length=40, description="Kind of the controller that decided.")
    version: str = Field(min_length=1, max_length=40)


class UnreadableAnswer(ContractModel):
    """Stands for a message that came as an answer and is none."""

    reason: str = Field(max_length=LONGEST_REASON)


def read_answer(data: Any) -> Answer | UnreadableAnswer:
    """The answer in the ``data`` of an event; anything else becomes the reason why it is none."""
    try:
        return Answer.model_validate(data)
    except ValidationError as error:
        return UnreadableAnswer(reason=f"it is no answer: {_first(error)}")


def read_question(data: Any) -> Question:
    """The question in the ``data`` of an event.

    Raises:
        ValueError: it is none; the text says what is wrong and where.
    """
    try:
        return Question.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"it is no question: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{place}: {first['msg']}"[: LONGEST_REASON - 50]
