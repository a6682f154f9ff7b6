"""Intended moments are kept, and what is late is known."""

import time

import trio

from halo.load.hdr import Hdr
from halo.load.meter import Meter
from halo.load.speech import speak_at, watch_lateness
from halo.load.ticker import open_ticker


async def test_a_ticker_never_wakes_early_and_passes_what_is_over() -> None:
    with open_ticker() as ticker:
        for ahead in (0.0, 0.0002, 0.003, -1.0):
            moment = time.monotonic() + ahead
            await ticker.sleep_until(moment)
            assert time.monotonic() >= moment - 0.000_06


async def test_everybody_speaks_in_turn_with_the_intended_moment() -> None:
    meter, spoken = Meter(), []
    start = time.monotonic()
    planned = [(0.0, "a"), (0.002, "b"), (0.004, "c")]
    await speak_at(planned, start, lambda who, due: spoken.append((who, due)), meter)
    assert spoken == [("a", start), ("b", start + 0.002), ("c", start + 0.004)]
    assert Hdr.decoded(meter.close_second(1.0).histograms["send"]).total == 3


async def test_a_stall_of_our_own_is_counted_as_ours() -> None:
    meter = Meter()
    start = time.monotonic()

    def stall(who: int, due: float) -> None:
        if who == 0:
            time.sleep(0.05)  # what a busy machine does to the harness

    await speak_at([(0.0, 0), (0.01, 1)], start, stall, meter)
    assert Hdr.decoded(meter.close_second(1.0).histograms["send"]).highest >= 40_000


async def test_the_loops_own_lateness_is_seen() -> None:
    meter = Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_lateness, meter)
        await trio.sleep(0.05)
        time.sleep(0.1)  # noqa: ASYNC251  # the stall that is to be seen
        await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert Hdr.decoded(meter.close_second(1.0).histograms["lateness"]).highest >= 70_000
