"""How long each sweep takes with 100,000 mitras online, and how long it keeps the event loop from everybody else.

The real sweeps over embedded stores, in this process, so that a pause is the gap between two turns of a task that only looks at
the clock. Heartbeats all move on between two rounds, as with people who ping: the mirror of heartbeats has every row to write.
Read next: `halo/actors/sweeps.py`.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from halo.actors.sweeps import AutoOffline, HeartbeatMirror, Reseed, Sweep
from halo.clock import SystemClock, rfc3339
from halo.errands import migrate_schema
from halo.settings import Settings
from halo.store.embedded import open_stores
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.postgres import Postgres, open_postgres
from halo.store.sweeps import SweepRows
from halo.store.valkey import Valkey, ValkeyUnavailable, open_valkey
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.theatre import open_theatre

MITRAS: Final = 100_000
ROUNDS: Final = 5
GOAL_SECONDS: Final = 1.0
GOAL_PAUSE_MS: Final = 20.0
STALE_MS: Final = 10_000
"""Shorter than in production, since the measurement has to wait for a whole one before it begins."""
BATCH: Final = 1_000
SEEDS: Final = 10
ADD_MITRAS = """
INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at) SELECT gen_random_uuid(), true, at(%(at)s) FROM generate_series(1, %(count)s)
"""


class SweepFailed(Exception):
    """A sweep did not do what it was measured for."""


@dataclass
class Gaps:
    """The longest time between two turns of a task that wants every turn."""

    longest_ms: float = 0.0

    async def watch(self) -> None:
        last = time.perf_counter()
        while True:
            await trio.sleep(0.0005)
            now = time.perf_counter()
            self.longest_ms = max(self.longest_ms, (now - last) * 1000 - 0.5)
            last = now


async def measure(say: Callable[[str], None], rounds: int = ROUNDS, mitras: int = MITRAS) -> Measurement:
    seconds: dict[str, list[float]] = {}
    pauses: dict[str, list[float]] = {}
    async with open_theatre() as theatre:
        settings = Settings.read({"HALO_DATA_DIR": str(theatre.stage.data_dir)}, {})
        await migrate_schema(settings)
        async with open_stores(settings.data_dir, None, None) as urls:
            async with open_postgres(urls.database) as db, open_valkey(urls.valkey) as valkey:
                clock = SystemClock()
                say(f"sweeps: {mitras:,} mitras come online")
                await db.execute(ADD_MITRAS, {"at": clock.now(), "count": mitras})
                await db.execute("ANALYZE mitras")
                mirror, rows = Mirror(valkey, db, clock, STALE_MS), SweepRows(db)
                await seed(mirror, say)
                auto_offline = AutoOffline(mirror, rows, clock, STALE_MS)
                await auto_offline.run()
                await trio.sleep(1.1 * STALE_MS / 1000)
                sweeps = {
                    "auto-offline": Sweep("auto_offline", auto_offline, 30.0, clock),
                    "heartbeat mirror": Sweep("heartbeat_mirror", HeartbeatMirror(mirror, rows), 60.0, clock),
                    "reseed": Sweep("reseed", Reseed(mirror), 300.0, clock),
                }
                gc.collect()
                gc.freeze()  # as `halo serve` does when it is ready
                for number in range(1, rounds + 1):
                    await beat_all(valkey, mirror, clock)
                    for name, sweep in sweeps.items():
                        took, pause = await run_watched(sweep.run)
                        if sweep.report.error is not None or sweep.report.waits_for is not None:
                            raise SweepFailed(f"{name}: {sweep.report.error or sweep.report.waits_for}")
                        seconds.setdefault(name, []).append(took)
                        pauses.setdefault(name, []).append(pause)
                        say(
                            f"sweeps: {name}, round {number} of {rounds}: {took:.2f} s, {sweep.report.rows:,} rows, {pause:.1f} ms at once"
                        )
                await require(db, mitras)
    return Measurement(
        title=f"Sweeps with {mitras:,} mitras online",
        figures=tuple(
            figure
            for name in seconds
            for figure in (
                Figure(name=name, unit="s", rounds=tuple(seconds[name]), goal=GOAL_SECONDS),
                Figure(
                    name=f"{name}, longest pause of the event loop",
                    unit="ms",
                    rounds=tuple(pauses[name]),
                    goal=GOAL_PAUSE_MS,
                ),
            )
        ),
        notes=(
            "The auto-offline sweep finds nobody stale; the heartbeat mirror writes every row; the reseed finds no drift.",
            "Postgres, Valkey and the sweeps share the cores of this machine.",
        ),
    )


async def seed(mirror: Mirror, say: Callable[[str], None]) -> None:
    """As often as it takes: a machine that has just written 100,000 rows may be too slow for Valkey's deadlines at first."""
    for _ in range(SEEDS):
        try:
            await mirror.seed()
        except ValkeyUnavailable as fault:
            say(f"sweeps: the mirror is not built yet: {fault}")
            await trio.sleep(1)
        else:
            return
    raise SweepFailed("The mirror could not be built.")


async def run_watched(run: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds, and the longest gap in ms."""
    gaps = Gaps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gaps.watch)
        await trio.sleep(0.01)
        gaps.longest_ms, began = 0.0, time.perf_counter()
        await run()
        took = time.perf_counter() - began
        await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    return took, gaps.longest_ms


async def beat_all(valkey: Valkey, mirror: Mirror, clock: SystemClock) -> None:
    """Everybody pings, as far as Valkey is concerned."""
    keys = Keys(valkey.prefix)
    ids: list[str] = []
    async for page in mirror.pages_online():
        ids.extend(page)
    for start in range(0, len(ids), BATCH):
        now = rfc3339(clock.now())
        await valkey.call(("MSET", *(part for i in ids[start : start + BATCH] for part in (keys.heartbeat(i), now))))


async def require(db: Postgres, mitras: int) -> None:
    row = await db.fetch_one("SELECT count(*) AS online FROM mitras WHERE is_online")
    if row is None or row.online != mitras:
        raise SweepFailed("Somebody was set offline who had pinged.")
