"""The compilation forge: makes a signed artifact of a blueprint for one class of slots, target and pipeline.

It makes and signs; whether the result may run in a training is for Urabrask to say.
"""

from esper_runtime.tezzeret.make import make
from esper_runtime.tezzeret.standard import Builder
from esper_runtime.tezzeret.worker import Made, serve

__all__ = ["Builder", "Made", "make", "serve"]
