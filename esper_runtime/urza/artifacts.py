"""Artifacts in the object store: named by their digest, stored once, streamed, checked on every way out.

The layout is that of NATS' object stores, so that its tools read it. Storing is done in another way than in
nats-py: a put that was cut off, or lost against another, leaves chunks that nothing names and takes nothing
away; `ArtifactStore.orphans` finds them.
"""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import nats.js.errors
from nats.aio.client import Client

from esper_runtime.contracts import ArtifactError, BusError, InputError
from esper_runtime.oona import ARTIFACTS, publish
from esper_runtime.urza.steadily import jetstream, next_message, steadily, stream_info

CHUNK = 1024 * 1024
LARGEST = 1024 * 1024 * 1024
"""Bytes that an artifact may have."""

FRESH = 600.0
"""Seconds after which an artifact that is stored again counts as stored anew: a word that names it may
follow, and until then it must not be taken for garbage."""

_STREAM = f"OBJ_{ARTIFACTS}"
_HEADERS = 4096
"""Bytes left for headers where the bus takes no messages larger than a chunk."""


@dataclass(frozen=True)
class StoredArtifact:
    """What the store says of an artifact; true only where its chunks have the digest.

    ``chunks`` names the subject of its chunks, of which there are ``count``; ``sequence`` is that of the
    message that says all this, and ``stored`` its time.
    """

    digest: str
    bytes: int
    chunks: str
    count: int
    stored: datetime
    sequence: int


