"""Karn: invents blueprints, by random draws from their grammar and by mutation of good ones.

All that it proposes has passed the static check; the planner checks it again, and whether it is any good only
Urabrask and trainings can say. Nothing here needs torch.
"""

from esper_runtime.karn.draw import draw
from esper_runtime.karn.grammar import GENERATOR
from esper_runtime.karn.mutate import mutate
from esper_runtime.karn.propose import propose
from esper_runtime.karn.worker import Proposed, serve

__all__ = ["GENERATOR", "Proposed", "draw", "mutate", "propose", "serve"]
