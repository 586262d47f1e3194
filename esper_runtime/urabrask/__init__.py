"""The evaluation engine: runs the real artifact in a sandbox, judges and measures it.

Only its signed verdict makes a kernel one that may run in a training.
"""

from esper_runtime.urabrask.bounds import Bounds
from esper_runtime.urabrask.evaluate import evaluate, new_sandbox
from esper_runtime.urabrask.tags import Experience
from esper_runtime.urabrask.worker import Judged, serve

__all__ = ["Bounds", "Experience", "Judged", "evaluate", "new_sandbox", "serve"]
