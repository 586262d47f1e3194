"""Urza is the library: blueprints, kernels, what each role says of them, and their artifacts.

What a kernel's state is follows from the roles' signed words; nobody writes it, and nothing is ever deleted.
"""

from esper_runtime.urza.artifacts import ArtifactStore, StoredArtifact
from esper_runtime.urza.bucket import NoBucketError
from esper_runtime.urza.fold import fold
from esper_runtime.urza.index import KernelIndex, Ranked
from esper_runtime.urza.library import Library
from esper_runtime.urza.lineage import Lineage, lineage
from esper_runtime.urza.words import Fault, Word, hear, word_key

__all__ = [
    "ArtifactStore",
    "Fault",
    "KernelIndex",
    "Library",
    "Lineage",
    "NoBucketError",
    "Ranked",
    "StoredArtifact",
    "Word",
    "fold",
    "hear",
    "lineage",
    "word_key",
]
