"""One machine: run folders, progress in the terminal, runs from a manifest file, and what is made of them.

The names below are imported when they are used, so that commands that need no torch start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_runtime.local.children import SUPERVISED
    from esper_runtime.local.export import export_run
    from esper_runtime.local.folder import DEFAULT_RUNS, RunFolder, find_run, list_runs
    from esper_runtime.local.look import Fit, Look, look_at
    from esper_runtime.local.plan import Plan, plan_run
    from esper_runtime.local.prepare import Ready, prepare_kernels
    from esper_runtime.local.progress import Display, Progress
    from esper_runtime.local.reader import outliving_the_reader
    from esper_runtime.local.replay import Replayed, replay_run
    from esper_runtime.local.run import EXIT_PEER_LOST, run_manifest
    from esper_runtime.local.start import supervise_manifest
    from esper_runtime.local.steering import Status, status_data, status_of, steer
    from esper_runtime.local.stop import StopSignals
    from esper_runtime.local.verify import Check, verify_run

_HOMES = {
    "Check": "verify",
    "EXIT_PEER_LOST": "run",
    "SUPERVISED": "children",
    "DEFAULT_RUNS": "folder",
    "Display": "progress",
    "Fit": "look",
    "Look": "look",
    "Plan": "plan",
    "Progress": "progress",
    "Ready": "prepare",
    "Replayed": "replay",
    "RunFolder": "folder",
    "Status": "steering",
    "StopSignals": "stop",
    "status_data": "steering",
    "status_of": "steering",
    "steer": "steering",
    "export_run": "export",
    "find_run": "folder",
    "list_runs": "folder",
    "look_at": "look",
    "outliving_the_reader": "reader",
    "plan_run": "plan",
    "prepare_kernels": "prepare",
    "replay_run": "replay",
    "run_manifest": "run",
    "supervise_manifest": "start",
    "verify_run": "verify",
}

__all__ = [
    "DEFAULT_RUNS",
    "EXIT_PEER_LOST",
    "SUPERVISED",
    "Check",
    "Display",
    "Fit",
    "Look",
    "Plan",
    "Progress",
    "Ready",
    "Replayed",
    "RunFolder",
    "Status",
    "StopSignals",
    "export_run",
    "find_run",
    "list_runs",
    "look_at",
    "outliving_the_reader",
    "plan_run",
    "prepare_kernels",
    "replay_run",
    "run_manifest",
    "status_data",
    "status_of",
    "steer",
    "supervise_manifest",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
