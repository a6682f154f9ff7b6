"""A town of mitras in simulated time: who is asked, who takes the session, who is away, on the real rows and the real mirror.

Searches come one after the other, each played to its end in the moment in which it comes: waves of offers to whoever `choose` names,
yeses, noes and silence by dice, the first yes through the same statement as in production. Between them sessions end and mitras come
and go. What is real is everything that puts a mitra into the line and takes her out of it; what is simulated is time and people. Read
next: `scripts/measuring/fairness.py`, which looks at what it did to them.
"""

import heapq
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Final
from uuid import UUID, uuid4

from halo.clock import Moment
from halo.config import LiveConfig
from halo.effects import Step
from halo.errors import OfferResolved
from halo.events import DeadlineReached, EndedBy, EndRequested
from halo.pairing import Offer, OfferStatus, Opening, PairingStatus, Search, open_match
from halo.rules import step
from halo.session import Session, SessionStatus
from halo.store.mirror import Mirror
from halo.store.mitras import Mitras
from halo.store.offers import Offers
from halo.store.pairings import Pairings
from halo.store.postgres import Postgres
from halo.store.sessions import Sessions

BETWEEN_SEARCHES_SECONDS: Final = 12.0
"""On average. With sessions of 20 minutes some hundred mitras are busy."""
SESSION_MINUTES: Final = (5, 35)
ABSENCE_MINUTES: Final = (10, 120)
BETWEEN_ABSENCES_SECONDS: Final = 90.0
SAYS_NO, SAYS_NOTHING = 0.2, 0.1
"""Of the offers that a mitra gets."""
CONFIG: Final = LiveConfig()
Event = Callable[[], Awaitable[None]]
Choose = Callable[[int, Collection[str]], Awaitable[list[str]]]
"""So many mitras at most who can be asked now, without these."""


@dataclass
class TownClock:
    """Simulated time: it stands while a search is played."""

    moment: Moment

    def now(self) -> Moment:
        return self.moment


@dataclass
class Wait:
    """One mitra's place in the line, as seen from outside."""

    free_since: Moment
    unasked_since: Moment
    """Her last offer, or when she became available."""
    sessions_of_others: int = 0
    """Since `free_since`."""
    offers_of_others: int = 0
    """Searches since `unasked_since` that asked others, and not her."""


@dataclass
class Told:
    """What a run did to its mitras."""

    sessions: dict[str, int]
    idle_ms: list[int] = field(default_factory=list)
    """Before every session: how long she had been available."""
    unasked_ms: list[int] = field(default_factory=list)
    """Before every offer: how long she had been available and not asked."""
    most_idle_ms: int = 0
    """The longest of anybody, those included who still wait."""
    most_unasked_ms: int = 0
    most_sessions_of_others: int = 0
    """That were opened while one and the same mitra was available and had none."""
    most_offers_of_others: int = 0
    matched: int = 0
    unmatched: int = 0


