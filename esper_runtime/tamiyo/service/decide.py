"""One question in, one answer out; nothing is kept between two."""

from importlib.metadata import version

from esper_runtime.contracts import Answer, Question
from esper_runtime.tamiyo import make_controller

VERSION = version("esper")


def decide(question: Question) -> Answer:
    """What the controller of the question's settings decides, with its memory as it is afterwards.

    The same question has the same answer, whichever service is asked.

    Raises:
        CheckpointError: the memory in the question is not that of such a controller.
    """
    controller = make_controller(question.growth, question.total_steps)
    controller.restore(question.memory)
    decision = controller.decide(question.state)
    return Answer(
        run=question.run,
        asker=question.asker,
        incarnation=question.incarnation,
        epoch=question.epoch,
        in_reply_to=question.number,
        decision=decision,
        memory=controller.state(),
        controller=controller.name,
        version=VERSION,
    )
