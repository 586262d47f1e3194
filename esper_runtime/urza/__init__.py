"""Urza is the library: blueprints, kernels, what each role says of them, and their artifacts.

What a kernel's state is follows from the roles' signed words; nobody writes it, and nothing is ever deleted.
"""

from esper_runtime.urza.artifacts import ArtifactStore, StoredArtifact
from esper_runtime.urza.bucket import NoBucketError
from esper_runtime.urza.carry import Carrier
from esper_runtime.urza.fold import fold
from esper_runtime.urza.index import KernelIndex, Ranked, merit
from esper_runtime.urza.known import KnownBlueprints
from esper_runtime.urza.library import Library
from esper_runtime.urza.lineage import Lineage, lineage
from esper_runtime.urza.reader import LibraryReader
from esper_runtime.urza.shelf import Shelf, usable
from esper_runtime.urza.transfer import Transferred, export_library, import_library
from esper_runtime.urza.upkeep import GRACE, Finding, Garbage, collect_garbage, verify_library
from esper_runtime.urza.wanted import FetchNews, FetchOrder, FetchStart, Offer, Wanted
from esper_runtime.urza.words import Fault, Word, hear, word_key

__all__ = [
    "GRACE",
    "ArtifactStore",
    "Carrier",
    "Fault",
    "FetchNews",
    "FetchOrder",
    "FetchStart",
    "Finding",
    "Garbage",
    "KernelIndex",
    "KnownBlueprints",
    "Library",
    "LibraryReader",
    "Lineage",
    "NoBucketError",
    "Offer",
    "Ranked",
    "Shelf",
    "StoredArtifact",
    "Transferred",
    "Wanted",
    "Word",
    "collect_garbage",
    "export_library",
    "fold",
    "hear",
    "import_library",
    "lineage",
    "merit",
    "usable",
    "verify_library",
    "word_key",
]
