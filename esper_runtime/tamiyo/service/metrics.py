"""What a service tells Prometheus of itself."""

from collections import OrderedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

DECISION_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
KNOWN_RUNS = 10_000
"""Runs that are told apart when they are counted; of more the earliest are forgotten."""


class ServiceMetrics:
    """Counters of one service process, in a registry of their own. Label values are fixed words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "esper_tamiyo"
        self.decisions = Counter(
            f"{name}_decisions", "Answers published, by what they hold.", ["kind"], registry=self.registry
        )
        self.refused = Counter(
            f"{name}_refused_questions",
            "Questions not answered: malformed, or undecidable (the controller could not work with them).",
            ["why"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            f"{name}_decision_seconds",
            "From a question's arrival to its published answer.",
            buckets=DECISION_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            f"{name}_questions_in_flight", "Questions taken and not answered yet.", registry=self.registry
        )
        self.runs = Gauge(
            f"{name}_runs_seen", "Runs that asked since the service started.", registry=self.registry
        )
        self.connected = Gauge(
            f"{name}_bus_connected", "1 while the bus is connected, else 0.", registry=self.registry
        )
        for kind in ("nothing", "trials", "directives"):
            self.decisions.labels(kind)
        for why in ("malformed", "undecidable", "unsent"):
            self.refused.labels(why)
        self._known: OrderedDict[str, None] = OrderedDict()

    def saw(self, run: str) -> None:
        """Count a run once."""
        if run in self._known:
            return
        self._known[run] = None
        self.runs.inc()
        if len(self._known) > KNOWN_RUNS:
            self._known.popitem(last=False)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
