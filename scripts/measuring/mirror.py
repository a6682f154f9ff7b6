"""What the mirror costs those who read and rebuild it: 100,000 mitras, 10,000 of them online, on real stores.

Everything runs in this process, as it does in the server: a pause that is seen here is a pause of every socket. Before a time is taken the
answer is compared with Postgres', or there is no figure. Read next: `halo/store/available.py`, `scripts/measuring/heartbeats.py`.
"""

import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from halo.clock import SystemClock
from halo.store.available import AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.embedded import open_stores
from halo.store.migrations import migrate
from halo.store.mirror import Mirror
from halo.store.mirror_twin import NO_MITRA
from halo.store.postgres import Postgres, open_postgres
from halo.store.valkey import Valkey, open_valkey
from scripts.measuring.figures import Figure, Measurement

ALL, ONLINE = 100_000, 10_000
ROUNDS = 5
SEARCHES = 100
WANTED = 5
STALE_MS = 3_600_000
"""Longer than the measurement: nobody grows stale while it runs."""
GOAL_FIND_MS, GOAL_PAUSE_MS = 15.0, 20.0
GOAL_CONVERGED_MS = 5_000.0
LOOK_SECONDS = 0.001

T = TypeVar("T")


class AnswerWrong(Exception):
    """The mirror did not say what Postgres says."""


class Pauses:
    """How long the event loop stood still at most."""

    def __init__(self) -> None:
        self.longest_ms = 0.0

    async def watch(self) -> None:
        while True:
            due = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due)
            self.longest_ms = max(self.longest_ms, (trio.current_time() - due) * 1000)


async def measure(say: Callable[[str], None]) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="halo-measure-") as directory:
        async with open_stores(Path(directory) / "halo", None, None) as urls:
            await migrate(urls.database)
            async with open_postgres(urls.database) as db, open_valkey(urls.valkey) as valkey:
                return await _measure(say, db, valkey)


async def _measure(say: Callable[[str], None], db: Postgres, valkey: Valkey) -> Measurement:
    clock = SystemClock()
    gc.collect()
    gc.freeze()  # as the server does once it is ready: what it is made of is not looked at again
    say(f"mirror: inserting {ALL:,} mitras, {ONLINE:,} of them online")
    await db.execute(
        """INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, idle_since)
           SELECT gen_random_uuid(), n <= %(online)s, at(%(now)s), at(%(now)s::bigint - n) FROM generate_series(1, %(all)s) AS n""",
        {"online": ONLINE, "all": ALL, "now": clock.now()},
    )
    await db.execute("ANALYZE mitras")
    mirror = Mirror(valkey, db, clock, STALE_MS)
    twin = AvailableTwin(db, clock, STALE_MS, 0)
    readers = AvailableMitras(mirror, twin, clock, STALE_MS)
    seeds, pauses = await _rounds(mirror.seed)
    say(f"mirror: reseeded in {min(seeds) / 1000:.1f} s")

    async def converge() -> None:
        """Valkey is emptied; the first question finds that out, and the mirror is built as the server does it."""
        await valkey.call(("FLUSHALL",))
        await mirror.reachability(NO_MITRA)
        while not mirror.trusted:  # noqa: ASYNC110  # the mirror sets no event of ours
            await trio.sleep(LOOK_SECONDS)
        if await readers.count_online() != ONLINE:
            raise AnswerWrong("the mirror is believed before it is whole")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror.serve)
        converged, _ = await _rounds(converge)
        nursery.cancel_scope.cancel()

    found = await readers.find_available(WANTED, ())
    if found != await twin.find_available(WANTED, ()):
        raise AnswerWrong("the mirror found others than Postgres")
    finds, _ = await _rounds(lambda: readers.find_available(WANTED, ()), SEARCHES)

    async def ask_postgres() -> None:
        await AvailableTwin(db, clock, STALE_MS, 0).find_available(WANTED, ())  # a new one, which has kept no answer

    twin_times, _ = await _rounds(ask_postgres)

    async def recount() -> None:
        await valkey.call(("DEL", mirror.keys.snapshot))
        if (await readers.count_available()).count != ONLINE:
            raise AnswerWrong("the mirror counted others than there are")

    counts, count_pauses = await _rounds(recount)
    all_stale = AvailableMitras(mirror, twin, clock, -STALE_MS)

    async def find_nobody() -> None:
        if await all_stale.find_available(WANTED, ()):
            raise AnswerWrong("somebody was found though all are stale")

    walks, walk_pauses = await _rounds(find_nobody)
    pause = max(count_pauses, walk_pauses)
    return Measurement(
        title="Mirror",
        figures=(
            Figure(name=f"find {WANTED} of {ONLINE:,} online", unit="ms", rounds=tuple(finds), goal=GOAL_FIND_MS),
            Figure(name="the same by Postgres, Valkey away", unit="ms", rounds=tuple(twin_times)),
            Figure(name=f"find nobody, all {ONLINE:,} stale", unit="ms", rounds=tuple(walks)),
            Figure(name=f"count {ONLINE:,} available, once in 2 s for the cluster", unit="ms", rounds=tuple(counts)),
            Figure(name="longest pause of the event loop meanwhile", unit="ms", rounds=(pause,), goal=GOAL_PAUSE_MS),
            Figure(
                name=f"Valkey emptied until {ONLINE:,} online of {ALL:,} are in the mirror and believed",
                unit="ms",
                rounds=tuple(converged),
                goal=GOAL_CONVERGED_MS,
            ),
            Figure(name=f"reseed of {ALL:,}", unit="ms", rounds=tuple(seeds)),
            Figure(
                name="longest pause of the event loop meanwhile (reseed)",
                unit="ms",
                rounds=(pauses,),
                goal=GOAL_PAUSE_MS,
            ),
        ),
        notes=("Times are what a caller waits, the 2 ms in which Valkey's commands are gathered included.",),
    )


async def _rounds(work: Callable[[], Awaitable[T]], rounds: int = ROUNDS) -> tuple[list[float], float]:
    """Milliseconds of each, and the longest pause of the event loop."""
    times, pauses = [], Pauses()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pauses.watch)
        for _ in range(rounds):
            began = time.perf_counter()
            await work()
            times.append((time.perf_counter() - began) * 1000)
        nursery.cancel_scope.cancel()
    return times, pauses.longest_ms
