"""Many small markets on a real Postgres: mitras with little room, more searches than they can take, everybody answering at once.

Each story has a few mitras and searches that ask several of them; yeses, repeated yeses, noes and ends of sessions come in random order
on a connection that loses commits, or their answers. Afterwards the books are read as a timeline: at no moment did any mitra hold more
sessions than she takes, not only at the end. `scripts/simulate capacity --stories 5000` plays more than the suite does. Read next:
`tests/store/test_capacity_stories.py`.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import trio
import trio_asyncio  # noqa: F401  # before psycopg, which otherwise binds asyncio's loop before it is patched (spec 6, traps)

# isort: split
from halo.clock import Moment
from halo.config import LiveConfig
from halo.effects import Step
from halo.errors import CapacityExceeded, OfferResolved, StoreUnavailable
from halo.events import DeadlineReached, EndedBy, EndRequested
from halo.log import configure_logging
from halo.pairing import Opening, Search, open_match
from halo.rules import step
from halo.session import SessionStatus
from halo.store.embedded import open_stores
from halo.store.invariants import find_violations
from halo.store.migrations import migrate
from halo.store.offers import Answered, Offers
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from tests.store.cutting_proxy import CuttingProxy, Fault, open_cutting_proxy
from tests.store.rows import NOW

AT_ONCE = 10
"""Stories that are played together: they share the pool, so that transactions wait for connections as well as for locks."""
CONNECTIONS = 12
FAULTS = (Fault.NONE,) * 18 + (Fault.LOST, Fault.ANSWER_LOST)
"""One commit of ten goes wrong."""
PATIENCE_SECONDS = 120.0
CONFIG = LiveConfig()

OVERFULL = """
WITH edges AS (
    SELECT mitra_id, created_at AS at, 1 AS change FROM chat_sessions
    UNION ALL
    SELECT mitra_id, ended_at, -1 FROM chat_sessions WHERE ended_at IS NOT NULL
), held AS (
    SELECT mitra_id, at, sum(change) OVER (PARTITION BY mitra_id ORDER BY at, change ROWS UNBOUNDED PRECEDING) AS sessions FROM edges
)
SELECT m.mitra_id, m.max_sessions, max(h.sessions) AS most, min(h.at) FILTER (WHERE h.sessions > m.max_sessions) AS first_at
FROM held AS h JOIN mitras AS m USING (mitra_id)
GROUP BY m.mitra_id
"""
"""The most that each mitra held at once; a session that ends in the moment in which another begins has made room for it."""

STAGE = (
    """INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, max_sessions, idle_since)
       SELECT id, true, at(%(at)s), room, at(%(at)s) FROM unnest(%(mitra_ids)s::uuid[], %(rooms)s::integer[]) AS m (id, room)""",
    "INSERT INTO customers (customer_id) SELECT unnest(%(customer_ids)s::uuid[])",
    """INSERT INTO payment_requests (payment_request_id, customer_id, amount, currency, duration_minutes, status, is_extension,
                                     confirmed_at, created_at)
       SELECT payment, customer, 10000, 'IDR', 10, 'confirmed', false, at(%(at)s), at(%(at)s)
       FROM unnest(%(payment_ids)s::uuid[], %(customer_ids)s::uuid[]) AS p (payment, customer)""",
    """INSERT INTO pairings (pairing_id, customer_id, payment_request_id, wave, deadline_at, owner, created_at)
       SELECT pairing, customer, payment, 1, at(%(at)s::bigint + 3600000), %(node)s, at(%(at)s)
       FROM unnest(%(pairing_ids)s::uuid[], %(customer_ids)s::uuid[], %(payment_ids)s::uuid[]) AS p (pairing, customer, payment)""",
    """INSERT INTO offers (offer_id, pairing_id, mitra_id, wave, deadline_at, created_at)
       SELECT offer, pairing, mitra, 1, at(%(at)s::bigint + 3600000), at(%(at)s)
       FROM unnest(%(offer_ids)s::uuid[], %(asking)s::uuid[], %(asked)s::uuid[]) AS o (offer, pairing, mitra)""",
)


@dataclass
class Ticks:
    """A clock of which every reading is later than the one before: the order of moments is the order of events, whatever the machine."""

    moment: Moment = NOW

    def now(self) -> Moment:
        self.moment += 1
        return self.moment

    def reach(self, moment: Moment) -> Moment:
        self.moment = max(self.moment + 1, moment)
        return self.moment


@dataclass(frozen=True)
class Story:
    """The dice of one market, and who is asked by which search."""

    seed: int
    dice: random.Random
    rooms: dict[str, int]
    offers: tuple[tuple[str, str, str], ...]
    """`(offer_id, pairing_id, mitra_id)`"""


@dataclass
class Told:
    """What happened, so that nobody takes an empty story for a proof."""

    counts: Counter[str] = field(default_factory=Counter)


def make_story(seed: int) -> Story:
    """The same seed makes the same market."""
    dice = random.Random(seed)

    def new() -> str:
        return str(UUID(int=dice.getrandbits(128), version=4))

    rooms = {new(): dice.choice((1, 1, 2, 3)) for _ in range(dice.randint(1, 4))}
    offers = []
    for _ in range(dice.randint(3, 8)):
        pairing_id = new()
        offers += [(new(), pairing_id, mitra) for mitra in dice.sample(sorted(rooms), dice.randint(1, len(rooms)))]
    return Story(seed, dice, rooms, tuple(offers))


class Market:
    """The rows under test, reached by a way that loses commits; `db` is the straight way."""

    def __init__(self, db: Postgres, through: Postgres, proxy: CuttingProxy) -> None:
        self.db = db
        self.clock = Ticks()
        self.told = Told()
        self._proxy = proxy
        self._node = str(uuid4())
        self._offers = Offers(through, self._node)
        self._sessions = Sessions(through, self._node)

    async def play(self, stories: list[Story]) -> None:
        """All of them together, from their rows to the end of the last task."""
        await self._stage(stories)
        dice = random.Random(stories[0].seed)
        self._proxy.faults[:] = dice.choices(FAULTS, k=1_000)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for story in stories:
                    answers = [*story.offers, *story.dice.sample(story.offers, len(story.offers) // 3)]
                    story.dice.shuffle(answers)  # a third of them twice: an app that has heard nothing says it again
                    for offer_id, _, mitra_id in answers:
                        nursery.start_soon(self._answer, story, offer_id, mitra_id)
        self._proxy.faults.clear()

    async def find_overfull(self) -> list[Any]:
        """Mitras who ever held more than they take, and when first."""
        return [row for row in await self.db.fetch_all(OVERFULL) if row.most > row.max_sessions]

    async def count_full(self) -> int:
        """Mitras who held at some moment as many as they take."""
        return sum(row.most == row.max_sessions for row in await self.db.fetch_all(OVERFULL))

    async def _stage(self, stories: list[Story]) -> None:
        pairing_ids = sorted({pairing for story in stories for _, pairing, _ in story.offers})
        offers = [offer for story in stories for offer in story.offers]
        rooms = [room for story in stories for room in story.rooms.items()]
        values: dict[str, Any] = {
            "at": NOW,
            "node": self._node,
            "mitra_ids": [mitra for mitra, _ in rooms],
            "rooms": [room for _, room in rooms],
            "customer_ids": [str(uuid4()) for _ in pairing_ids],
            "payment_ids": [str(uuid4()) for _ in pairing_ids],
            "pairing_ids": pairing_ids,
            "offer_ids": [offer for offer, _, _ in offers],
            "asking": [pairing for _, pairing, _ in offers],
            "asked": [mitra for _, _, mitra in offers],
        }
        for statement in STAGE:
            await self.db.execute(statement, values)

    async def _answer(self, story: Story, offer_id: str, mitra_id: str) -> None:
        dice = story.dice
        for _ in range(dice.randrange(3)):
            await trio.lowlevel.checkpoint()
        if dice.random() < 0.1:
            await self._decline(offer_id, mitra_id)
            return
        for _ in range(3):  # who had no room keeps the offer, and may say yes again
            try:
                answered = await self._accept(offer_id, mitra_id)
            except OfferResolved:
                self.told.counts["too late"] += 1
                return
            except CapacityExceeded:
                self.told.counts["no room"] += 1
            except StoreUnavailable:
                self.told.counts["unavailable"] += 1
            else:
                if answered.opened is None:
                    self.told.counts["said twice"] += 1
                else:
                    self.told.counts["opened"] += 1
                    if dice.random() < 0.6:
                        await self._end(answered.opened, dice.choice([EndedBy.MITRA, EndedBy.CUSTOMER]))
                return

    async def _accept(self, offer_id: str, mitra_id: str) -> Answered:
        session_id = str(uuid4())

        def open_(search: Search) -> Step:
            at = self.clock.now()  # under the locks, as the desk does
            return open_match(search, mitra_id, Opening(session_id=session_id, at=at, minute_ms=60_000, config=CONFIG))

        return await self._offers.accept(offer_id, mitra_id, open_, self.clock.now())

    async def _decline(self, offer_id: str, mitra_id: str) -> None:
        try:
            await self._offers.decline(offer_id, mitra_id, self.clock.now())
            self.told.counts["declined"] += 1
        except (OfferResolved, StoreUnavailable):
            self.told.counts["declined in vain"] += 1

    async def _end(self, opened: Step, by: EndedBy) -> None:
        """To the very end: a session that is closing still holds its place."""
        session = opened.session
        decided = step(session, EndRequested(at=self.clock.now(), by=by))
        while True:
            try:
                await self._sessions.commit(session, decided, str(uuid4()), frozenset())
            except StoreUnavailable:
                self.told.counts["end unknown"] += 1
                return
            session = decided.session
            if session.status is SessionStatus.ENDED:
                self.told.counts["ended"] += 1
                return
            assert session.deadline_at is not None  # only what has ended has none
            decided = step(session, DeadlineReached(at=self.clock.reach(session.deadline_at), config=CONFIG))


@asynccontextmanager
async def open_market(database_url: str) -> AsyncIterator[Market]:
    async with open_cutting_proxy(database_url) as proxy, open_postgres(database_url) as db:
        async with open_postgres(
            proxy.url, size=CONNECTIONS, acquire_timeout_seconds=20, deadline_seconds=30
        ) as through:
            yield Market(db, through, proxy)


async def play_all(database_url: str, seeds: range) -> tuple[Counter[str], list[Any], int]:
    """What happened in all of them, what is wrong (who was ever overfull, which invariant does not hold), and how many mitras were
    full at some moment."""
    async with open_market(database_url) as market:
        for first in range(seeds.start, seeds.stop, AT_ONCE):
            await market.play([make_story(seed) for seed in range(first, min(first + AT_ONCE, seeds.stop))])
        _, violations = await find_violations(market.db)
        return market.told.counts, [*await market.find_overfull(), *violations], await market.count_full()


async def run(first: int, stories: int) -> int:
    """On stores of its own. Returns 1 when something was wrong."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="halo-capacity-") as directory:
        async with open_stores(Path(directory) / "halo", None, None) as urls:
            await migrate(urls.database)
            counts, wrong, full = await play_all(urls.database, range(first, first + stories))
    sys.stdout.write(f"{stories} stories in {time.monotonic() - began:.1f} s; {full} mitras were full; in them:\n")
    for name, count in sorted(counts.items()):
        sys.stdout.write(f"  {name:<32} {count}\n")
    for finding in wrong:
        sys.stdout.write(f"WRONG: {finding}\n")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate capacity", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stories", type=int, default=1_000, metavar="N", help="how many stories (1000)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first seed (0)")
    options = parser.parse_args()
    return trio.run(run, options.first, options.stories)


if __name__ == "__main__":
    configure_logging("critical", "console")
    sys.exit(main())
