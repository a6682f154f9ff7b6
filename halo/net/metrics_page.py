"""The page that Prometheus reads, written family by family so that a scrape stops nobody for longer than one of them takes.

Ten thousand sessions are counted in some milliseconds, and writing a thousand lines takes as long: in one piece that would be a pause
that people feel. What is read last is a moment younger than what was read first, which no query can tell. Read next:
`halo/metrics.py`.
"""

from collections.abc import Iterable

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector


class _Family(Collector):
    """One family as the only content of a page."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


async def write_page(registry: CollectorRegistry) -> bytes:
    """All that the registry shows, in Prometheus' text form."""
    pieces = []
    for metric in registry.collect():
        pieces.append(generate_latest(_Family(metric)))
        await trio.lowlevel.checkpoint()
    return b"".join(pieces)
