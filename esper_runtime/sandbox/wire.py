"""Messages between a program and its warm process: a JSON header and byte strings, over a socket."""

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

_LENGTH: Final = struct.Struct("=Q")


def send(channel: socket.socket, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one message.

    Raises:
        OSError: where the other end is gone.
    """
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    channel.sendall(_LENGTH.pack(len(text)) + text)
    for blob in blobs:
        channel.sendall(blob)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[bytes]] | None:
    """The next message, or None where the other end was closed.

    Raises:
        TimeoutError: where the socket has a timeout and it is over.
    """
    head = _exactly(channel, _LENGTH.size)
    if head is None:
        return None
    text = _exactly(channel, _LENGTH.unpack(head)[0])
    if text is None:
        return None
    header: dict[str, Any] = json.loads(text)
    blobs = []
    for size in header.pop("sizes"):
        blob = _exactly(channel, size)
        if blob is None:
            return None
        blobs.append(blob)
    return header, blobs


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = channel.recv_into(view[got:])
        if count == 0:
            return None
        got += count
    return bytes(data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data`` to a pipe."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
