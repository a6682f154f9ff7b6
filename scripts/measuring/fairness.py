"""How fair the line of the longest idle is: two hundred mitras, thousands of searches, beside the same town that asks by chance.

The line is the real one, read from Valkey by `find_available`; the baseline asks as many, drawn from all who are available. Sessions,
absences and moods come from the same dice. Nobody's worst wait may be hidden in a mean, so the worst is what is told. Read next:
`scripts/measuring/market.py`, `halo/store/available.py`.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Final

import trio

from halo.store.available import AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.embedded import open_stores
from halo.store.migrations import migrate
from halo.store.mirror import Mirror
from halo.store.postgres import Postgres, open_postgres
from halo.store.valkey import Valkey, open_valkey
from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.market import Choose, Told, Town, TownClock

MITRAS: Final = 200
SEARCHES: Final = 2_000
NOON: Final = 1_795_464_900_000
STALE_MS: Final = 10**12
"""Nobody grows stale: whoever does not ping is away, and absences are played as such."""
SEED: Final = 7
SEED_SECONDS: Final = 10.0


def jain(shares: Sequence[float]) -> float:
    """1 when all have the same, 1/n when one has everything. Raises ValueError for nobody or nothing."""
    if not any(shares):
        raise ValueError("there is nothing to share")
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


async def measure(say: Callable[[str], None], mitras: int = MITRAS, searches: int = SEARCHES) -> Measurement:
    told = {}
    for policy in ("longest idle", "chance"):
        with tempfile.TemporaryDirectory(prefix="halo-measure-") as directory:
            async with open_stores(Path(directory) / "halo", None, None) as urls:
                await migrate(urls.database)
                async with open_postgres(urls.database) as db, open_valkey(urls.valkey) as valkey:
                    told[policy] = await _play(db, valkey, policy, mitras, searches)
        say(f"fairness: {policy}: {told[policy].matched:,} sessions, {told[policy].unmatched:,} searches in vain")
    return Measurement(
        title="Fairness",
        figures=tuple(figure for policy, run in told.items() for figure in _figures(policy, run)),
        notes=(
            f"{mitras} mitras with room for one session each, {searches:,} searches in simulated time, about half of the mitras busy.",
            "Of the offers 20 % are declined and 10 % not answered; mitras leave for 10 to 120 minutes.",
            "Time counts while she is online and has room. A wave asks the five who have waited longest, and the first yes wins.",
            "The four others keep their places and are asked again: a mitra waits her turn without an offer, and then gets many.",
        ),
    )


def _figures(policy: str, told: Told) -> tuple[Figure, ...]:
    idle, unasked = ([wait / 60_000 for wait in waits] for waits in (told.idle_ms, told.unasked_ms))
    shares = list(told.sessions.values())
    figures = (
        ("available without a session, worst", "min", told.most_idle_ms / 60_000),
        ("the same, 99 of 100 sessions", "min", percentile(idle, 0.99)),
        ("the same, median", "min", percentile(idle, 0.5)),
        ("the same, worst, in sessions of others", "sessions", told.most_sessions_of_others),
        ("available without an offer, worst", "min", told.most_unasked_ms / 60_000),
        ("the same, 99 of 100 offers", "min", percentile(unasked, 0.99)),
        ("the same, worst, in searches that asked others", "searches", told.most_offers_of_others),
        ("Jain's index of the sessions", "1 is even", jain(shares)),
        ("sessions of the mitra with the fewest", "sessions", min(shares)),
        ("sessions of the mitra with the most", "sessions", max(shares)),
    )
    return tuple(Figure(name=f"{policy}: {name}", unit=unit, rounds=(value,)) for name, unit, value in figures)


async def _play(db: Postgres, valkey: Valkey, policy: str, mitras: int, searches: int) -> Told:
    clock = TownClock(NOON)
    mirror = Mirror(valkey, db, clock, STALE_MS)
    line = AvailableMitras(mirror, AvailableTwin(db, clock, STALE_MS, 0), clock, STALE_MS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror.serve)
        with trio.fail_after(SEED_SECONDS):
            while not mirror.trusted:  # noqa: ASYNC110  # the mirror sets no event of ours
                await trio.sleep(0.01)
        town = Town(db, mirror, clock, SEED)
        await town.open_up(mitras)
        told = await town.run(searches, line.find_available if policy == "longest idle" else by_chance(line, mitras))
        nursery.cancel_scope.cancel()
    return told


def by_chance(line: AvailableMitras, mitras: int) -> Choose:
    """As many as are wanted, drawn from all who are available."""
    dice = Random(SEED)  # noqa: S311  # the same baseline every time

    async def choose(limit: int, exclude: Collection[str]) -> list[str]:
        there = await line.find_available(mitras, exclude)
        return dice.sample(there, min(limit, len(there)))

    return choose
