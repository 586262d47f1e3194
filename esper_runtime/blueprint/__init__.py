"""Blueprints: sub-networks as typed graphs, checked, counted, identified and built.

A graph of at most 32 operators is data; `esper_runtime.blueprint.builder`, the only module here that needs
torch, makes it a module whose output is exactly zero at birth.
"""

from esper_runtime.blueprint.absorbable import unabsorbable
from esper_runtime.blueprint.canonical import canonical_id
from esper_runtime.blueprint.catalogue import catalogue
from esper_runtime.blueprint.checks import validate
from esper_runtime.blueprint.fit import cost, misfit
from esper_runtime.blueprint.inference import Cost
from esper_runtime.blueprint.load import load_blueprint, parse_blueprint
from esper_runtime.blueprint.operators import OPERATORS, Operator
from esper_runtime.blueprint.rules import ACTIVATIONS
from esper_runtime.blueprint.samples import sample_slots
from esper_runtime.blueprint.screen import screen
from esper_runtime.blueprint.usual import usual_class

__all__ = [
    "ACTIVATIONS",
    "OPERATORS",
    "Cost",
    "Operator",
    "canonical_id",
    "catalogue",
    "cost",
    "load_blueprint",
    "misfit",
    "parse_blueprint",
    "sample_slots",
    "screen",
    "unabsorbable",
    "usual_class",
    "validate",
]
