"""What the metrics cost: the way of a message with histograms and without, in turns, and what a scrape does to everybody else.

One server, one load; its histograms are silenced and woken by turns (off on, on off, …), so that what the machine does beside it falls on
both. The ratio is that of two neighbouring rounds. Two readings of a clock and two empty calls a message remain while they are
silenced; the last figure times all of it by itself and does not depend on the load. Read next: `scripts/measuring/switched.py`.
"""

import os
import signal
import timeit
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final

import httpx
import trio

from halo.histogram import BATCH_BOUNDS, Histogram
from halo.server import open_server
from halo.settings import Settings
from scripts.measuring.crowd import CrowdProcess, open_crowd
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.messages import PAIRS, WARM_UP_SECONDS, read, require_same, round_of
from scripts.measuring.mirror import Pauses
from scripts.measuring.sessions import MESSAGES_BEFORE, count_messages, insert_living_sessions, require_whole
from scripts.measuring.theatre import UNLIMITED, Theatre, open_theatre

PROGRAM: Final = ("-m", "scripts.measuring.switched", "serve")
ROUNDS: Final = 9
"""Pairs of rounds; the median of fewer would be luck on a machine that does other things."""
SECONDS: Final = 4.0
SESSIONS: Final = 10_000
SCRAPES: Final = 9
GOAL_RATIO: Final = 1.03
GOAL_PAUSE_MS: Final = 20.0
TIMED: Final = 200_000
SETTLE_SECONDS: Final = 3.0


class SwitchDidNotWork(Exception):
    """The histograms moved while they were to be silent, or stood still while they were to move."""


async def measure(
    say: Callable[[str], None], rounds: int = ROUNDS, seconds: float = SECONDS, sessions: int = SESSIONS
) -> Measurement:
    on, off = await _talk(say, rounds, seconds)
    pauses, quiet, took, size = await _scrape(say, sessions)
    return Measurement(
        title="Metrics",
        figures=(
            Figure(
                name="CPU of the server a message, with metrics to without",
                unit="ratio",
                rounds=tuple(with_ / without for with_, without in zip(on, off, strict=True)),
                goal=GOAL_RATIO,
            ),
            Figure(name="CPU of the server a message, with metrics", unit="µs", rounds=tuple(on)),
            Figure(name="CPU of the server a message, without", unit="µs", rounds=tuple(off)),
            Figure(name="all that is observed of a message, by itself", unit="µs", rounds=_observing_us()),
            Figure(name="longest pause during a scrape", unit="ms", rounds=tuple(pauses), goal=GOAL_PAUSE_MS),
            Figure(name="longest pause beside, as long", unit="ms", rounds=tuple(quiet)),
            Figure(name="time of a scrape", unit="ms", rounds=tuple(took)),
        ),
        notes=(
            f"{PAIRS} pairs, one message in flight each way, {rounds} pairs of rounds of {seconds:g} s, each with and without in turn.",
            f"Scrapes of {size / 1000:.0f} KB with {sessions:,} living sessions on the node; asker and server share one process.",
        ),
    )


async def _talk(say: Callable[[str], None], rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """CPU a message in µs, with and without."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    async with open_theatre(PROGRAM) as theatre:
        sessions = await theatre.prepare(partial(insert_living_sessions, count=PAIRS))
        await theatre.stage.start()
        async with open_crowd(theatre.stage.ready["ws"], theatre.token_secret, sessions) as crowd:
            await crowd.ask("go")
            await trio.sleep(WARM_UP_SECONDS)
            for number in range(1, rounds + 1):
                for observing in (False, True) if number % 2 else (True, False):
                    spent[observing].append(await _round(theatre, crowd, seconds, observing=observing))
                ratio = spent[True][-1] / spent[False][-1]
                say(
                    f"metrics: pair {number} of {rounds}: {spent[True][-1]:.1f} µs to {spent[False][-1]:.1f}, {ratio:.3f}"
                )
            last = await crowd.ask("hush")
        stored = await theatre.with_database(count_messages) - PAIRS * MESSAGES_BEFORE
        await theatre.with_database(require_whole)
    require_same(last, stored)
    return spent[True], spent[False]


async def _round(theatre: Theatre, crowd: CrowdProcess, seconds: float, *, observing: bool) -> float:
    os.kill(theatre.server_pid, signal.SIGUSR2 if observing else signal.SIGUSR1)
    before, observed = await read(theatre, crowd), await _observed(theatre)
    await trio.sleep(seconds)
    after, observed = await read(theatre, crowd), await _observed(theatre) - observed
    if (observed > 0) is not observing:
        raise SwitchDidNotWork
    return round_of(before, after)["server"]


async def _observed(theatre: Theatre) -> float:
    return (await theatre.figures())["halo_ack_latency_seconds_count"]


async def _scrape(say: Callable[[str], None], sessions: int) -> tuple[list[float], list[float], list[float], int]:
    """Pauses during scrapes, pauses in as long a time without one, and how long scrapes took, in ms; the size of the page."""
    pauses, quiet, took, size = [], [], [], 0
    async with open_theatre() as theatre:
        say(f"metrics: {sessions:,} sessions are restored")
        await theatre.prepare(partial(insert_living_sessions, count=sessions))
        binds = {"HALO_WS_BIND": "127.0.0.1:0", "HALO_API_BIND": "127.0.0.1:0", "HALO_ADMIN_BIND": "127.0.0.1:0"}
        settings = Settings.read({**UNLIMITED, **binds, "HALO_DATA_DIR": str(theatre.stage.data_dir)}, {})
        async with open_server(settings) as (server, _), trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[dict[str, str]]) -> None:
                await server.run(task_status.started)

            ready = await nursery.start(serve)
            await trio.sleep(SETTLE_SECONDS)
            async with httpx.AsyncClient(trust_env=False) as client:
                for number in range(SCRAPES + 1):
                    pause, seconds, size = await _watch_scrape(client, ready["admin"] + "/metrics")
                    if not number:
                        continue  # what is done once for the first of all requests is no matter of scrapes
                    pauses.append(pause)
                    took.append(seconds * 1000)
                    quiet.append(await _watch_nothing(seconds))
            server.stop.set()
    return pauses, quiet, took, size


async def _watch_scrape(client: httpx.AsyncClient, url: str) -> tuple[float, float, int]:
    async with trio.open_nursery() as nursery:
        watch = Pauses()
        nursery.start_soon(watch.watch)
        began = perf_counter()
        answer = await client.get(url)
        seconds = perf_counter() - began
        nursery.cancel_scope.cancel()
    answer.raise_for_status()
    return watch.longest_ms, seconds, len(answer.content)


async def _watch_nothing(seconds: float) -> float:
    async with trio.open_nursery() as nursery:
        watch = Pauses()
        nursery.start_soon(watch.watch)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return watch.longest_ms


def _observing_us() -> tuple[float, ...]:
    """Both readings of the clock, the ack and the mailbox: what one message costs at most, alone in its batch."""
    acks, taken = Histogram(), Histogram(BATCH_BOUNDS)

    def observe() -> None:
        heard_at = perf_counter()
        taken.observe(1)
        acks.observe(perf_counter() - heard_at)

    return tuple(took / TIMED * 1e6 for took in timeit.repeat(observe, number=TIMED, repeat=5))
