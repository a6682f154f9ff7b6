"""`halo serve` whose histograms can be silenced, for whoever wants to know what they cost: SIGUSR1 silences them, SIGUSR2 wakes them.

Only the measurement runs this; halo itself has no such switch, since one more branch on the way of a message would cost what it saves.
Read next: `scripts/measuring/metrics.py`.
"""

import signal
from collections.abc import Callable
from typing import Any

import trio_asyncio  # noqa: F401 - before psycopg, as in halo/cli.py

from halo.cli import main
from halo.histogram import Histogram


def silence(histogram: Histogram, value: float) -> None:
    """Observe nothing."""


def install() -> None:
    observe: Callable[[Histogram, float], None] = Histogram.observe

    def switch(number: int, _: Any) -> None:
        setattr(Histogram, "observe", silence if number == signal.SIGUSR1 else observe)  # noqa: B010 - a method, on purpose

    signal.signal(signal.SIGUSR1, switch)
    signal.signal(signal.SIGUSR2, switch)


if __name__ == "__main__":
    install()
    main()
