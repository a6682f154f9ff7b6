"""When somebody speaks: moments of intention, in seconds from the start, decided before anything is sent. PURE.

In the open loop the next moment comes whatever the server does, so that a server that stalls meets the same people as one that does not,
and its stall is counted. It must never look at the clock. Read next: `halo/load/speech.py`, which keeps to it.
"""

import math
import random
from collections.abc import Iterator
from typing import Final

DAY_HOURS: Final = 24
_HUMPS: Final = ((12.5, 2.2, 0.55), (20.5, 2.6, 1.0))
"""`(hour, width in hours, height)`: people talk at lunch and far more in the evening."""
_NIGHT: Final = 0.06
"""Of the evening's rate; somebody is always awake."""


def poisson(per_second: float, seconds: float, dice: random.Random) -> Iterator[float]:
    """Moments at a steady rate, as independent people make them."""
    at = dice.expovariate(per_second)
    while at < seconds:
        yield at
        at += dice.expovariate(per_second)


def day(peak_per_second: float, seconds: float, dice: random.Random) -> Iterator[float]:
    """A whole day from midnight to midnight within `seconds`: `peak_per_second` in the evening, next to nothing at night."""
    for at in poisson(peak_per_second, seconds, dice):
        if dice.random() < activity(at / seconds * DAY_HOURS):
            yield at


def activity(hour: float) -> float:
    """How busy an hour of the day is, 0 to 1."""
    busy = sum(height * math.exp(-((_apart(hour, middle) / width) ** 2) / 2) for middle, width, height in _HUMPS)
    return min(1.0, _NIGHT + (1 - _NIGHT) * busy)


def _apart(hour: float, middle: float) -> float:
    """The way round the clock may be the shorter one."""
    straight = abs(hour - middle)
    return min(straight, DAY_HOURS - straight)


def rush(count: int, window_seconds: float, dice: random.Random) -> list[float]:
    """So many within one window, evenly by chance: `window_seconds` 0 means all in the same instant."""
    return sorted(dice.uniform(0.0, window_seconds) for _ in range(count))


def beats(count: int, interval_seconds: float, seconds: float) -> Iterator[tuple[float, int]]:
    """`(moment, who)`: each of `count` beats every `interval_seconds`, all spread evenly over it."""
    rounds = math.ceil(seconds / interval_seconds)
    for number in range(rounds):
        for who in range(count):
            at = (number + who / count) * interval_seconds
            if at >= seconds:
                return
            yield at, who
