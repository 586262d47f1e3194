"""The archive: a ustar file that has one form only, so that equal contents are equal bytes.

Names are sorted; owner, time and mode are fixed; what is read is encoded again and compared, so that no other
bytes decode to the same contents. ``tar tf`` reads it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.artifact.guarded import read_bounded, write_atomically
from esper_runtime.contracts import ArtifactError

_BLOCK = 512
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_LONGEST_NAME = 100
_SIZE = slice(124, 135)
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold at most.

    Attributes:
        total_bytes: of the archive.
        files: how many.
    """

    total_bytes: int = 64 * 1024 * 1024
    files: int = 256


def pack(files: Mapping[str, bytes], destination: Path, limits: ArchiveLimits | None = None) -> str:
    """Write the archive of ``files`` (contents by name) in one step, byte for byte the same each time.

    Returns:
        Its SHA-256 in hex.

    Raises:
        ArtifactError: a name, or the whole, is outside the limits, or it cannot be written.
    """
    data = encode_archive(files, limits)
    write_atomically(destination, data, 0o644)
    return hashlib.sha256(data).hexdigest()


def read_archive(path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    """The contents by name of an archive that is *not* checked against a digest or signature.

    For what is to run, use `open_artifact`.

    Raises:
        ArtifactError: it cannot be read, is larger than the limits, or is not in the one allowed form.
    """
    limits = limits or ArchiveLimits()
    return decode_archive(read_bounded(path, limits.total_bytes), limits)


def encode_archive(files: Mapping[str, bytes], limits: ArchiveLimits | None = None) -> bytes:
    """The bytes of the archive of ``files``.

    Raises:
        ArtifactError: a name, the number of files or the size is outside the limits.
    """
    limits = limits or ArchiveLimits()
    names = sorted(files)
    _check_names(names, limits)
    parts = []
    for name in names:
        parts += [_header(name, len(files[name])), files[name], _padding(len(files[name]))]
    data = b"".join([*parts, _END])
    if len(data) > limits.total_bytes:
        raise ArtifactError(f"an archive of {len(data):,} bytes; allowed: {limits.total_bytes:,}")
    return data


def decode_archive(data: bytes, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    """The contents by name.

    Raises:
        ArtifactError: it is not what `encode_archive` makes of these contents, or is outside the limits.
    """
    limits = limits or ArchiveLimits()
    if len(data) > limits.total_bytes:
        raise ArtifactError(f"an archive of {len(data):,} bytes; allowed: {limits.total_bytes:,}")
    files: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + _BLOCK] != _END[:_BLOCK]:
        if len(files) == limits.files:
            raise ArtifactError(f"the archive holds more than {limits.files} files")
        header = data[offset : offset + _BLOCK]
        name, size = _name_and_size(header, offset)
        start = offset + _BLOCK
        offset = start + size + len(_padding(size))
        if offset > len(data):
            raise ArtifactError(f"the archive ends within the file {name!r}")
        in_order = not files or name > next(reversed(files))
        if header != _header(name, size) or any(data[start + size : offset]) or not in_order:
            raise ArtifactError(f"the archive is not in its one allowed form at the file {name!r}")
        files[name] = data[start : start + size]
    if data[offset:] != _END:
        raise ArtifactError("the archive is not in its one allowed form: its end is cut or something follows")
    _check_names(list(files), limits)
    return files


def _check_names(names: list[str], limits: ArchiveLimits) -> None:
    """Refuse names that could lead out of a folder, or that cannot lie in one folder together."""
    if not 1 <= len(names) <= limits.files:
        raise ArtifactError(f"an archive of {len(names)} files; allowed: 1 to {limits.files}")
    known = set(names)
    for name in names:
        if _NAME.fullmatch(name) is None or len(name) > _LONGEST_NAME:
            raise ArtifactError(
                f"the file name {name[:_LONGEST_NAME]!r} cannot stand in an archive: at most "
                f"{_LONGEST_NAME} characters, words of A-Z, a-z, 0-9, '_', '-' and '.' joined by '/', "
                "none beginning with '.'"
            )
        parts = name.split("/")
        for count in range(1, len(parts)):
            if "/".join(parts[:count]) in known:
                raise ArtifactError(f"the archive holds {name!r} and a file of the name of its folder")


def _name_and_size(header: bytes, offset: int) -> tuple[str, int]:
    name, digits = header[:_LONGEST_NAME].rstrip(b"\0"), header[_SIZE]
    if len(header) < _BLOCK or not name or not name.isascii() or re.fullmatch(rb"[0-7]{11}", digits) is None:
        raise ArtifactError(f"not an archive: there is no file header at byte {offset}")
    return name.decode("ascii"), int(digits, 8)


def _header(name: str, size: int) -> bytes:
    """The ustar header of a regular file, mode 0644, owner 0, time 0."""
    fields = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,  # the checksum counts as blanks
        b"0",
        bytes(100),
        b"ustar\00000",
    ]
    header = b"".join(fields).ljust(_BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
