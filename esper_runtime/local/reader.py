"""Who reads what a run says may go away: a terminal that is closed, `head` at the end of a pipe."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import IO

_GONE = (errno.EIO, errno.EPIPE)


@contextlib.contextmanager
def outliving_the_reader(stream: IO[str]) -> Iterator[None]:
    """Inside, ``stream`` may be written to; where its reader is gone, all that follows goes nowhere."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
