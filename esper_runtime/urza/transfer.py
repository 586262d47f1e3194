"""A library as one file: out of a bus, and into one."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from esper_runtime.artifact import Trust, decode_signed
from esper_runtime.blueprint import canonical_id, parse_blueprint
from esper_runtime.contracts import (
    ArtifactError,
    BlueprintEntry,
    BlueprintError,
    Compiled,
    InputError,
    Role,
    utc_now,
)
from esper_runtime.oona import BusRole
from esper_runtime.urza.container import Header, Kind, Payload, Writer, read_container
from esper_runtime.urza.library import Library
from esper_runtime.urza.reader import LibraryReader
from esper_runtime.urza.reports import StoredReport
from esper_runtime.urza.words import Word, hear

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and those that there are in all."""

_KINDS: Mapping[Role, Kind] = {
    Role.TEZZERET: "tezzeret",
    Role.URABRASK: "urabrask",
    Role.PLANNER: "planner",
}
_LARGEST_WORD = 1024 * 1024


@dataclass
class Transferred:
    """What was written into a file, or what a file has brought that was not there.

    Attributes:
        blueprints: how many.
        words: how many.
        artifacts: how many.
        reports: how many field reports of trainings.
        bytes: of the artifacts.
        left_out: what is missing and why, one line each.
    """

    blueprints: int = 0
    words: int = 0
    artifacts: int = 0
    reports: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)


async def export_library(
    library: LibraryReader, path: Path, progress: Progress = lambda _done, _all: None
) -> Transferred:
    """Write all blueprints, all words that count, their artifacts and all field reports into one file.

    Args:
        library: to export.
        path: of the file; replaced in one go when all is written.
        progress: see `Progress`.

    Raises:
        BusError: the bus does not answer.
        InputError: the file cannot be written.
    """
    done = Transferred()
    blueprints = await library.blueprints()
    words = await library.words()
    stored = await library.artifacts.list()
    named = sorted({word.statement.digest for _, word in words if isinstance(word.statement, Compiled)})
    total = sum(stored[digest].bytes for digest in named if digest in stored)
    header = Header(incarnation=library.incarnation or "", time=utc_now())
    with _replacing(path) as file:
        writer = Writer(file, header)
        for identity, entry in sorted(blueprints.items()):
            writer.add("blueprint", identity, entry.model_dump_json(by_alias=True).encode())
            done.blueprints += 1
        for digest in named:
            part = path.with_name(f".{path.name}.{digest[:16]}")
            try:
                await library.fetch_artifact(digest, part)
                await asyncio.to_thread(writer.add_file, "artifact", digest, part, digest)
                done.bytes += part.stat().st_size
                done.artifacts += 1
            except ArtifactError as error:
                done.left_out.append(str(error))
            finally:
                part.unlink(missing_ok=True)
            progress(done.bytes, total)
        for role, word in words:
            writer.add(_KINDS[role], word.key, word.encoded)
            done.words += 1
        for report in (await library.reports()).values():
            writer.add("report", report.subject, report.data)
            done.reports += 1
        writer.end()
    done.left_out += [
        f"{bucket}/{key}: {fault}, does not count" for bucket, key, fault in await library.faults()
    ]
    return done


async def import_library(
    path: Path, speakers: Mapping[BusRole, Library], progress: Progress = lambda _done, _all: None
) -> Transferred:
    """Bring what a file holds into a library that lacks it. Nothing is replaced; twice is as good as once.

    The whole file is checked first: form, digests, signatures, blueprints. Then it is read again, and what is
    lacking is entered. Words whose key has expired or was revoked since are left out.

    Args:
        path: of the file.
        speakers: the library as each role may write to it: Tezzeret's takes the artifacts, the planner's the
            blueprints, a training's the reports; may be the same for all.
        progress: see `Progress`; both readings count.

    Raises:
        ArtifactError: the file is refused, and nothing was changed; the text says what is wrong where.
        InputError: the file cannot be read.
        BusError: the bus does not answer; importing again goes on.
    """
    try:
        with path.open("rb") as file:
            total, seen = 2 * os.fstat(file.fileno()).st_size, 0

            def advance(count: int) -> None:
                nonlocal seen
                seen += count
                progress(seen, total)

            for library in set(speakers.values()):
                await library.refresh()
            try:
                plan = await asyncio.to_thread(_check, file, speakers[BusRole.PLANNER], advance)
                plan.reports = set(await speakers[BusRole.PLANNER].reports())
                file.seek(0)
                return await _enter(file, speakers, plan, advance)
            except ArtifactError as error:
                raise ArtifactError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass
