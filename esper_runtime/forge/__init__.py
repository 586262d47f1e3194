"""The forge's planner: looks at the library and the queues, decides what is made, tested, tried again, ruled.

It serves one machine and a cluster alike; what it knows lies on the bus, so that it may die anywhere.
"""

from esper_runtime.forge.desk import Desk, ForgeStatus, QueueDepth
from esper_runtime.forge.lease import Holder, Lease
from esper_runtime.forge.letters import Letter
from esper_runtime.forge.news import News
from esper_runtime.forge.planner import LOOK_SECONDS, Planner

__all__ = [
    "LOOK_SECONDS",
    "Desk",
    "ForgeStatus",
    "Holder",
    "Lease",
    "Letter",
    "News",
    "Planner",
    "QueueDepth",
]
