"""Ways to a controller service without a bus: the code that the service runs answers the questions."""

from collections.abc import Callable

from esper_runtime.contracts import Answer, Question, UnreadableAnswer, read_answer, read_question
from esper_runtime.tamiyo.service import decide

Reply = Answer | UnreadableAnswer


def over_the_wire(question: Question) -> Question:
    """The question as it arrives elsewhere."""
    return read_question(question.model_dump(mode="json", by_alias=True))


def honest(question: Question) -> list[Reply]:
    answer = decide(over_the_wire(question))
    return [read_answer(answer.model_dump(mode="json", by_alias=True))]


class Link:
    """Answers each question by ``service``; the answer can be taken at once, or ``late`` calls later."""

    def __init__(self, service: Callable[[Question], list[Reply]] = honest, late: int = 0) -> None:
        self.service, self.late = service, late
        self.questions: list[Question] = []
        self.waiting: list[tuple[int, Reply]] = []
        self.calls = 0

    def ask(self, question: Question) -> None:
        self.questions.append(question)
        self.waiting += [(self.calls + self.late, reply) for reply in self.service(question)]

    def answers(self) -> list[Reply]:
        self.calls += 1
        due = [reply for at, reply in self.waiting if at < self.calls]
        self.waiting = [(at, reply) for at, reply in self.waiting if at >= self.calls]
        return due


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
