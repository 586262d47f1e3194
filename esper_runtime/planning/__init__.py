"""Pure functions from what is observed to what is done next; doing it twice changes nothing.

They decide whether a run starts, resumes or is refused, which checkpoints are kept, whether a process that
ended is started again, and what the forge does with blueprints and kernels.
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
from esper_runtime.planning.forge import (
    Action,
    Compile,
    Evaluate,
    ForgePlan,
    ForgePolicy,
    ForgeState,
    GiveUpWork,
    QueueView,
    Remove,
    Retry,
    plan_forge,
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
from esper_runtime.planning.rulings import Quarantine, QuarantineRule, Reinstate, Supersede, supersedes
from esper_runtime.planning.workforce import IDLE_SECONDS, WORKERS, Depth, workers_wanted

__all__ = [
    "IDLE_SECONDS",
    "WORKERS",
    "Action",
    "AlreadyComplete",
    "Attempt",
    "Compile",
    "Depth",
    "Done",
    "Evaluate",
    "ForgePlan",
    "ForgePolicy",
    "ForgeState",
    "GiveUp",
    "GiveUpWork",
    "Observed",
    "Quarantine",
    "QuarantineRule",
    "QueueView",
    "Refuse",
    "Reinstate",
    "Remove",
    "Restart",
    "RestartPolicy",
    "Resume",
    "Retry",
    "SavedCheckpoint",
    "Start",
    "Supersede",
    "Undone",
    "group_outcome",
    "how_it_ended",
    "manifest_differences",
    "observe",
    "plan_attempt",
    "plan_forge",
    "plan_helper",
    "plan_trainer",
    "supersedes",
    "to_delete",
    "workers_wanted",
]
