"""Runs code that nobody vouches for in a separate process that can compute and do nothing else.

A `Sandbox` keeps a warm process that forks one limited process for each job and watches it from outside."""

from esper_runtime.sandbox.job import Workspace
from esper_runtime.sandbox.limits import MIB, Frame, Limits, Outcome, Profile, Violation
from esper_runtime.sandbox.warm import Sandbox

__all__ = ["MIB", "Frame", "Limits", "Outcome", "Profile", "Sandbox", "Violation", "Workspace"]
