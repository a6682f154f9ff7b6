"""A histogram in plain numbers: how often something took at most so long, for who cannot afford more than a fraction of a microsecond.

One bisection and two additions, no lock, no label, no library: everything runs in one thread. Each room keeps its own, as it keeps its
counters; `halo/metrics.py` reads them when somebody scrapes. It must never forget: Prometheus reckons with sums that only grow. Pure.
Read next: `halo/metrics.py`.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import Final, TypeAlias

Bounds: TypeAlias = tuple[float, ...]

LATENCY_BOUNDS_SECONDS: Final[Bounds] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""From a commit on a quiet machine to the longest that any store is waited for; 20 ms and 200 ms are goals and limits, so they are bounds."""
LATENESS_BOUNDS_SECONDS: Final[Bounds] = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""A deadline is acted upon within a second; after an outage it may be much later."""
PATIENCE_BOUNDS_SECONDS: Final[Bounds] = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0)
"""What waits for people: offers are open for half a minute, and a few waves may follow one another."""
BATCH_BOUNDS: Final[Bounds] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Both the journal's batch and a mailbox end at about 500."""


class Histogram:
    """Counts by bucket, and the sum; a value equal to a bound belongs to that bound."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Bounds = LATENCY_BOUNDS_SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them: `(le, count)`."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._counts), strict=True)]
