"""What to do when a process of a run has ended: nothing, start it again after a while, or give up."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from esper_runtime.planning.runs import EXIT_BUDGET

DONE, FAILED, WRONG_INPUT, RESUME_ME, PEER_DIED, KILLED = 0, 1, 2, 75, 76, 130
"""Exit codes of a trainer: complete; failed; wrong input; told to stop, checkpoint left; peer died; quit."""

_GRAVITY = (WRONG_INPUT, KILLED, FAILED, EXIT_BUDGET, RESUME_ME)


@dataclass(frozen=True)
class RestartPolicy:
    """How patient a supervisor is.

    ``most_attempts`` failures in a row without progress are the end; before the n-th new start it waits
    ``first_seconds`` * 2**(n-1), at most ``longest_seconds``.
    """

    most_attempts: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 30.0

    def wait(self, fruitless: int) -> float:
        """Seconds before the next start after ``fruitless`` failures in a row."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(30, max(0, fruitless - 1)))


@dataclass(frozen=True)
class Restart:
    """Start it again after ``seconds``; ``why`` says what happened."""

    seconds: float
    why: str


@dataclass(frozen=True)
class GiveUp:
    """Failed too often; the supervisor ends with ``code``."""

    code: int
    why: str


@dataclass(frozen=True)
class Done:
    """Nothing is to be started again; the supervisor ends with ``code``."""

    code: int


Next = Restart | GiveUp | Done


def how_it_ended(code: int) -> str:
    """An exit code as `subprocess` gives it (negative: a signal), in words."""
    if code >= 0:
        words = {RESUME_ME: "exit code 75: resume me", PEER_DIED: "exit code 76: a peer died"}
        return words.get(code, f"exit code {code}")
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def group_outcome(codes: Sequence[int]) -> int:
    """The one exit code that says how a group of ranks ended.

    Ranks that the supervisor had to kill because another one was gone are left out by the caller. A death by
    signal counts before what it did to the others; wrong input before everything.
    """
    if WRONG_INPUT in codes:
        return WRONG_INPUT
    killed = [code for code in codes if code < 0]
    if killed:
        return killed[0]
    graver = [code for code in codes if code not in (DONE, PEER_DIED)]
    graver.sort(key=lambda code: _GRAVITY.index(code) if code in _GRAVITY else _GRAVITY.index(FAILED))
    if graver:
        return graver[0]
    return PEER_DIED if PEER_DIED in codes else DONE


def plan_trainer(code: int, fruitless: int, stopping: bool, policy: RestartPolicy) -> Next:
    """What follows the end of the trainer.

    Args:
        code: how it ended, see `group_outcome`.
        fruitless: failures in a row without a new checkpoint between them, this one included.
        stopping: whether the run was told to stop, by a signal or by a command.
        policy: how often, and after how long.
    """
    if code >= 0 and code != PEER_DIED:
        return Done(code)
    if stopping:
        return Done(RESUME_ME)
    if fruitless >= policy.most_attempts:
        return GiveUp(
            FAILED,
            f"the trainer ended {fruitless} times in a row without a new checkpoint, last: "
            f"{how_it_ended(code)}. The last checkpoint is kept; when the cause is found (memory? the host's "
            f"own code?), the same command goes on from it",
        )
    return Restart(policy.wait(fruitless), how_it_ended(code))


def pod_exit(code: int, stopping: bool) -> int:
    """What a training pod ends with: what the Job's failure policy and the operator understand.

    0 complete, 75 resume me, 76 a peer died, 77 `spec.budget` is used up, 2 wrong input, 137 killed, which is
    most likely for memory; else 1.

    Args:
        code: how the pod's ranks ended, see `group_outcome`.
        stopping: whether the pod was told to stop.
    """
    if stopping and (code < 0 or code == KILLED):
        return RESUME_ME
    if code == -signal.SIGKILL:
        return 128 + signal.SIGKILL
    return code if code in (DONE, WRONG_INPUT, RESUME_ME, PEER_DIED, EXIT_BUDGET) else FAILED


def plan_helper(how: str, fruitless: int, policy: RestartPolicy) -> Restart | GiveUp:
    """What follows the end of the bus or the controller service, without which the training goes on.

    Args:
        how: how it ended, in words.
        fruitless: ends in a row, each soon after its start, this one included.
        policy: how often, and after how long.
    """
    if fruitless >= policy.most_attempts:
        return GiveUp(DONE, f"it ended {fruitless} times in a row soon after its start, last: {how}")
    return Restart(policy.wait(fruitless), how)
