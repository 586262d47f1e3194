"""What others see of the operator: whether it lives and is ready, its metrics, and logs in JSON."""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

STUCK_SECONDS = 120.0
"""A key that waits or is worked on for longer means that something hangs."""


class PassMetrics:
    """How long passes take."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "esper_operator_pass_seconds",
            "A pass over one resource, without its wait in the queue.",
            ["kind"],
            buckets=(0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
            registry=self.registry,
        )


class Figures:
    """A collector of what the operator knows of itself at the moment of a scrape.

    Args:
        gauges: name, help, and what gives the value.
        counters: the same for what only grows.
        calls: API calls by verb, kind and HTTP status.
        phases: runs by phase.
    """

    def __init__(
        self,
        gauges: Iterable[tuple[str, str, Callable[[], float]]],
        counters: Iterable[tuple[str, str, Callable[[], float]]],
        calls: Callable[[], dict[tuple[str, str, int], int]],
        phases: Callable[[], dict[str, int]],
    ) -> None:
        self._gauges, self._counters = tuple(gauges), tuple(counters)
        self._calls, self._phases = calls, phases

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        for name, text, value in self._gauges:
            yield GaugeMetricFamily(name, text, value=value())
        for name, text, value in self._counters:
            yield CounterMetricFamily(name, text, value=value())
        calls = CounterMetricFamily(
            "esper_operator_api_calls", "Calls of the Kubernetes API.", labels=["verb", "kind", "code"]
        )
        for (verb, kind, code), count in self._calls().items():
            calls.add_metric([verb, kind, str(code)], count)
        yield calls
        runs = GaugeMetricFamily("esper_operator_runs", "Runs by phase.", labels=["phase"])
        for phase, count in self._phases().items():
            runs.add_metric([phase], count)
        yield runs


class HealthServer:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics``.

    Args:
        port: to listen on; 0 for any that is free.
        registry: of the metrics.
        ailments: what is wrong, in words; nothing where all is well.
        is_ready: whether the operator waits for its Lease or has it.
    """

    def __init__(
        self,
        port: int,
        registry: CollectorRegistry,
        ailments: Callable[[], list[str]],
        is_ready: Callable[[], bool],
    ) -> None:
        self.port = port
        self._registry, self._ailments, self._is_ready = registry, ailments, is_ready
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, port=self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Listen no longer."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        wrong = self._ailments()
        return web.Response(text="\n".join(wrong) or "ok", status=503 if wrong else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._is_ready()
        return web.Response(text="ok" if ready else "starting", status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        data = generate_latest(self._registry)
        return web.Response(body=data, headers={"Content-Type": CONTENT_TYPE_LATEST})


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_in_json(level: int = logging.INFO) -> None:
    """Have the whole process log so, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.ERROR)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
