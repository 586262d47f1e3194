"""Other bytes that decode to the same values: of archives, JSON, Base64 and signatures."""

import io
import json
import tarfile
from collections.abc import Iterator

from esper_runtime.artifact import decode_archive, encode_archive

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the curve's group: s and s + L would be the same signature to a careless verifier."""


def other_archives(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Archives with the same contents in other bytes."""
    files = decode_archive(data)
    for change in ("mode", "time", "owner", "user", "order", "pax", "gnu"):
        buffer = io.BytesIO()
        form = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}.get(change, tarfile.USTAR_FORMAT)
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name in sorted(files, reverse=change == "order"):
                info = tarfile.TarInfo(name)
                info.size = len(files[name])
                info.mode = 0o600 if change == "mode" else 0o644
                info.mtime = {"time": 1, "pax": 0.5}.get(change, 0)
                info.uid = int(change == "owner")
                info.uname = "me" if change == "user" else ""
                archive.addfile(info, io.BytesIO(files[name]))
        yield f"tar {change}", buffer.getvalue()
    yield "padded", data + bytes(512)
    yield "without its end", data[:-512]
    yield "with a remark behind it", data + b"x"
    for name in ("manifest.json", "blueprint.json"):
        for change, text in other_json(files[name]):
            yield f"{name} {change}", encode_archive(files | {name: text})


def other_json(data: bytes) -> Iterator[tuple[str, bytes]]:
    """JSON of equal value in other bytes."""
    value = json.loads(data)
    yield "with spaces", json.dumps(value, sort_keys=True).encode()
    yield "in another order", json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode()
    yield "with a line end", data + b"\n"
    first = next(iter(value))
    yield (
        "with an escape",
        data.replace(f'"{first}"'.encode(), f'"\\u{ord(first[0]):04x}{first[1:]}"'.encode(), 1),
    )
    yield "with a field twice", b'{"' + first.encode() + b'":0,' + data[1:]
    yield "with a mark", b"\xef\xbb\xbf" + data


def spare_bits(value: str) -> list[str]:
    """Base64 texts of the same bytes."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = letters.index(value[85])
    return [value[:85] + letters[last ^ bits] + "==" for bits in range(1, 16)]
