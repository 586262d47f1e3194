"""The forge on one machine: one process plans and keeps workers, which make and test kernels.

It runs beside trainings and is never waited for; what it knows lies on the bus, so that it may die anywhere.
"""

from esper_runtime.local.forge.desk import desk_at, forge_at_work
from esper_runtime.local.forge.serve import Place, place_of, roles, serve_forge
from esper_runtime.local.forge.workers import MOST_WORKERS, WorkerPool, default_workers

__all__ = [
    "MOST_WORKERS",
    "Place",
    "WorkerPool",
    "default_workers",
    "desk_at",
    "forge_at_work",
    "place_of",
    "roles",
    "serve_forge",
]
