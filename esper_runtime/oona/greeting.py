"""The first words with a NATS server, spoken without a client: is it there, ours, and does it let us in?"""

import json
import socket
from dataclasses import dataclass

from esper_runtime.oona.address import BusAddress


@dataclass(frozen=True)
class Greeting:
    """What a server said of itself, and whether it accepted the address's token or password."""

    name: str
    version: str
    jetstream: bool
    accepted: bool


def greet(address: BusAddress, timeout: float = 1.0) -> Greeting | None:
    """Connect in plain TCP, read INFO, show token or password, wait for PONG.

    Args:
        address: of a server without TLS.
        timeout: for each word, in seconds.

    Returns:
        None where nothing listens there, or what listens is no NATS server.
    """
    host, port = address.url.removeprefix("nats://").rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout) as connection:
            lines = connection.makefile("rwb")
            word, _, text = lines.readline().partition(b" ")
            if word != b"INFO":
                return None
            info = json.loads(text)
            hello = {"verbose": False, "pedantic": False, "lang": "python"} | _secret(address)
            lines.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
            lines.flush()
            accepted = lines.readline().strip() == b"PONG"
    except (OSError, ValueError):
        return None
    return Greeting(
        str(info.get("server_name", "")), str(info.get("version", "")), bool(info.get("jetstream")), accepted
    )


def _secret(address: BusAddress) -> dict[str, str | None]:
    if address.user is not None:
        return {"user": address.user, "pass": address.password}
    return {"auth_token": address.token}
