"""What a job's end means, where others than the watch ended it."""

import faulthandler
import os
import resource
import signal
import socket

import pytest

from esper_runtime.sandbox.limits import Limits, Outcome
from esper_runtime.sandbox.watch import Watch


class Late(Watch):
    """One that never gets a processor in time to see that a job's time is over."""

    def _is_over(self, seconds: float) -> bool:
        return False


def watched(deed) -> Outcome:
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            deed()
        finally:
            os._exit(0)
    ends = [os.pipe() for _ in range(4)]
    here, there = socket.socketpair()
    with there:
        for end, _ in ends[:2]:
            os.set_blocking(end, False)
        output, log, answers, hurry = (read for read, _ in ends)
        watch = Late(pid, Limits(seconds=0.5), (), output, log, answers, here, hurry)
        outcome = watch.run()
        os.close(hurry)
        for _, write in ends:
            os.close(write)
    return outcome


def spin() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


def test_a_job_that_the_limit_on_processor_time_ended_did_not_end_by_itself() -> None:
    outcome = watched(spin)
    assert outcome.signal in (signal.SIGKILL, signal.SIGXCPU)
    assert outcome.timed_out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_job_that_dies_early_crashed(number: int) -> None:
    outcome = watched(lambda: os.kill(os.getpid(), number))
    assert outcome.signal == number
    assert not outcome.timed_out
