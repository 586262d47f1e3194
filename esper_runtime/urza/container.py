"""The file of an exported library: a header, entries with their digests, and an end that closes it.

Each entry is a line of JSON (kind, name, bytes, sha256), its bytes, and a line feed. The last line counts the
entries and has the SHA-256 of all that comes before it, so that a file that was cut off is told from a whole
one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, ValidationError

from esper_runtime.contracts import ArtifactError, ContractModel, Sha256, canonical_json

VERSION = 1
_LINE = 65_536
_BLOCK = 1024 * 1024

Kind = Literal["blueprint", "artifact", "tezzeret", "urabrask", "planner", "report"]


class Header(ContractModel):
    """First line: the version of this form, and which library was exported when."""

    esper_library: Literal[1] = 1
    incarnation: str = Field(max_length=64)
    time: str = Field(max_length=64)


class Entry(ContractModel):
    """What comes next. A word has the role that said it as its kind; a report is named by its subject."""

    kind: Kind
    name: str = Field(min_length=1, max_length=256)
    bytes: int = Field(ge=0)
    sha256: Sha256


class End(ContractModel):
    """Last line."""

    entries: int = Field(ge=0)
    file_sha256: Sha256


@dataclass(frozen=True)
class Payload:
    """The bytes of an entry, to be read once, before the next entry."""

    entry: Entry
    blocks: Iterator[bytes]

    def read(self, most: int) -> bytes:
        """All of them.

        Raises:
            ArtifactError: there are more than ``most``, or they do not have the digest.
        """
        if self.entry.bytes > most:
            raise ArtifactError(f"{self.entry.name}: {self.entry.bytes:,} bytes; allowed: {most:,}")
        return b"".join(self.blocks)


class Writer:
    """Writes the file from front to end."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self._file = file
        self._seen = hashlib.sha256()
        self._entries = 0
        self._line(header)

    def add(self, kind: Kind, name: str, data: bytes) -> None:
        """An entry."""
        self._line(Entry(kind=kind, name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        self._write(data + b"\n")
        self._entries += 1

    def add_file(self, kind: Kind, name: str, path: Path, digest: str) -> None:
        """An entry with the contents of a file that has this digest."""
        self._line(Entry(kind=kind, name=name, bytes=path.stat().st_size, sha256=digest))
        with path.open("rb") as source:
            while block := source.read(_BLOCK):
                self._write(block)
        self._write(b"\n")
        self._entries += 1

    def end(self) -> None:
        """Close the file's form."""
        self._line(End(entries=self._entries, file_sha256=self._seen.hexdigest()))

    def _line(self, model: ContractModel) -> None:
        self._write(canonical_json(model.model_dump(mode="json", by_alias=True)) + b"\n")

    def _write(self, data: bytes) -> None:
        self._seen.update(data)
        self._file.write(data)


def read_container(
    file: IO[bytes], progress: Callable[[int], None] = lambda _: None
) -> tuple[Header, Iterator[Payload]]:
    """The header, and the entries one after the other; every digest is checked by the time that they end.

    Args:
        file: at its start.
        progress: called with the number of bytes read since it was called before.

    Raises:
        ArtifactError: now or while the entries are read: the file is not in this form, of another version,
            was changed or cut off, or goes on behind its end; the text says where.
    """
    reader = _Reader(file, progress)
    first = reader.line()
    version = first.get("esperLibrary")
    if version != VERSION:
        told = f"version {version!r}" if "esperLibrary" in first else "something else"
        raise ArtifactError(f"a library file of version {VERSION} is expected, this is {told}")
    return reader.model(Header, first), reader.entries()


class _Reader:
    def __init__(self, file: IO[bytes], progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress
        self._seen = hashlib.sha256()
        self._place = 0

    def line(self) -> dict[str, Any]:
        data = self._file.readline(_LINE)
        if not data.endswith(b"\n"):
            raise self._error("the file was cut off or is no library file")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or canonical_json(value) + b"\n" != data:
            raise self._error("a line in the form of a library file is expected")
        if "fileSha256" not in value:
            self._take(data)
        return value

    def model(self, model: type[Any], value: dict[str, Any]) -> Any:
        try:
            return model.model_validate(value, by_alias=True, by_name=False)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "line"
            raise self._error(f"{place}: {first['msg']}") from None

    def entries(self) -> Iterator[Payload]:
        count = 0
        while True:
            value = self.line()
            if "fileSha256" in value:
                break
            entry: Entry = self.model(Entry, value)
            blocks = self._blocks(entry)
            yield Payload(entry, blocks)
            for _ in blocks:  # what the reader has not asked for is checked all the same
                pass
            count += 1
        end: End = self.model(End, value)
        if (end.entries, end.file_sha256) != (count, self._seen.hexdigest()):
            raise self._error("what comes before the end is not what the end says: the file was changed")
        if self._file.read(1):
            raise self._error("the file goes on behind its end")

    def _blocks(self, entry: Entry) -> Iterator[bytes]:
        left, seen = entry.bytes, hashlib.sha256()
        while left:
            block = self._file.read(min(left, _BLOCK))
            if not block:
                raise self._error(f"{entry.kind} {entry.name}: the file was cut off")
            self._take(block)
            seen.update(block)
            left -= len(block)
            yield block
        if seen.hexdigest() != entry.sha256 or self._file.read(1) != b"\n":
            raise self._error(f"{entry.kind} {entry.name}: was changed")
        self._take(b"\n")

    def _take(self, data: bytes) -> None:
        self._seen.update(data)
        self._place += len(data)
        self._progress(len(data))

    def _error(self, text: str) -> ArtifactError:
        return ArtifactError(f"byte {self._place:,}: {text}")
