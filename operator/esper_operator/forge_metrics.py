"""How the forge's workers stand, as metrics: few series, by role and pool."""

from collections.abc import Iterable

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from esper_operator.forge import Forge


class ForgeMetrics:
    """A collector of what is known at the moment of a scrape.

    Args:
        forge: that keeps the workers.
    """

    def __init__(self, forge: Forge) -> None:
        self._forge = forge

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        workers = GaugeMetricFamily(
            "esper_operator_workers", "Workers that wait for a node or run.", labels=["role", "pool"]
        )
        for (role, pool), count in sorted(self._forge.workers.going().items()):
            workers.add_metric([role, pool], count)
        yield workers
        unserved = len(self._forge.places().unserved)
        text = "Targets with work that no pool serves."
        yield GaugeMetricFamily("esper_operator_unserved_targets", text, value=unserved)
