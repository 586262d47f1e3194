"""Kernels as the training process sees them: what it can run, and modules made from verified artifacts.

Nothing here looks at bytes whose digest and signatures were not checked before.
"""

from esper_runtime.kasmina.kernels.loader import Kernel, load
from esper_runtime.kasmina.kernels.wanted import current_target, spec_for, toolchain

__all__ = ["Kernel", "current_target", "load", "spec_for", "toolchain"]