class ArtifactStore:
    """The object store of a library.

    Args:
        client: a connection.
        patience: seconds that each request is tried for.
    """

    def __init__(self, client: Client, patience: float) -> None:
        self._client = client
        self._patience = patience

    async def put(self, path: Path) -> tuple[str, bool]:
        """Store a file, unless it is there and sound.

        Returns:
            Its digest, and whether it was stored now.

        Raises:
            InputError: the file cannot be read, or is larger than `LARGEST`.
            BusError: the store does not take it.
        """
        digest, size = await asyncio.to_thread(_digest, path)
        before = await self._meta(digest)
        after = before.sequence if before is not None else 0
        if before is not None and before.bytes and await self._is_sound(before):
            if (datetime.now(UTC) - before.stored).total_seconds() > FRESH:
                await self._put_meta(digest, before.chunks, size, before.count, after)
            return digest, False
        chunks = secrets.token_hex(11)
        count = await self._put_chunks(path, chunks, digest)
        return digest, await self._put_meta(digest, chunks, size, count, after)

    async def fetch(self, digest: str, destination: Path) -> None:
        """Write an artifact to a file, which is there only once it was found to have this digest.

        Raises:
            ArtifactError: the store lacks it, or what it holds has another digest.
            InputError: the file cannot be written.
            BusError: the bus does not answer.
        """
        found = await self.find(digest)
        if found is None:
            raise ArtifactError(f"the library lacks the artifact {digest}")
        try:
            handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
        except OSError as error:
            raise InputError(f"{destination}: cannot be written ({error.strerror})") from error
        try:
            with os.fdopen(handle, "wb") as file:
                await self.copy(found, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, destination)
        except OSError as error:
            raise InputError(f"{destination}: cannot be written ({error.strerror})") from error
        finally:
            Path(name).unlink(missing_ok=True)

    async def copy(self, found: StoredArtifact, file: IO[bytes]) -> None:
        """Write an artifact into an open file.

        Raises:
            ArtifactError: what came has another digest; it has been written all the same.
            BusError: the bus does not answer.
        """
        await self._stream(found, lambda data: asyncio.to_thread(file.write, data))

    async def find(self, digest: str) -> StoredArtifact | None:
        """What the store says of an artifact, None where it lacks it.

        Raises:
            BusError: the bus does not answer.
        """
        found = await self._meta(digest)
        return found if found is not None and found.bytes else None

    async def list(self) -> dict[str, StoredArtifact]:
        """All artifacts by digest.

        Raises:
            BusError: the bus does not answer.
        """
        found: dict[str, StoredArtifact] = {}
        sequence = 1
        while True:
            message = await next_message(
                self._client, _STREAM, f"$O.{ARTIFACTS}.M.>", sequence, self._patience
            )
            if message is None or int(message.seq) < sequence:
                return {digest: one for digest, one in found.items() if one.bytes}
            one = _read_meta(message)
            if one is not None:
                found[one.digest] = one
            sequence = int(message.seq) + 1

    async def remove(self, one: StoredArtifact) -> None:
        """Take an artifact out of the store; for who may purge it.

        Raises:
            BusError: the bus does not answer, or does not let us.
        """
        await self._purge(_meta_subject(one.digest))
        await self._purge(_chunk_subject(one.chunks))

    async def orphans(self, older_than: float) -> dict[str, int]:
        """Names of chunks that no artifact names and that began to come more than so many seconds ago, each
        with the number of its messages.

        Raises:
            BusError: the bus does not answer.
        """
        info = await steadily(
            _STREAM,
            lambda: jetstream(self._client).stream_info(_STREAM, subjects_filter=f"$O.{ARTIFACTS}.C.>"),
            self._patience,
        )
        named = {one.chunks for one in (await self.list()).values()}
        found = {}
        for subject, count in (info.state.subjects or {}).items():
            chunks = subject.rpartition(".")[2]
            if chunks in named:
                continue
            first = await next_message(self._client, _STREAM, subject, 1, self._patience)
            if first is not None and (datetime.now(UTC) - first.time).total_seconds() > older_than:
                found[chunks] = count
        return found

    async def remove_orphan(self, chunks: str) -> None:
        """Take chunks out that no artifact names; for who may purge the store.

        Raises:
            BusError: the bus does not answer, or does not let us.
        """
        await self._purge(_chunk_subject(chunks))

    async def exists(self) -> bool:
        """Whether there is an object store.

        Raises:
            BusError: the bus does not answer.
        """
        return await stream_info(self._client, _STREAM, self._patience) is not None

    @property
    def _chunk(self) -> int:
        return min(CHUNK, self._client.max_payload - _HEADERS)

    async def _meta(self, digest: str) -> StoredArtifact | None:
        js, subject = jetstream(self._client), _meta_subject(digest)
        try:
            message: Any = await steadily(
                subject, lambda: js.get_msg(_STREAM, subject=subject), self._patience
            )
        except nats.js.errors.NotFoundError:
            return None
        found = _read_meta(message)
        if found is None or found.digest != digest:  # rubbish under its name: put in its place
            return StoredArtifact(digest, 0, "", 0, message.time, int(message.seq or 0))
        return found

    async def _put_chunks(self, path: Path, chunks: str, digest: str) -> int:
        count, seen = 0, hashlib.sha256()
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, self._chunk):
                seen.update(data)
                await publish(
                    self._client,
                    _chunk_subject(chunks),
                    data,
                    f"{chunks}-{count}",
                    patience=self._patience,
                )
                count += 1
        if seen.hexdigest() != digest:
            raise InputError(f"{path}: was changed while it was read")
        return count

    async def _put_meta(self, digest: str, chunks: str, size: int, count: int, after: int) -> bool:
        """Name the chunks; False where another put came between, whose chunks are named then."""
        info = {
            "name": digest,
            "bucket": ARTIFACTS,
            "nuid": chunks,
            "size": size,
            "chunks": count,
            "mtime": datetime.now(UTC).isoformat(),
            "digest": "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode(),
            "options": {"max_chunk_size": self._chunk},
        }
        subject = _meta_subject(digest)
        headers = {
            "Nats-Msg-Id": f"{chunks}-meta-{after}",
            "Nats-Expected-Last-Subject-Sequence": str(after),
            "Nats-Rollup": "sub",
        }
        js, data = jetstream(self._client), json.dumps(info).encode()
        try:
            await steadily(subject, lambda: js.publish(subject, data, headers=headers), self._patience)
        except nats.js.errors.APIError as error:
            found = await self._meta(digest)
            if found is None or not found.bytes:
                raise BusError(f"the store refuses the artifact {digest}: {error.description}") from error
            return found.chunks == chunks
        return True

    async def _is_sound(self, found: StoredArtifact) -> bool:
        try:
            await self._stream(found, lambda _: asyncio.sleep(0))
        except ArtifactError:
            return False
        return True

    async def _stream(self, found: StoredArtifact, sink: Callable[[bytes], Any]) -> None:
        seen, size, sequence = hashlib.sha256(), 0, 1
        while size < found.bytes:
            message = await next_message(
                self._client, _STREAM, _chunk_subject(found.chunks), sequence, self._patience
            )
            if message is None or int(message.seq) < sequence:
                break
            data = message.data or b""
            size, sequence = size + len(data), int(message.seq) + 1
            seen.update(data)
            await sink(data)
        if size != found.bytes or seen.hexdigest() != found.digest:
            raise ArtifactError(
                f"the artifact {found.digest} is broken in the library: {size:,} of {found.bytes:,} bytes "
                f"with the digest {seen.hexdigest()[:16]}"
            )

    async def _purge(self, subject: str) -> None:
        js = jetstream(self._client)
        try:
            await steadily(subject, lambda: js.purge_stream(_STREAM, subject=subject), self._patience)
        except nats.js.errors.APIError as error:
            raise BusError(f"{subject}: cannot be removed: {error.description}") from error


def _meta_subject(digest: str) -> str:
    return f"$O.{ARTIFACTS}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"


def _chunk_subject(chunks: str) -> str:
    return f"$O.{ARTIFACTS}.C.{chunks}"


def _read_meta(message: Any) -> StoredArtifact | None:
    """What a message says of an artifact; None where it makes no sense."""
    try:
        info = json.loads(message.data or b"")
        digest, chunks = str(info["name"]), str(info["nuid"])
        size, count = 0 if info.get("deleted") else int(info["size"]), int(info["chunks"])
        bytes.fromhex(digest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sound = digest == digest.lower() and len(digest) == 64 and chunks.isalnum() and 0 <= size <= LARGEST
    if not sound:
        return None
    return StoredArtifact(digest, size, chunks, count, message.time, int(message.seq))


def _digest(path: Path) -> tuple[str, int]:
    try:
        size = path.stat().st_size
        if not 0 < size <= LARGEST:
            raise InputError(f"{path}: {size:,} bytes; an artifact has 1 to {LARGEST:,}")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