class Town:
    """The mitras, and the run of events."""

    def __init__(self, db: Postgres, mirror: Mirror, clock: TownClock, seed: int) -> None:
        self._db, self._mirror, self._clock = db, mirror, clock
        self._node = str(uuid4())
        self._pairings, self._offers = Pairings(db, self._node), Offers(db, self._node)
        self._sessions, self._mitras = Sessions(db, self._node), Mitras(db, clock)
        self._dice = Random(seed)  # noqa: S311  # the same town every time is the point
        self._customer_id = self._new_id()
        self._events: list[tuple[Moment, int, Event]] = []
        self._numbers = count()
        """Of events that fall into one moment the one that was planned first comes first."""
        self._free: dict[str, Wait] = {}
        """Who is online and has room."""
        self._online: set[str] = set()
        self._busy: set[str] = set()
        self.told = Told(sessions={})

    async def open_up(self, mitras: int) -> None:
        """Everybody online, one after the other a second apart, with room for one session."""
        await self._db.execute("INSERT INTO customers (customer_id) VALUES (%(id)s)", {"id": self._customer_id})
        for _ in range(mitras):
            mitra_id = self._new_id()
            self._clock.moment += 1_000
            await self._db.execute(
                "INSERT INTO mitras (mitra_id, max_sessions, idle_since) VALUES (%(id)s, 1, at(%(at)s))",
                {"id": mitra_id, "at": self._clock.now()},
            )
            self.told.sessions[mitra_id] = 0
            await self._come(mitra_id)

    async def run(self, searches: int, choose: Choose) -> Told:
        """So many searches, each asking whom `choose` names."""
        self._plan(partial(self._search, choose), BETWEEN_SEARCHES_SECONDS)
        self._plan(self._leave, BETWEEN_ABSENCES_SECONDS)
        while self.told.matched + self.told.unmatched < searches:
            at, _, event = heapq.heappop(self._events)
            self._clock.moment = max(self._clock.moment, at)
            await event()
        return self.told

    # ---- events

    def _plan(self, event: Event, mean_seconds: float) -> None:
        self._at(self._clock.now() + round(self._dice.expovariate(1 / mean_seconds) * 1000), event)

    def _at(self, moment: Moment, event: Event) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), event))

    def _minutes(self, between: tuple[int, int]) -> Moment:
        return self._clock.now() + round(self._dice.uniform(*between) * 60_000)

    def _new_id(self) -> str:
        return str(UUID(int=self._dice.getrandbits(128), version=4))

    async def _come(self, mitra_id: str) -> None:
        now = self._clock.now()
        await self._mitras.go_online(mitra_id, now)
        await self._mirror.went_online(mitra_id, now)
        self._online.add(mitra_id)
        self._settle(mitra_id)

    async def _leave(self) -> None:
        """Somebody who is online; her session, if she has one, goes on."""
        mitra_id = self._dice.choice(sorted(self._online))
        await self._mitras.go_offline(mitra_id, self._clock.now())
        await self._mirror.went_offline(mitra_id)
        self._online.discard(mitra_id)
        self._settle(mitra_id)
        self._at(self._minutes(ABSENCE_MINUTES), partial(self._come, mitra_id))
        self._plan(self._leave, BETWEEN_ABSENCES_SECONDS)

    async def _end(self, session: Session) -> None:
        decided = step(session, EndRequested(at=self._clock.now(), by=EndedBy.MITRA))
        while True:
            await self._sessions.commit(session, decided, str(uuid4()), frozenset())
            session = decided.session
            if session.status is SessionStatus.ENDED:
                break
            assert session.deadline_at is not None  # only what has ended has none
            self._clock.moment = max(self._clock.moment, session.deadline_at)
            decided = step(session, DeadlineReached(at=self._clock.now(), config=CONFIG))
        self._busy.discard(session.mitra_id)
        await self._mirror.refresh_capacities([session.mitra_id])
        self._settle(session.mitra_id)

    def _settle(self, mitra_id: str) -> None:
        """Put her into the line, or take her out of it."""
        if mitra_id not in self._online or mitra_id in self._busy:
            self._free.pop(mitra_id, None)
        else:
            self._free.setdefault(mitra_id, Wait(self._clock.now(), self._clock.now()))

    # ---- searches

    async def _search(self, choose: Choose) -> None:
        self._plan(partial(self._search, choose), BETWEEN_SEARCHES_SECONDS)
        search = await self._open_search()
        asked: set[str] = set()
        opened: Step | None = None
        for _ in range(CONFIG.pairing_waves):
            chosen = await choose(CONFIG.pairing_blast_size, asked)
            if not chosen:
                break
            now = self._clock.now()
            await self._pairings.send_wave(search, chosen, absent=(), deadline_at=now + 30_000, at=now)
            asked.update(chosen)
            search = await self._pairings.load(search.pairing_id)
            opened = await self._answer([offer for offer in search.offers if offer.status is OfferStatus.OPEN])
            if opened is not None:
                break
            search = await self._pairings.load(search.pairing_id)
        self._note(asked, None if opened is None else opened.session.mitra_id)
        if opened is None:
            await self._pairings.give_up(search, self._clock.now())
            self.told.unmatched += 1
            return
        mitra_id = opened.session.mitra_id
        self.told.matched += 1
        self.told.sessions[mitra_id] += 1
        self._busy.add(mitra_id)
        await self._mirror.refresh_capacities([mitra_id])
        self._settle(mitra_id)
        self._at(self._minutes(SESSION_MINUTES), partial(self._end, opened.session))

    async def _open_search(self) -> Search:
        payment_request_id, now = self._new_id(), self._clock.now()
        await self._db.execute(
            """INSERT INTO payment_requests (payment_request_id, customer_id, amount, currency, duration_minutes, status, is_extension,
                                             confirmed_at)
               VALUES (%(id)s, %(customer)s, 10000, 'IDR', 60, 'confirmed', false, at(%(at)s))""",
            {"id": payment_request_id, "customer": self._customer_id, "at": now},
        )
        view = await self._pairings.open(self._new_id(), self._customer_id, payment_request_id, "regular", now)
        assert view.status is PairingStatus.SEARCHING  # it is new
        return await self._pairings.load(view.pairing_id)

    async def _answer(self, offers: list[Offer]) -> Step | None:
        """The noes, and the first yes in an order of chance: who is quick is a matter of people, not of the line."""
        self._dice.shuffle(offers)
        for offer in offers:
            mood = self._dice.random()
            if mood < SAYS_NO:
                await self._offers.decline(offer.offer_id, offer.mitra_id, self._clock.now())
            elif mood >= SAYS_NO + SAYS_NOTHING:
                return await self._accept(offer)
        return None

    async def _accept(self, offer: Offer) -> Step:
        opening = Opening(session_id=str(uuid4()), at=self._clock.now(), minute_ms=60_000, config=CONFIG)
        answered = await self._offers.accept(
            offer.offer_id, offer.mitra_id, lambda search: open_match(search, offer.mitra_id, opening), opening.at
        )
        if answered.opened is None:
            raise OfferResolved  # nobody else is there to be faster
        return answered.opened

    def _note(self, asked: Collection[str], winner: str | None) -> None:
        """Who was asked and who has a session now begin to wait anew; who could have been, was passed over."""
        now, told = self._clock.now(), self.told
        for mitra_id, wait in self._free.items():
            told.most_idle_ms = max(told.most_idle_ms, now - wait.free_since)
            told.most_unasked_ms = max(told.most_unasked_ms, now - wait.unasked_since)
            if mitra_id == winner:
                told.idle_ms.append(now - wait.free_since)
            wait.sessions_of_others += winner not in {None, mitra_id}
            if mitra_id in asked:
                told.unasked_ms.append(now - wait.unasked_since)
                wait.unasked_since, wait.offers_of_others = now, 0
            else:
                wait.offers_of_others += bool(asked)
            told.most_sessions_of_others = max(told.most_sessions_of_others, wait.sessions_of_others)
            told.most_offers_of_others = max(told.most_offers_of_others, wait.offers_of_others)
