"""Tamiyo as a service: it joins a queue group on the bus and decides for every run that asks.

It keeps nothing of a run, so that services can be added, and die, at any time. It is a package of its own,
because who only trains needs none of it.
"""

from esper_runtime.tamiyo.service.decide import decide
from esper_runtime.tamiyo.service.serve import serve

__all__ = ["decide", "serve"]
