"""Questions that many ask at the same time, put to the API server once for all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Batch(Generic[K, V]):
    """Whoever asks while a call is under way is answered by the next one, together with all others who do.

    An answer never comes from a call that began before the question was put. So it is as fresh as if each had
    asked alone, and under load the number of calls does not grow with the number of questions.

    Args:
        answer: one call that answers all questions; has an answer for each.
    """

    def __init__(self, answer: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._answer = answer
        self._asked: list[tuple[K, asyncio.Future[V]]] = []
        self._turn = asyncio.Lock()

    async def ask(self, question: K) -> V:
        """The answer to a question; raises what the call raises."""
        mine: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._asked.append((question, mine))
        try:
            async with self._turn:
                if not mine.done():
                    await self._answer_all()
            return mine.result()
        finally:
            mine.cancel()  # without effect where it is answered; else nobody waits for it any more

    async def _answer_all(self) -> None:
        asked, self._asked = [pair for pair in self._asked if not pair[1].done()], []
        try:
            answers = await self._answer({question for question, _ in asked})
        except Exception as error:
            for _, waiting in asked:
                if not waiting.done():
                    waiting.set_exception(error)
        except BaseException:
            self._asked = asked + self._asked  # whoever waits still asks on its own
            raise
        else:
            for question, waiting in asked:
                if not waiting.done():
                    waiting.set_result(answers[question])
