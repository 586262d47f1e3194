"""Which cores are for the work beside a training."""

import os


def forge_cores(workers: int = 1) -> frozenset[int]:
    """The cores that ``workers`` may use: the last ones, and never all where there is more than one."""
    cores = sorted(os.sched_getaffinity(0))
    return frozenset(cores[-max(1, min(workers, len(cores) - 1)) :])
