"""What one process measures: a histogram for each figure, second by second and over all, and counters. PURE.

A second is closed when the next one begins, and told as text that other processes' seconds can be added to. It must never forget a slow
second: each is kept with its own histogram until it was told. Read next: `halo/load/orders.py`, the form in which it travels.
"""

from collections import Counter
from typing import Final

from halo.load.hdr import Hdr
from halo.load.orders import Second

TO_US: Final = 1_000_000


class Meter:
    """Everything that happened so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._whole: dict[str, Hdr] = {}
        self._now: dict[str, Hdr] = {}
        self._told: Counter[str] = Counter()

    def observe(self, figure: str, seconds: float) -> None:
        """Something took so long."""
        histogram = self._now.get(figure)
        if histogram is None:
            histogram = self._now[figure] = Hdr()
        histogram.record(int(seconds * TO_US))

    def close_second(self, at: float) -> Second:
        """What happened since the last call, `at` seconds from the start; it is part of the whole from now on."""
        done, self._now = self._now, {}
        for figure, histogram in done.items():
            self._whole.setdefault(figure, Hdr()).add(histogram)
        counts = {name: count - self._told[name] for name, count in self.counts.items() if count != self._told[name]}
        self._told = Counter(self.counts)
        return Second(
            at=at, counts=counts, histograms={figure: histogram.encoded() for figure, histogram in done.items()}
        )

    def whole(self) -> dict[str, str]:
        """All closed seconds together, encoded."""
        return {figure: histogram.encoded() for figure, histogram in self._whole.items()}
