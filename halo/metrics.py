"""The first figures: what the rooms count anyway, read when somebody scrapes.

Nothing on the hot path knows that it is measured: rooms keep plain numbers, and this collector looks at them. Names follow
Prometheus' conventions. Read next: `halo/net/operators.py`, which serves them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from halo.session import SessionStatus
from halo.sweep import SweepReport


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its name without `halo_`, what it means, and where it is read."""

    name: str
    help: str
    read: Callable[[], float]
    is_counter: bool = False


class Figures(Collector):
    """Everything that is scraped."""

    def __init__(
        self,
        figures: list[Figure],
        statuses: Callable[[], Iterator[SessionStatus]],
        faults: Mapping[str, Counter[str]],
        sweeps: Callable[[], Sequence[SweepReport]],
    ) -> None:
        self._figures = figures
        self._statuses = statuses
        self._faults = faults
        self._sweeps = sweeps

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
        faults = CounterMetricFamily(
            "halo_connection_faults", "Faults that a connection's guard caught.", labels=["listener", "fault"]
        )
        for listener, counted in self._faults.items():
            for fault, times in counted.items():
                faults.add_metric([listener, fault], times)
        yield faults
        yield from _sweep_metrics(self._sweeps())


def _sweep_metrics(reports: Sequence[SweepReport]) -> Iterator[Metric]:
    runs = CounterMetricFamily("halo_sweep_runs", "Runs of each sweep.", labels=["sweep"])
    failures = CounterMetricFamily("halo_sweep_failures", "Runs with an error.", labels=["sweep"])
    ended = GaugeMetricFamily("halo_sweep_last_run_timestamp_seconds", "When the last run ended.", labels=["sweep"])
    duration = GaugeMetricFamily("halo_sweep_duration_seconds", "How long the last run took.", labels=["sweep"])
    rows = GaugeMetricFamily("halo_sweep_rows", "What the last run wrote.", labels=["sweep"])
    waits = GaugeMetricFamily("halo_sweep_waits", "1 while it sets nobody offline for now.", labels=["sweep", "for"])
    found = GaugeMetricFamily("halo_sweep_found", "What the last run found, by kind.", labels=["sweep", "kind"])
    for report in reports:
        runs.add_metric([report.name], report.runs)
        failures.add_metric([report.name], report.failures)
        duration.add_metric([report.name], report.duration_ms / 1000)
        rows.add_metric([report.name], report.rows)
        if report.last_run_at is not None:
            ended.add_metric([report.name], report.last_run_at / 1000)
        if report.waits_for is not None:
            waits.add_metric([report.name, report.waits_for], 1)
        for kind, count in report.found.items():
            found.add_metric([report.name, kind], count)
    yield from (runs, failures, ended, duration, rows, waits, found)


def new_registry(figures: Figures) -> CollectorRegistry:
    """A registry of its own: two servers in one process, as in tests, do not meet."""
    registry = CollectorRegistry()
    registry.register(figures)
    return registry
