"""How far a kernel may be off: every bound of the gauntlet in one place."""

from dataclasses import dataclass
from typing import Final

from esper_runtime.contracts.kernel import DType

EQUAL: Final[dict[DType, float]] = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}
"""Against the eager graph in the slot's dtype: largest difference over the larger of 1 and largest value."""

EXACT: Final[dict[DType, float]] = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 2e-1, "float16": 5e-2}
"""Against the eager graph in float64: norm of the difference over the norm."""


@dataclass(frozen=True)
class Bounds:
    """Of the gauntlet.

    Attributes:
        gain: largest factor, and inverse of the smallest, between the sizes (root mean square) of output and
            input, and of their gradients, on unit inputs with a tail drawn like any other layer.
        slope: largest relative error of the float64 gradient against a difference quotient.
        seconds: all of it may take in the sandbox.
        memory: it may use there beyond the warm process, in bytes.
        measuring: seconds of measuring each of forward and training.
    """

    gain: float = 1e4
    slope: float = 1e-3
    seconds: float = 10.0
    memory: int = 2**30
    measuring: float = 0.05
