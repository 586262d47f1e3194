"""The service as a process: signals, the status server, and the event loop around it."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from esper_runtime.nissa import StatusServer
from esper_runtime.oona import BusAddress
from esper_runtime.tamiyo.service.answering import ControllerService
from esper_runtime.tamiyo.service.metrics import ServiceMetrics

_log = logging.getLogger(__name__)


def serve(
    address: BusAddress,
    listen: tuple[str, int] | None = None,
    concurrency: int = 2,
    on_listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Decide for the runs on a bus until SIGTERM or SIGINT; then finish what was taken.

    The bus may be away at the start and at any time; it is tried again for as long as it takes.

    Args:
        address: of the bus.
        listen: host and port of ``/healthz`` and ``/metrics``; None for no such server.
        concurrency: questions that are worked on at the same time.
        on_listening: told the URL of the status server.

    Raises:
        InputError: the address to listen at cannot be used.
    """
    asyncio.run(_serve(address, listen, concurrency, on_listening))


async def _serve(
    address: BusAddress,
    listen: tuple[str, int] | None,
    concurrency: int,
    on_listening: Callable[[str], None],
) -> None:
    metrics = ServiceMetrics()
    service = ControllerService(address, metrics, concurrency)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    with contextlib.ExitStack() as stack:
        if listen is not None:
            status = stack.enter_context(StatusServer(*listen, service.problem, metrics.text))
            on_listening(f"http://{status.host}:{status.port}")
        await service.run()
    _log.info("ended in order")
