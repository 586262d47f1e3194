"""Checking a library from end to end, and removing artifacts that nothing names."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esper_runtime.artifact import open_artifact
from esper_runtime.contracts import ArtifactError, KernelRecord
from esper_runtime.urza.artifacts import StoredArtifact
from esper_runtime.urza.reader import LibraryReader

GRACE = 3600.0
"""Seconds for which an artifact, or a part of one, may wait for the word that names it."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """What `verify_library` says of one kernel, blueprint or word."""

    what: str
    passed: bool
    says: str


async def verify_library(
    library: LibraryReader, progress: Progress = lambda _done, _all: None
) -> list[Finding]:
    """Fetch the artifact of every kernel and check it against its digest, signatures and blueprint; list the
    words that do not count.

    Args:
        library: to verify.
        progress: called with the kernels that are done and those that there are.

    Raises:
        BusError: the bus does not answer.
    """
    records = [record for record in (await library.records()).values() if record.compiled is not None]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, record in enumerate(sorted(records, key=lambda one: one.kernel)):
            progress(number, len(records))
            found.append(await _verified(library, record, Path(folder) / "artifact"))
    progress(len(records), len(records))
    found += [
        Finding(f"{bucket}/{key}", False, f"{fault}: it does not count")
        for bucket, key, fault in await library.faults()
    ]
    return found


async def _verified(library: LibraryReader, record: KernelRecord, path: Path) -> Finding:
    assert record.digest is not None
    assert record.compiled is not None
    try:
        await library.fetch_artifact(record.digest, path)
        open_artifact(path, record.compiled, record.verdict, library.trust, validated=False)
    except ArtifactError as error:
        return Finding(record.kernel, False, str(error))
    return Finding(record.kernel, True, f"{record.state}, {record.bytes:,} bytes, {record.digest[:16]}")


@dataclass(frozen=True)
class Garbage:
    """What no word names: artifacts, and numbers of chunks of puts that never ended."""

    artifacts: tuple[StoredArtifact, ...]
    orphans: dict[str, int]


async def collect_garbage(library: LibraryReader, *, dry_run: bool = False, grace: float = GRACE) -> Garbage:
    """Remove the artifacts that no word names, whether that word still counts or not, and what was left of
    puts that were cut off.

    Args:
        library: connected as who may purge the store (the planner).
        dry_run: only say what would be removed.
        grace: seconds for which an artifact is left alone after it was stored.

    Raises:
        BusError: the bus does not answer, or does not let us.
    """
    store = library.artifacts
    stored, now = await store.list(), datetime.now(UTC)
    named = await library.named_digests()  # after the list: what is named by now is kept
    artifacts = tuple(
        one
        for digest, one in sorted(stored.items())
        if digest not in named and (now - one.stored).total_seconds() > grace
    )
    garbage = Garbage(artifacts, await store.orphans(grace))
    if not dry_run:
        for one in garbage.artifacts:
            await store.remove(one)
        for chunks in garbage.orphans:
            await store.remove_orphan(chunks)
    return garbage
