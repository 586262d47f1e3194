"""Decides when, where and what to grow, and what to keep or cull, from measured signals.

Every decision carries its reason and stays within limits that no controller can break.
"""

from esper_runtime.contracts import ControllerKind, Growth
from esper_runtime.tamiyo.heuristic import HeuristicController
from esper_runtime.tamiyo.kernels import why_not
from esper_runtime.tamiyo.limits import plantable, refuse
from esper_runtime.tamiyo.protocol import Controller, Lesson, OffController
from esper_runtime.tamiyo.remote import ControllerLink, RemoteController


def make_controller(growth: Growth, total_steps: int) -> Controller:
    """The controller that the manifest names, for a run of ``total_steps`` optimizer steps."""
    if growth.controller.kind is ControllerKind.OFF:
        return OffController()
    return HeuristicController(growth, total_steps)


__all__ = [
    "Controller",
    "ControllerLink",
    "HeuristicController",
    "Lesson",
    "OffController",
    "RemoteController",
    "make_controller",
    "plantable",
    "refuse",
    "why_not",
]
