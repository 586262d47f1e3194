"""Where the ranks of all pods meet: the first pod's name, which DNS may not know for some seconds."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from esper_runtime.contracts import InputError

PORT = 29400
NAME_SECONDS = 120.0
"""How long the first pod's own name may take to be known in the cluster's DNS."""
LISTENING_SECONDS = 600.0
"""How long the first pod may take to be scheduled, to fetch its image and to listen."""
_TRY_SECONDS, _SAY_SECONDS = 2.0, 30.0


@dataclass(frozen=True)
class Master:
    """Host and port at which rank 0 waits for the others."""

    host: str
    port: int = PORT

    @classmethod
    def named(cls, text: str) -> Self:
        """From ``HOST`` or ``HOST:PORT``.

        Raises:
            InputError: it is neither.
        """
        host, colon, port = text.partition(":")
        if not host or (colon and not (port.isdigit() and 0 < int(port) < 65536)):
            raise InputError(f"ESPER_MASTER is {text!r}; a host name is expected, or HOST:PORT")
        return cls(host, int(port) if colon else PORT)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def wait(self, first: bool, look: Callable[[float], bool], say: Callable[[str], None]) -> bool:
        """Wait until the name is known, and for the other pods until somebody listens there.

        Args:
            first: whether this is the pod that is to listen.
            look: waits for so many seconds at most; True where this pod is told to stop.
            say: prints a line.

        Returns:
            Whether it came about; False where time is over, or this pod is told to stop.
        """
        began = time.monotonic()
        said = began - _SAY_SECONDS + _TRY_SECONDS
        while True:
            try:
                if first:
                    socket.getaddrinfo(self.host, self.port)
                else:
                    socket.create_connection((self.host, self.port), _TRY_SECONDS).close()
                return True
            except OSError as error:
                why = error.strerror or str(error)
            now = time.monotonic()
            if now - began > (NAME_SECONDS if first else LISTENING_SECONDS):
                say(f"{self}: {why}; given up after {now - began:.0f} s")
                return False
            if now - said >= _SAY_SECONDS:
                said = now
                say(f"waiting for the first pod at {self} ({why})")
            if look(min(_TRY_SECONDS, 0.2 + (now - began) / 10)):
                return False
