"""The only clock. A moment is an integer: milliseconds since 1970, UTC.

Integers keep the pure rooms exact (minutes are money), cheap to compare and easy to generate in tests. Nothing else in halo
may ask the operating system for the time of day; whoever needs it is handed a `Clock`. Read next: `halo/session.py`.
"""

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol, TypeAlias

Moment: TypeAlias = int
"""Milliseconds since 1970-01-01T00:00:00Z."""


class Clock(Protocol):
    """Whoever can say what time it is."""

    def now(self) -> Moment: ...


class SystemClock:
    """The node's own UTC clock, which decides (spec 1 B: "which clock decides?")."""

    def now(self) -> Moment:
        return time.time_ns() // 1_000_000


@lru_cache(maxsize=1024)  # everything that is committed together carries the same moment
def rfc3339(moment: Moment) -> str:
    """`2026-11-23T20:15:00.123Z`: UTC with milliseconds, the only form of a moment on the wire."""
    seconds, milliseconds = divmod(moment, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=64)  # moments come close together, and `strftime` is most of the price
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def rfc3339_or_none(moment: Moment | None) -> str | None:
    """The same for moments that may not have come yet."""
    return None if moment is None else rfc3339(moment)
