"""Kernels as the training process sees them: what it can run, and modules made from verified artifacts.

Nothing here looks at bytes whose digest and signatures were not checked before.
"""

from esper_runtime.kasmina.kernels.cache import CacheCounts, KernelCache
from esper_runtime.kasmina.kernels.compiled import Call, CompiledParts
from esper_runtime.kasmina.kernels.loader import Kernel, load
from esper_runtime.kasmina.kernels.stock import Maker, Stock
from esper_runtime.kasmina.kernels.swap import MARGIN, Comparison, compare, twin_of
from esper_runtime.kasmina.kernels.twin import Twin, arguments
from esper_runtime.kasmina.kernels.wanted import (
    compiler,
    current_target,
    refuse_compiled,
    spec_for,
    toolchain,
    worker_facts,
)

__all__ = [
    "MARGIN",
    "CacheCounts",
    "Call",
    "Comparison",
    "CompiledParts",
    "Kernel",
    "KernelCache",
    "Maker",
    "Stock",
    "Twin",
    "arguments",
    "compare",
    "compiler",
    "current_target",
    "load",
    "refuse_compiled",
    "spec_for",
    "toolchain",
    "twin_of",
    "worker_facts",
]
