"""The execution layer: slots in a host, seeds planted in them, and the lifecycle of each seed.

A dormant slot is absent from the model; a seed lives beside the host and is connected by two hooks.
"""

from esper_runtime.kasmina.absorb import Merged, Report, absorb, absorb_all
from esper_runtime.kasmina.batched import Batch, direct_gradients
from esper_runtime.kasmina.candidates import Found, candidates
from esper_runtime.kasmina.changes import Changes, Journal, nowhere
from esper_runtime.kasmina.grafted import GraftedModel
from esper_runtime.kasmina.growable import Growable
from esper_runtime.kasmina.initialise import initialise_from_gradients
from esper_runtime.kasmina.isolation import detached_call, learn_isolated
from esper_runtime.kasmina.kernels import (
    CacheCounts,
    Kernel,
    KernelCache,
    Stock,
    current_target,
    spec_for,
    toolchain,
)
from esper_runtime.kasmina.limits import Limits
from esper_runtime.kasmina.measure import Trial, evaluating, measure_contribution, probe_slots, summary
from esper_runtime.kasmina.probe import graphless
from esper_runtime.kasmina.randomness import untouched_random_state
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.side_by_side import cohorts, learn_side_by_side
from esper_runtime.kasmina.survey import Place, Refusal, Survey, modules_of, survey
from esper_runtime.kasmina.taps import Tap
from esper_runtime.kasmina.widening import Move
from esper_runtime.kasmina.wrap import wrap

__all__ = [
    "Batch",
    "CacheCounts",
    "Changes",
    "Found",
    "GraftedModel",
    "Growable",
    "Journal",
    "Kernel",
    "KernelCache",
    "Limits",
    "Merged",
    "Move",
    "Place",
    "Refusal",
    "Report",
    "Seed",
    "Stock",
    "Survey",
    "Tap",
    "Trial",
    "absorb",
    "absorb_all",
    "candidates",
    "cohorts",
    "current_target",
    "detached_call",
    "direct_gradients",
    "evaluating",
    "graphless",
    "initialise_from_gradients",
    "learn_isolated",
    "learn_side_by_side",
    "measure_contribution",
    "modules_of",
    "nowhere",
    "probe_slots",
    "spec_for",
    "summary",
    "survey",
    "toolchain",
    "untouched_random_state",
    "wrap",
]
