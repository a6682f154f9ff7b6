"""The first figures: what the rooms count anyway, read when somebody scrapes.

Nothing on the hot path knows that it is measured: rooms keep plain numbers, and this collector looks at them. Names follow
Prometheus' conventions. Read next: `halo/net/operators.py`, which serves them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from halo.session import SessionStatus


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its name without `halo_`, what it means, and where it is read."""

    name: str
    help: str
    read: Callable[[], float]
    is_counter: bool = False


class Figures(Collector):
    """Everything that is scraped."""

    def __init__(self, figures: list[Figure], statuses: Callable[[], Iterator[SessionStatus]], faults: Mapping[str, Counter[str]]) -> None:
        self._figures = figures
        self._statuses = statuses
        self._faults = faults

    def collect(self) -> Iterator[Metric]:
        for figure in self._figures:
            family = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
            yield family(f"halo_{figure.name}", figure.help, value=figure.read())
        sessions = GaugeMetricFamily("halo_sessions", "Living sessions of this node by status.", labels=["status"])
        count = Counter(self._statuses())
        for status in SessionStatus:
            if status is not SessionStatus.ENDED:
                sessions.add_metric([status.value], count[status])
        yield sessions
        faults = CounterMetricFamily("halo_connection_faults", "Faults that a connection's guard caught.", labels=["listener", "fault"])
        for listener, counted in self._faults.items():
            for fault, times in counted.items():
                faults.add_metric([listener, fault], times)
        yield faults


def new_registry(figures: Figures) -> CollectorRegistry:
    """A registry of its own: two servers in one process, as in tests, do not meet."""
    registry = CollectorRegistry()
    registry.register(figures)
    return registry
