"""How the library stands, as metrics: few series, none per kernel, target or namespace."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from esper_operator.library import ForgeOffice
from esper_runtime.contracts import KernelState
from esper_runtime.urza import Fault

_OF_RUNS = ("malformed wish", "misplaced wish", "too many wishes", "malformed report")


class LibraryMetrics:
    """A collector of what the office knows at the moment of a scrape.

    Args:
        office: that plans.
    """

    def __init__(self, office: ForgeOffice) -> None:
        self._office = office

    def collect(self) -> Iterable[Metric]:
        """The metrics now; what is not known is left out."""
        office = self._office
        yield GaugeMetricFamily(
            "esper_operator_library_ready", "1 while the library can be read.", value=float(office.ready)
        )
        kernels = GaugeMetricFamily("esper_operator_kernels", "Kernels by state.", labels=["state"])
        counted = Counter(record.state for record in office.records().values())
        for state in KernelState:
            kernels.add_metric([state.value], counted[state])
        yield kernels
        living = sum(entry.archived is None for entry in office.blueprints().values())
        text = "Blueprints that are not archived."
        yield GaugeMetricFamily("esper_operator_blueprints", text, value=living)
        depths = office.depths()
        if depths is not None:
            items = GaugeMetricFamily(
                "esper_operator_forge_items", "Work that waits or is done, by kind.", labels=["work"]
            )
            for work in ("compile", "evaluate", "generate"):
                items.add_metric([work], sum(n for (kind, _), n in depths.items() if kind == work))
            yield items
        refused = GaugeMetricFamily(
            "esper_operator_refused_proposals",
            "Blueprints that Karn proposed and that were not entered, of those that are kept.",
            labels=["reason"],
        )
        for reason, number in sorted(office.refused_proposals().items()):
            refused.add_metric([reason], number)
        yield refused
        ignored = CounterMetricFamily(
            "esper_operator_ignored_words",
            "Words in the library that do not count, and what runs said for it and was not carried.",
            labels=["reason"],
        )
        for fault in Fault:
            ignored.add_metric([fault.value], office.ignored[fault])
        for reason in _OF_RUNS:
            ignored.add_metric([reason], office.ignored_of_runs[reason])
        yield ignored
