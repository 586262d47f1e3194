"""The process of a `Fetcher`: so that no work on what arrives takes the interpreter from the training.

It reads a `FetchStart` and then a `FetchOrder` a line from standard input, writes a `FetchNews` a line to
standard output, and ends soon after its input does.
"""

import asyncio
import logging
import os
import sys

from esper_runtime.artifact import KeyRing
from esper_runtime.urza.fetcher import Fetcher
from esper_runtime.urza.shelf import Shelf
from esper_runtime.urza.wanted import FetchNews, FetchOrder, FetchStart

NICE = 5
LONGEST_LINE = 256 * 1024 * 1024


def main() -> None:
    """Serve the process that has started this one."""
    os.nice(NICE)
    logging.basicConfig(level=logging.INFO, handlers=[_Told()])
    try:
        asyncio.run(_serve())
    except BrokenPipeError:  # whom it served has ended
        os._exit(0)


async def _serve() -> None:
    lines = asyncio.StreamReader(limit=LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer
    )
    first = await lines.readline()
    if not first:
        return
    start = FetchStart.model_validate_json(first)
    fetcher = Fetcher(start, Shelf(start.home), KeyRing(start.home).trust, _tell)
    closing = asyncio.Event()
    serving = asyncio.create_task(fetcher.serve(closing))
    while line := await lines.readline():
        fetcher.obey(FetchOrder.model_validate_json(line))
    closing.set()
    await serving


def _tell(news: FetchNews) -> None:
    sys.stdout.write(news.model_dump_json(by_alias=True, exclude_defaults=True) + "\n")
    sys.stdout.flush()


class _Told(logging.Handler):
    """Has what is logged here logged by whom this process serves."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        _tell(FetchNews(level=record.levelno, said=self.format(record)))


if __name__ == "__main__":
    main()