class _Plan:
    """What a checked file has that the library lacks; ``reports`` are those that are there."""

    words: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    reports: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)


def _check(file: IO[bytes], library: Library, advance: Callable[[int], None]) -> _Plan:
    """Read the whole file and refuse it where anything in it is wrong."""
    plan, named, artifacts = _Plan(), set(), set()
    _, entries = read_container(file, advance)
    for payload in entries:
        entry = payload.entry
        if entry.kind == "blueprint":
            _blueprint(payload)
            continue
        if entry.kind == "report":
            _report(payload)
            continue
        if entry.kind == "artifact":
            artifacts.add(entry.name)
            if entry.sha256 != entry.name:
                raise ArtifactError(f"artifact {entry.name}: has the digest {entry.sha256}")
            continue
        word, over = _word(payload, library.trust)
        if over:
            plan.left_out.append(f"{entry.kind} {entry.name}: {over}")
        made = word.statement if isinstance(word.statement, Compiled) else None
        if made is not None:
            named.add(made.digest)
        new = not over and not library.is_settled(word.statement)
        if new:
            plan.words.add(entry.name)
        known = library.known(word.statement.kernel)
        if made is not None and (new or (known is not None and known.digest == made.digest)):
            plan.digests.add(made.digest)
    if artifacts - named:
        raise ArtifactError(f"artifact {min(artifacts - named)}: no word in the file names it")
    return plan


async def _enter(
    file: IO[bytes], speakers: Mapping[BusRole, Library], plan: _Plan, advance: Callable[[int], None]
) -> Transferred:
    done = Transferred(left_out=plan.left_out)
    _, entries = read_container(file, advance)
    for payload in entries:
        entry = payload.entry
        if entry.kind == "blueprint":
            done.blueprints += await speakers[BusRole.PLANNER].put_entry(_blueprint(payload))
        elif entry.kind == "artifact":
            if entry.name in plan.digests and await _put_artifact(payload, speakers[BusRole.TEZZERET]):
                done.artifacts += 1
                done.bytes += entry.bytes
        elif entry.kind == "report":
            report = _report(payload)
            if report.identity not in plan.reports:
                plan.reports.add(report.identity)
                await speakers[BusRole.TRAINING].put_report(report)
                done.reports += 1
        elif entry.name in plan.words:
            word, over = _word(payload, speakers[BusRole.PLANNER].trust)
            if not over:
                await speakers[BusRole(entry.kind)].put_word(Role(entry.kind), word)
                done.words += 1
    return done


async def _put_artifact(payload: Payload, library: Library) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / payload.entry.name
        with path.open("wb") as copy:
            for block in payload.blocks:
                await asyncio.to_thread(copy.write, block)
        _, stored = await library.artifacts.put(path)
    return stored


def _blueprint(payload: Payload) -> BlueprintEntry:
    name, data = payload.entry.name, payload.read(_LARGEST_WORD)
    try:
        entry = BlueprintEntry.model_validate_json(data, by_alias=True, by_name=False)
        parse_blueprint(entry.graph.model_dump(mode="json", by_alias=True))
        identity = canonical_id(entry.graph)
    except (ValidationError, BlueprintError) as error:
        raise ArtifactError(f"blueprint {name}: {error}") from None
    if not identity == entry.blueprint == name:
        raise ArtifactError(f"blueprint {name}: its graph is {identity}")
    return entry


def _report(payload: Payload) -> StoredReport:
    try:
        return StoredReport.read(payload.entry.name, payload.read(_LARGEST_WORD))
    except InputError as error:
        raise ArtifactError(f"report {error}") from None


def _word(payload: Payload, trust: Trust) -> tuple[Word, str]:
    """The word in an entry, and why it does not count any more, where it once did.

    Raises:
        ArtifactError: it never counted here.
    """
    name, role, data = payload.entry.name, Role(payload.entry.kind), payload.read(_LARGEST_WORD)
    heard = hear(data, role, name, trust)
    if isinstance(heard, Word):
        return heard, ""
    try:
        signed = decode_signed(data)
        why = ""
        try:
            trust.verify(signed, role)
        except ArtifactError as error:
            why = str(error)
        known = trust.keys
        key = known.find(signed.signature.key)
        begin = key.not_before if key is not None else None
        before = Trust(known.model_copy(update={"revoked_keys": {}, "revoked_digests": {}}))
        word = Word(before.verify(signed, role, begin), signed)
    except ArtifactError as error:
        raise ArtifactError(f"the word {name} of {role}: {error}") from None
    if not why or word.key != name:
        raise ArtifactError(f"the word {name} of {role}: is that of {word.key}")
    return word, why


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` when the block ends well.

    Raises:
        InputError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
