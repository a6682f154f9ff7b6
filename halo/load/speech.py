"""The two ways to speak: at intended moments whatever the server does (open loop), or when the last was answered (closed loop).

In the open loop latency counts from the intention: a server that stalls for a second owes that second to everybody who would have spoken
in it. Our own lateness is measured beside it, so that it is not taken for the server's. Read next: `halo/load/chats.py`.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from halo.load.meter import Meter
from halo.load.ticker import open_ticker

T = TypeVar("T")

AT_ONCE: Final = 64
"""Overdue messages before others have their turn: about a millisecond."""
PULSE_SECONDS: Final = 0.02
"""Fifty looks a second at our own lateness: 0.1 % of a core."""


async def speak_at(
    moments: Iterable[tuple[float, T]], start: float, speak: Callable[[T, float], None], meter: Meter
) -> None:
    """`speak(who, intended moment)` at each of the moments, in seconds from `start`.

    What is overdue is said at once, some in one go: a loop that is busy with a thousand handshakes comes round too seldom for one at a time.
    """
    in_one_go = 0
    with open_ticker() as ticker:
        for offset, who in moments:
            due = start + offset
            in_one_go = in_one_go + 1 if due <= time.monotonic() else 0
            if in_one_go % AT_ONCE == 0:
                await ticker.sleep_until(due)
            meter.observe("send", time.monotonic() - due)
            speak(who, due)


async def watch_lateness(meter: Meter) -> None:
    """How late this process' own loop is, until cancelled."""
    with open_ticker() as ticker:
        due = time.monotonic()
        while True:
            due = max(due + PULSE_SECONDS, time.monotonic())
            await ticker.sleep_until(due)
            meter.observe("lateness", time.monotonic() - due)
