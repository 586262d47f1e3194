"""Tolaria orchestrates training: tasks, hosts, the loop, its ledger, checkpoints, journal and rollbacks.

`Trainer` trains a run in its folder; `load` builds a finished model again.
"""

from esper_runtime.tolaria.batches import BatchOrder, in_order, length, micro_batches, take, to_device
from esper_runtime.tolaria.boundary import Boundary, limits_of
from esper_runtime.tolaria.callbacks import huggingface_callback, lightning_callback
from esper_runtime.tolaria.checkpoint import CheckpointStore, SavedState, to_bytes
from esper_runtime.tolaria.disk import replace_file
from esper_runtime.tolaria.environment import describe, prepared, seed_all
from esper_runtime.tolaria.evaluate import evaluate
from esper_runtime.tolaria.forging import ForgingStoppedError, Told, prepare
from esper_runtime.tolaria.governor import Governor
from esper_runtime.tolaria.grower import Grower
from esper_runtime.tolaria.hosts import (
    BUILTIN_HOSTS,
    Cnn,
    Mlp,
    Transformer,
    build_host,
    check_host,
    load_initial_weights,
)
from esper_runtime.tolaria.journal import JournalWriter, must_sync
from esper_runtime.tolaria.learning import Gradients, Learner
from esper_runtime.tolaria.ledger import Ledger, Purpose, macs_per_example, parameters_of
from esper_runtime.tolaria.library import LibraryLink
from esper_runtime.tolaria.messenger import BusObserver
from esper_runtime.tolaria.model_folder import ARCHITECTURE, WEIGHTS, load, read_model, save_model
from esper_runtime.tolaria.opening import fetch_journal
from esper_runtime.tolaria.optimizer import GroupedOptimizer, clip_gradients
from esper_runtime.tolaria.parts import Parts, build_parts
from esper_runtime.tolaria.replay import ReplayTrainer
from esper_runtime.tolaria.result import NoObserver, Observer, Result
from esper_runtime.tolaria.schedule import learning_rate, newborn_factor, schedule_factor
from esper_runtime.tolaria.sources import raised_in_user_code, resolve
from esper_runtime.tolaria.steering import Inbox
from esper_runtime.tolaria.stocking import wanted_kernels
from esper_runtime.tolaria.tasks import (
    BUILTIN_TASKS,
    Batch,
    ClassificationTask,
    LanguageTask,
    RegressionTask,
    Task,
    TaskShape,
    load_task,
)
from esper_runtime.tolaria.trainer import Trainer

__all__ = [
    "ARCHITECTURE",
    "BUILTIN_HOSTS",
    "BUILTIN_TASKS",
    "WEIGHTS",
    "Batch",
    "BatchOrder",
    "Boundary",
    "BusObserver",
    "CheckpointStore",
    "ClassificationTask",
    "Cnn",
    "ForgingStoppedError",
    "Governor",
    "Gradients",
    "GroupedOptimizer",
    "Grower",
    "Inbox",
    "JournalWriter",
    "LanguageTask",
    "Learner",
    "Ledger",
    "LibraryLink",
    "Mlp",
    "NoObserver",
    "Observer",
    "Parts",
    "Purpose",
    "RegressionTask",
    "ReplayTrainer",
    "Result",
    "SavedState",
    "Task",
    "TaskShape",
    "Told",
    "Trainer",
    "Transformer",
    "build_host",
    "build_parts",
    "check_host",
    "clip_gradients",
    "describe",
    "evaluate",
    "fetch_journal",
    "huggingface_callback",
    "in_order",
    "learning_rate",
    "length",
    "lightning_callback",
    "limits_of",
    "load",
    "load_initial_weights",
    "load_task",
    "macs_per_example",
    "micro_batches",
    "must_sync",
    "newborn_factor",
    "parameters_of",
    "prepare",
    "prepared",
    "raised_in_user_code",
    "read_model",
    "replace_file",
    "resolve",
    "save_model",
    "schedule_factor",
    "seed_all",
    "take",
    "to_bytes",
    "to_device",
    "wanted_kernels",
]
