"""Pure functions from what is observed to what is done next; doing it twice changes nothing.

They decide whether a run starts, resumes or is refused, which checkpoints are kept, and whether a process
that ended is started again.
"""

from esper_runtime.planning.attempt import (
    AlreadyComplete,
    Attempt,
    Observed,
    Refuse,
    Resume,
    SavedCheckpoint,
    Start,
    Undone,
    manifest_differences,
    observe,
    plan_attempt,
)
from esper_runtime.planning.restart import (
    Done,
    GiveUp,
    Restart,
    RestartPolicy,
    group_outcome,
    how_it_ended,
    plan_helper,
    plan_trainer,
)
from esper_runtime.planning.retention import to_delete

__all__ = [
    "AlreadyComplete",
    "Attempt",
    "Done",
    "GiveUp",
    "Observed",
    "Refuse",
    "Restart",
    "RestartPolicy",
    "Resume",
    "SavedCheckpoint",
    "Start",
    "Undone",
    "group_outcome",
    "how_it_ended",
    "manifest_differences",
    "observe",
    "plan_attempt",
    "plan_helper",
    "plan_trainer",
    "to_delete",
]
