"""What a scrape shows: figures, tallies by label and distributions, each read from where its room keeps it anyway.

Nothing on the hot path knows that it is measured: rooms keep plain numbers and plain histograms, and this collector looks at them. Names
follow Prometheus' conventions: `halo_`, base units at the end, `_total` where it only grows, a sentence for each. Labels are words from a
closed set, never an id, a path or anything that a client chose. Read next: `halo/figures.py`, the list; `halo/reports.py`, what rooms
report as a whole; `halo/net/metrics_page.py`, which serves them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from halo.histogram import Histogram

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its name without `halo_`, what it means, and where it is read."""

    name: str
    help: str
    read: Callable[[], float]
    is_counter: bool = False

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        yield family(f"halo_{self.name}", self.help, value=self.read())


@dataclass(frozen=True, slots=True)
class Tally:
    """One number for each combination of labels."""

    name: str
    help: str
    labels: Labels
    read: Callable[[], Iterable[tuple[Labels, float]]]
    is_counter: bool = True

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        metric = family(f"halo_{self.name}", self.help, labels=self.labels)
        for values, number in self.read():
            metric.add_metric(values, number)
        yield metric


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram, or one for each combination of labels."""

    name: str
    help: str
    read: Callable[[], Iterable[tuple[Labels, Histogram]]]
    labels: Labels = ()

    def collect(self) -> Iterator[Metric]:
        metric = HistogramMetricFamily(f"halo_{self.name}", self.help, labels=self.labels)
        for values, histogram in self.read():
            metric.add_metric(values, buckets=histogram.buckets(), sum_value=histogram.sum)
        yield metric


@dataclass(frozen=True, slots=True)
class Report:
    """What a room tells as a whole."""

    collect: Callable[[], Iterator[Metric]]


Source: TypeAlias = Figure | Tally | Distribution | Report


def one(histogram: Histogram) -> Callable[[], Iterable[tuple[Labels, Histogram]]]:
    """For a distribution without labels."""
    return lambda: [((), histogram)]


def counted(counts: Mapping[str, float]) -> Callable[[], Iterable[tuple[Labels, float]]]:
    """For a tally by one label."""
    return lambda: [((word,), number) for word, number in counts.items()]


class Figures(Collector):
    """Everything that is scraped."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    def collect(self) -> Iterator[Metric]:
        """One source after the other; a room may be read some time after the one before."""
        for source in self._sources:
            yield from source.collect()


def new_registry(figures: Figures) -> CollectorRegistry:
    """A registry of its own: two servers in one process, as in tests, do not meet."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)
    ProcessCollector(registry=registry)
    return registry
