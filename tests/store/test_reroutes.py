"""Another mitra for a session that lost its own, on a real Postgres: one search, one winner, one end, each in the session's own step."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from halo.effects import Step
from halo.errors import (
    CapacityExceeded,
    InvalidState,
    MitraDeactivated,
    NotFound,
    OfferResolved,
    Refusal,
    StepOvertaken,
)
from halo.events import DeadlineReached, EndedBy, EndRequested, LostBy, MitraAssigned, MitraLost, SearchFailed
from halo.pairing import PairingStatus, Search
from halo.rules import step
from halo.session import FailureCause, Party, Session, SessionStatus
from halo.store.invariants import find_violations
from halo.store.mitras import Mitras
from halo.store.offers import Answered, Offers, OpenedBefore
from halo.store.pairings import Pairings
from halo.store.postgres import OperationRepeated, Postgres, open_postgres
from halo.store.sessions import Sessions
from tests.store.cutting_proxy import Fault, open_cutting_proxy
from tests.store.ground import CONFIG, Line, only, open_journal, open_node, open_session_row
from tests.store.rows import NOW, SetClock, add_mitra, count, new_id

NODE = new_id()
NOBODY: frozenset[Party] = frozenset()
MINUTE = 60_000
LOST_AT = NOW + 2 * MINUTE
"""The sessions here are five minutes for 5000 IDR: three minutes for 3000 are left at this moment."""
WON_AT = LOST_AT + 20_000
LATER = WON_AT + 10_000


def never(_: Search) -> Step:
    raise AssertionError("no session is opened for an offer to take one over")


class House:
    """The rows under test, and what a test needs to people them."""

    def __init__(self, db: Postgres, node: str = NODE) -> None:
        self.db = db
        self.node = node
        self.sessions = Sessions(db, node)
        self.pairings = Pairings(db, node)
        self.offers = Offers(db, node)

    async def add_mitras(self, number: int) -> list[str]:
        return [await add_mitra(self.db, is_online=True) for _ in range(number)]

    async def opened(self, mitra_id: str | None = None) -> Session:
        people: dict[str, Any] = {} if mitra_id is None else {"mitra_id": mitra_id}
        return (await open_session_row(self.db, self.node, **people)).session

    async def commit(self, before: Session, decided: Step) -> Session:
        await self.sessions.commit(before, decided, new_id(), NOBODY)
        return decided.session

    async def lose(self, session: Session, at: int = LOST_AT) -> tuple[Session, Search]:
        """The session without its mitra, and the search that was opened with that."""
        lost = losing(session, at)
        await self.commit(session, lost)
        return lost.session, await self.pairings.load(lost.evidence["pairing_id"])

    async def wave(self, search: Search, mitra_ids: list[str], at: int = LOST_AT) -> Search:
        """The search once these have been asked, all of them by push as well."""
        asked = await self.pairings.send_wave(search, mitra_ids, absent=mitra_ids, deadline_at=at + 30_000, at=at)
        assert asked == len(mitra_ids)
        return await self.pairings.load(search.pairing_id)

    async def rerouting(self, mitra_ids: list[str], mitra_id: str | None = None) -> tuple[Session, Search]:
        """A session that lost its mitra, whose search has asked these."""
        session, search = await self.lose(await self.opened(mitra_id))
        return session, await self.wave(search, mitra_ids)

    async def end(self, session: Session, by: EndedBy) -> Session:
        return await self.commit(session, step(session, EndRequested(at=LATER, by=by)))

    async def accept(self, offer_id: str, mitra_id: str) -> Answered:
        return await self.offers.accept(offer_id, mitra_id, never, WON_AT)

    async def statuses(self, search: Search) -> dict[str, str]:
        return {offer.mitra_id: offer.status.value for offer in (await self.pairings.load(search.pairing_id)).offers}

    async def stored(self, session: Session) -> Session:
        stored = await self.sessions.load(session.session_id)
        assert stored is not None
        return stored.session

    async def assert_untouched(self, session: Session, search: Search) -> None:
        """Nothing of a step that was refused is kept."""
        assert await self.stored(session) == session
        assert normal(await self.pairings.load(search.pairing_id)) == normal(search)
        assert await count(self.db, "session_timeline", "to_status = 'active' AND from_status = 'rerouting'") == 0
        await self.assert_sound()

    async def assert_sound(self) -> None:
        assert (await find_violations(self.db))[1] == []

    async def failures(self) -> list[tuple[Any, ...]]:
        rows = await self.db.fetch_all("SELECT pairing_id, session_id, cause FROM pairing_failures")
        return [tuple(row) for row in rows]


def a_row(seq: int, session: Session) -> Line:
    """`hello` under the id `1`, from the mitra of `session`."""
    return Line(seq=seq, sender=session.mitra_sender, id="1", body="hello", at=LOST_AT)


def losing(session: Session, at: int = LOST_AT) -> Step:
    event = MitraLost(at=at, deadline_at=at + 90_000, cause=LostBy.SILENT, pairing_id=new_id(), silent_ms=60_000)
    return step(session, event)


def winning(session: Session, search: Search, mitra_id: str, at: int = WON_AT) -> Step:
    event = MitraAssigned(at=at, mitra_id=mitra_id, pairing_id=search.pairing_id, offer_id=offer_of(search, mitra_id))
    return step(session, event)


def offer_of(search: Search, mitra_id: str) -> str:
    [offer_id] = [offer.offer_id for offer in search.offers if offer.mitra_id == mitra_id]
    return offer_id


def normal(search: Search) -> tuple[Search, frozenset[Any]]:
    return replace(search, offers=()), frozenset(search.offers)


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    async with open_postgres(database_url, size=16, acquire_timeout_seconds=20, deadline_seconds=30) as db:
        yield House(db)


async def outcomes(works: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """All at once: what each gave, or the refusal."""
    results: list[Any] = [None] * len(works)

    async def run(place: int, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            results[place] = await work()
        except (Refusal, StepOvertaken) as refusal:
            results[place] = refusal

    async with trio.open_nursery() as nursery:
        for place, work in enumerate(works):
            nursery.start_soon(run, place, work)
    return results


def bind(work: Callable[..., Awaitable[Any]], *given: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: work(*given)


async def wait_for_waiters(db: Postgres, number: int) -> None:
    """Until so many server processes of this database wait for a lock."""
    with trio.fail_after(10):
        while True:
            row = await only(
                db,
                "SELECT count(DISTINCT a.pid) AS n FROM pg_stat_activity a JOIN pg_locks l USING (pid)"
                " WHERE a.datname = current_database() AND NOT l.granted",
            )
            if row.n >= number:
                return
            await trio.sleep(0.005)


@asynccontextmanager
async def mitra_held(db: Postgres, mitra_id: str) -> AsyncIterator[None]:
    """Somebody else has the mitra's row; inside the block others wait for it."""
    async with db.dedicated() as holder:
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM mitras WHERE mitra_id = %(id)s FOR NO KEY UPDATE", {"id": mitra_id})
        yield
        await holder.execute("ROLLBACK")


async def is_free(db: Postgres, table: str, key: str, row_id: str) -> bool:
    """Whether nobody holds the row."""
    rows = await db.fetch_all(f"SELECT FROM {table} WHERE {key} = %(id)s FOR NO KEY UPDATE SKIP LOCKED", {"id": row_id})
    return len(rows) == 1


class TestOpening:
    async def test_losing_its_mitra_opens_the_search_in_the_same_step_for_what_is_left(self, house: House) -> None:
        session, search = await house.lose(await house.opened())
        assert (search.status, search.wave, search.deadline_at, search.offers) == ("searching", 0, LOST_AT, ())
        assert (search.rerouted_session_id, search.without_mitra_ids) == (session.session_id, (session.mitra_id,))
        assert search.session_deadline_at == session.deadline_at
        assert (search.duration_minutes, search.amount, search.currency) == (3, 3_000, "IDR")
        assert (search.topic_sensitivity, search.payment_status, search.payable) == ("sensitive", "consumed", True)
        assert (await only(house.db, "SELECT owner FROM pairings")).owner == NODE
        assert await house.stored(session) == session
        lost = (await house.sessions.list_timeline(session.session_id))[-1]
        assert (lost.event, lost.cause, lost.evidence["pairing_id"]) == (
            "mitra_lost",
            "mitra_silent",
            search.pairing_id,
        )
        capacity = await house.sessions.load_capacity(session.mitra_id)
        assert (capacity.count, capacity.version) == (1, 0)  # hers until somebody takes over
        await house.assert_sound()

    async def test_a_step_that_was_overtaken_opens_no_search(self, house: House) -> None:
        session = await house.opened()
        with pytest.raises(StepOvertaken):
            await house.commit(replace(session, version=7), losing(replace(session, version=7)))
        with pytest.raises(StepOvertaken):
            await Sessions(house.db, new_id()).commit(session, losing(session), new_id(), NOBODY)
        assert await count(house.db, "pairings") == 0

    async def test_of_two_nodes_that_miss_the_mitra_at_once_one_opens_the_search(self, house: House) -> None:
        session = await house.opened()
        results = await outcomes([bind(house.commit, session, losing(session)) for _ in range(10)])
        assert Counter(isinstance(result, StepOvertaken) for result in results) == {True: 9, False: 1}
        assert await count(house.db, "pairings") == 1
        await house.assert_sound()

    async def test_the_mitra_that_was_lost_is_not_asked_whoever_chose_her(self, house: House) -> None:
        lost, other = await house.add_mitras(2)
        _, search = await house.lose(await house.opened(lost))
        given: dict[str, Any] = {"absent": (), "deadline_at": LOST_AT, "at": LOST_AT}
        assert await house.pairings.send_wave(search, [lost], **given) == 0
        assert await house.pairings.send_wave(search, [lost, other], **given) == 1
        assert await house.statuses(search) == {other: "open"}

    @pytest.mark.parametrize(
        ("paid_amount", "paid_ms", "left_ms"),
        [
            (5_000, 300_000, 180_000),
            (5_000, 300_000, 180_001),
            (5_000, 300_000, 1),
            (0, 300_000, 180_000),
            (1, 300_000, 60_001),
            (9_999, 1_380_000, 1_379_999),
            (864_000_000_000_000_001, 864_000_000, 1),
        ],
    )
    async def test_an_offer_names_the_minutes_left_and_their_worth_rounded_up_as_a_refund_is(
        self, house: House, paid_amount: int, paid_ms: int, left_ms: int
    ) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        await house.db.execute(
            "UPDATE chat_sessions SET paid_amount = %(amount)s, paid_ms = %(paid)s, remaining_ms = %(left)s,"
            " served_ms = %(served)s WHERE session_id = %(id)s",
            {
                "amount": paid_amount,
                "paid": paid_ms,
                "left": left_ms,
                "served": paid_ms - left_ms,
                "id": session.session_id,
            },
        )
        search = await house.pairings.load(search.pairing_id)
        worth = -(-paid_amount * left_ms // paid_ms)
        assert (search.duration_minutes, search.amount) == (-(-left_ms // MINUTE), worth)
        assert await house.offers.list_open(mitra) == [search.frame(search.offers[0])]

    async def test_the_customer_neither_pays_with_it_again_nor_cancels_its_search(self, house: House) -> None:
        session, search = await house.lose(await house.opened())
        customer_id, payment = session.customer_id, session.payment_request_id
        with pytest.raises(InvalidState):
            await house.pairings.open(new_id(), customer_id, payment, "regular", LATER)
        with pytest.raises(InvalidState):
            await house.pairings.cancel(search.pairing_id, customer_id, LATER)
        with pytest.raises(NotFound):
            await house.pairings.cancel(search.pairing_id, new_id(), LATER)
        await house.pairings.give_up(search, LATER)
        with pytest.raises(InvalidState):
            await house.pairings.open(new_id(), customer_id, payment, "regular", LATER)
        assert await count(house.db, "pairings") == 1

    async def test_a_commit_whose_answer_is_lost_opens_one_search(self, house: House, database_url: str) -> None:
        session = await house.opened()
        async with open_cutting_proxy(database_url) as proxy, open_postgres(proxy.url) as through:
            proxy.faults.append(Fault.ANSWER_LOST)
            await House(through).commit(session, losing(session))
        assert await count(house.db, "pairings", "status = 'searching'") == 1
        await house.assert_sound()


class TestWinning:
    async def test_an_accept_hands_the_session_on_in_one_step_with_all_that_belongs_to_it(self, house: House) -> None:
        old, winner, other = await house.add_mitras(3)
        session, search = await house.rerouting([winner, other], old)
        before = {mitra: await house.sessions.load_capacity(mitra) for mitra in (old, winner)}
        after = await house.commit(session, winning(session, search, winner))
        assert await house.stored(session) == after
        assert (after.status, after.mitra_id, after.expires_at) == ("active", winner, WON_AT + 3 * MINUTE)
        assert await house.statuses(search) == {winner: "accepted", other: "taken"}
        view = await house.pairings.load_view(search.pairing_id, session.customer_id)
        assert (view.status, view.session_id) == (PairingStatus.MATCHED, session.session_id)
        for mitra, held in ((old, 0), (winner, 1)):
            capacity = await house.sessions.load_capacity(mitra)
            assert (capacity.count, capacity.version) == (held, before[mitra].version + 1)
        idle = {row.mitra_id: row.idle_since for row in await house.db.fetch_all("SELECT * FROM mitras")}
        assert (idle[old], idle[winner], idle[other]) == (WON_AT, WON_AT, NOW - 1000)
        assert await count(house.db, "outbox", "template = 'offer' AND status <> 'cancelled'") == 0
        assert await count(house.db, "outbox", "template = 'offer'") == 2
        assert await house.offers.list_open(other) == []
        won = (await house.sessions.list_timeline(session.session_id))[-1]
        assert won.evidence == {"from": old, "to": winner, "pairing_id": search.pairing_id}
        assert await house.failures() == []
        await house.assert_sound()

    @pytest.mark.parametrize("whose", ["old", "winner"])
    async def test_the_clock_starts_under_the_locks_and_not_before_the_wait_for_them(
        self, house: House, whose: str
    ) -> None:
        """What is written, of the session, the search and the offer alike, is what was decided once nobody else had the mitras' rows."""
        old, winner = await house.add_mitras(2)
        session, search = await house.rerouting([winner], old)
        too_early, decided, told = (
            winning(session, search, winner),
            winning(session, search, winner, LATER),
            list[Step](),
        )
        held = trio.Event()

        def decide_again() -> Step:
            assert held.is_set(), "decided before the locks were had"
            return decided

        async def commit() -> None:
            told.append(await house.sessions.commit(session, too_early, new_id(), NOBODY, decide_again))

        async with trio.open_nursery() as nursery:
            async with mitra_held(house.db, {"old": old, "winner": winner}[whose]):
                nursery.start_soon(commit)
                await wait_for_waiters(house.db, 1)
                held.set()
        assert told == [decided]
        assert await house.stored(session) == decided.session
        assert decided.session.running_since == LATER
        for table in ("pairings", "offers"):
            assert await count(house.db, table, "resolved_at = at(%(at)s)", at=LATER) == 1
        assert (await house.sessions.list_timeline(session.session_id))[-1].at == LATER
        await house.assert_sound()

    async def test_offers_alone_decide_nothing_and_know_afterwards_who_was_first(self, house: House) -> None:
        winner, other = await house.add_mitras(2)
        session, search = await house.rerouting([winner, other])
        pointed = await house.accept(offer_of(search, winner), winner)
        assert pointed == Answered(search.pairing_id, None, rerouted_session_id=session.session_id)
        with pytest.raises(NotFound):
            await house.accept(offer_of(search, winner), other)
        await house.assert_untouched(session, search)
        await house.commit(session, winning(session, search, winner))
        again = await house.accept(offer_of(search, winner), winner)
        assert (again.opened, again.before) == (None, OpenedBefore(session.session_id, "active"))
        with pytest.raises(OfferResolved):
            await house.accept(offer_of(search, other), other)
        with pytest.raises(OfferResolved):
            await house.offers.decline(offer_of(search, other), other, LATER)

    async def test_a_decline_is_told_to_the_search_and_leaves_the_session_alone(self, house: House) -> None:
        one, other = await house.add_mitras(2)
        session, search = await house.rerouting([one, other])
        assert await house.offers.decline(offer_of(search, one), one, LATER) == search.pairing_id
        assert await house.statuses(search) == {one: "declined", other: "open"}
        assert await house.stored(session) == session

    @pytest.mark.parametrize(
        ("spoilt", "refusal"),
        [
            ("UPDATE offers SET status = 'declined', resolved_at = now() WHERE mitra_id = %(mitra)s", OfferResolved),
            ("UPDATE offers SET status = 'cancelled', resolved_at = now() WHERE mitra_id = %(mitra)s", OfferResolved),
            ("UPDATE offers SET status = 'timed_out', resolved_at = now() WHERE mitra_id = %(mitra)s", OfferResolved),
            ("UPDATE pairings SET status = 'failed', cause = 'timed_out', resolved_at = now()", OfferResolved),
            ("UPDATE mitras SET is_active = false WHERE mitra_id = %(mitra)s", MitraDeactivated),
        ],
    )
    async def test_a_mitra_who_cannot_have_it_is_refused_and_nothing_is_kept(
        self, house: House, spoilt: str, refusal: type[Refusal]
    ) -> None:
        mitra, other = await house.add_mitras(2)
        session, search = await house.rerouting([mitra, other])
        decided = winning(session, search, mitra)
        await house.db.execute(spoilt, {"mitra": mitra} if "mitra)s" in spoilt else {})
        spoilt_search = await house.pairings.load(search.pairing_id)
        with pytest.raises(refusal):
            await house.commit(session, decided)
        await house.assert_untouched(session, spoilt_search)

    async def test_a_mitra_without_room_is_refused_and_the_next_who_accepts_has_it(self, house: House) -> None:
        full, other = await house.add_mitras(2)
        session, search = await house.rerouting([full, other])
        await house.db.execute("UPDATE mitras SET max_sessions = 1 WHERE mitra_id = %(id)s", {"id": full})
        await house.opened(full)
        with pytest.raises(CapacityExceeded):
            await house.commit(session, winning(session, search, full))
        await house.assert_untouched(session, search)
        assert (await house.commit(session, winning(session, search, other))).mitra_id == other
        await house.assert_sound()

    async def test_the_offer_of_another_search_wins_nothing(self, house: House) -> None:
        mitra, other = await house.add_mitras(2)
        session, search = await house.rerouting([mitra])
        elsewhere, stranger = await house.rerouting([mitra, other])
        foreign_offer = MitraAssigned(
            at=WON_AT, mitra_id=mitra, pairing_id=search.pairing_id, offer_id=offer_of(stranger, mitra)
        )
        somebody_elses = replace(foreign_offer, offer_id=offer_of(search, mitra), mitra_id=other)
        foreign_search = replace(foreign_offer, pairing_id=stranger.pairing_id)
        for event in (foreign_offer, somebody_elses, foreign_search):
            with pytest.raises(OfferResolved):
                await house.commit(session, step(session, event))
        with pytest.raises(NotFound):
            await house.commit(session, step(session, replace(foreign_offer, pairing_id=new_id())))
        await house.assert_untouched(session, search)
        await house.assert_untouched(elsewhere, stranger)

    async def test_fifty_accepts_at_once_give_one_mitra(self, house: House) -> None:
        mitras = await house.add_mitras(50)
        session, search = await house.rerouting(mitras)
        results = await outcomes([bind(house.commit, session, winning(session, search, mitra)) for mitra in mitras])
        kinds = Counter(type(result) for result in results)
        assert kinds[Session] == 1
        assert kinds[OfferResolved] + kinds[StepOvertaken] == 49
        [winner] = [result.mitra_id for result in results if isinstance(result, Session)]
        assert (await house.stored(session)).mitra_id == winner
        assert await house.statuses(search) == {mitra: "accepted" if mitra == winner else "taken" for mitra in mitras}
        living = await house.db.fetch_all("SELECT mitra_id FROM chat_sessions WHERE status <> 'ended'")
        assert [row.mitra_id for row in living] == [winner]
        assert await count(house.db, "mitras", "capacity_version > 0") == 2
        assert await count(house.db, "session_timeline") == 3
        await house.assert_sound()

    async def test_the_last_slot_of_a_mitra_is_given_to_one_of_the_sessions_that_seek(self, house: House) -> None:
        [mitra] = await house.add_mitras(1)
        await house.db.execute("UPDATE mitras SET max_sessions = 1 WHERE mitra_id = %(id)s", {"id": mitra})
        seeking = [await house.rerouting([mitra]) for _ in range(8)]
        steps = [bind(house.commit, session, winning(session, search, mitra)) for session, search in seeking]
        kinds = Counter(type(result) for result in await outcomes(steps))
        assert kinds == {Session: 1, CapacityExceeded: 7}
        assert (await house.sessions.load_capacity(mitra)).count == 1
        await house.assert_sound()

    async def test_a_mitra_who_is_deactivated_as_she_accepts_is_refused_or_has_a_session_to_end(
        self, house: House
    ) -> None:
        mitras = Mitras(house.db, SetClock(WON_AT))
        for _ in range(10):
            mitra, other = await house.add_mitras(2)
            session, search = await house.rerouting([mitra, other])
            works = [
                bind(mitras.deactivate, mitra, "operator"),
                bind(house.commit, session, winning(session, search, mitra)),
            ]
            deactivation, won = await outcomes(works)
            assert isinstance(won, Session | MitraDeactivated | OfferResolved)
            to_end = [session.session_id] if isinstance(won, Session) else []
            assert list(deactivation.session_ids) == to_end
        await house.assert_sound()

    async def test_a_commit_whose_answer_is_lost_hands_on_once(self, house: House, database_url: str) -> None:
        mitra, other = await house.add_mitras(2)
        session, search = await house.rerouting([mitra, other])
        async with open_cutting_proxy(database_url) as proxy, open_postgres(proxy.url) as through:
            proxy.faults.append(Fault.ANSWER_LOST)
            await House(through).commit(session, winning(session, search, mitra))
        assert (await house.stored(session)).mitra_id == mitra
        assert (await house.sessions.load_capacity(mitra)).version == 1
        assert await count(house.db, "session_timeline") == 3
        await house.assert_sound()

    async def test_a_commit_that_never_arrives_is_done_again_whole(self, house: House, database_url: str) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        async with open_cutting_proxy(database_url) as proxy, open_postgres(proxy.url) as through:
            proxy.faults.append(Fault.LOST)
            await House(through).commit(session, winning(session, search, mitra))
        assert (await house.stored(session)).mitra_id == mitra
        assert await house.statuses(search) == {mitra: "accepted"}
        await house.assert_sound()

    async def test_the_same_operation_again_is_known_before_its_offer_is_looked_at(self, house: House) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        decided, operation_id = winning(session, search, mitra), new_id()
        await house.sessions.commit(session, decided, operation_id, NOBODY)
        with pytest.raises(OperationRepeated):
            await house.sessions.commit(session, decided, operation_id, NOBODY)


class TestOrder:
    """Mitras before pairings before offers before sessions, and mitras by their ids."""

    async def test_sessions_that_swap_their_mitras_at_the_same_time_both_get_the_other(self, house: House) -> None:
        first, second = sorted(await house.add_mitras(2))
        for _ in range(5):
            one, one_search = await house.rerouting([second], first)
            other, other_search = await house.rerouting([first], second)
            swaps = [
                bind(house.commit, one, winning(one, one_search, second)),
                bind(house.commit, other, winning(other, other_search, first)),
            ]
            assert [type(result) for result in await outcomes(swaps)] == [Session, Session]
            for session in (one, other):
                await house.end(await house.stored(session), EndedBy.ADMIN)
        await house.assert_sound()

    async def test_a_swap_takes_the_lower_id_first_on_both_sides(self, house: House) -> None:
        """Whoever waits for the lower holds nothing of the higher: no circle can close."""
        lower, higher = sorted(await house.add_mitras(2))
        one, one_search = await house.rerouting([higher], lower)
        other, other_search = await house.rerouting([lower], higher)
        async with trio.open_nursery() as nursery, mitra_held(house.db, lower):
            nursery.start_soon(house.commit, one, winning(one, one_search, higher))
            nursery.start_soon(house.commit, other, winning(other, other_search, lower))
            await wait_for_waiters(house.db, 2)
            assert await is_free(house.db, "mitras", "mitra_id", higher)
        await house.assert_sound()

    @pytest.mark.parametrize("held", ["the old", "the new"])
    async def test_a_win_holds_nothing_of_the_search_while_it_waits_for_a_mitra(self, house: House, held: str) -> None:
        old, new = await house.add_mitras(2)
        session, search = await house.rerouting([new], old)
        async with trio.open_nursery() as nursery, mitra_held(house.db, old if held == "the old" else new):
            nursery.start_soon(house.commit, session, winning(session, search, new))
            await wait_for_waiters(house.db, 1)
            assert await is_free(house.db, "pairings", "pairing_id", search.pairing_id)
            assert await is_free(house.db, "offers", "offer_id", offer_of(search, new))
            assert await is_free(house.db, "chat_sessions", "session_id", session.session_id)
        assert (await house.stored(session)).mitra_id == new

    async def test_an_end_holds_nothing_of_the_search_while_it_waits_for_its_mitra(self, house: House) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        async with trio.open_nursery() as nursery, mitra_held(house.db, session.mitra_id):
            nursery.start_soon(house.end, session, EndedBy.ADMIN)
            await wait_for_waiters(house.db, 1)
            assert await is_free(house.db, "pairings", "pairing_id", search.pairing_id)
            assert await is_free(house.db, "offers", "offer_id", offer_of(search, mitra))
        assert (await house.stored(session)).status is SessionStatus.ENDED


ENDS = [
    pytest.param(None, "failed", "timed_out", 3_000, id="deadline"),
    pytest.param(EndedBy.CUSTOMER, "cancelled", "customer_cancelled", None, id="customer"),
    pytest.param(EndedBy.MITRA, "failed", "session_ended", 3_000, id="mitra"),
    pytest.param(EndedBy.ADMIN, "failed", "session_ended", 3_000, id="admin"),
    pytest.param(EndedBy.DEACTIVATION, "failed", "session_ended", 3_000, id="deactivation"),
]


def ending(session: Session, by: EndedBy | None) -> Step:
    if by is not None:
        return step(session, EndRequested(at=LATER, by=by))
    assert session.deadline_at is not None
    return step(session, DeadlineReached(at=session.deadline_at, config=CONFIG))


class TestClosing:
    @pytest.mark.parametrize(("by", "status", "cause", "refunded"), ENDS)
    async def test_every_end_of_the_session_withdraws_its_search(
        self, house: House, by: EndedBy | None, status: str, cause: str, refunded: int | None
    ) -> None:
        one, other = await house.add_mitras(2)
        session, search = await house.rerouting([one, other])
        await house.offers.decline(offer_of(search, one), one, LATER)
        await house.commit(session, ending(session, by))
        closed = await house.pairings.load(search.pairing_id)
        assert (closed.status, closed.cause, closed.session_id) == (status, cause, None)
        assert await house.statuses(search) == {one: "declined", other: "cancelled"}
        assert await count(house.db, "outbox", "template = 'offer' AND status <> 'cancelled'") == 0
        assert await house.failures() == [(search.pairing_id, session.session_id, cause)]
        refunds = await house.db.fetch_all("SELECT amount, refunded_ms FROM refunds")
        assert [tuple(row) for row in refunds] == ([] if refunded is None else [(refunded, 3 * MINUTE)])
        assert (await house.sessions.load_capacity(session.mitra_id)).count == 0
        with pytest.raises(OfferResolved):
            await house.accept(offer_of(search, other), other)
        with pytest.raises(OfferResolved):
            await house.commit(session, winning(session, search, other))
        await house.assert_sound()

    async def test_a_search_that_has_failed_ends_its_session_and_is_on_record_once(self, house: House) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        await house.offers.decline(offer_of(search, mitra), mitra, WON_AT)
        await house.pairings.give_up(search, WON_AT)
        failed = await house.pairings.load(search.pairing_id)
        assert (failed.status, failed.cause, failed.payable) == ("failed", "all_declined", True)
        event = SearchFailed(at=LATER, pairing_id=search.pairing_id, cause=FailureCause.ALL_DECLINED)
        ended = await house.commit(session, step(session, event))
        assert (ended.end_reason, ended.refunded_ms) == ("no_mitra", 3 * MINUTE)
        assert await house.failures() == [(search.pairing_id, session.session_id, "all_declined")]
        assert (await only(house.db, "SELECT amount FROM refunds")).amount == 3_000
        last = (await house.sessions.list_timeline(session.session_id))[-1]
        assert (last.event, last.cause, last.evidence["pairing_id"]) == (
            "search_failed",
            "all_declined",
            search.pairing_id,
        )
        await house.assert_sound()

    async def test_a_search_that_nobody_was_asked_in_fails_of_nobody_there(self, house: House) -> None:
        _, search = await house.lose(await house.opened())
        await house.pairings.give_up(search, LATER)
        assert (await house.pairings.load(search.pairing_id)).cause == FailureCause.NO_MITRA_AVAILABLE

    async def test_a_search_that_gives_up_as_its_session_ends_is_on_record_once(self, house: House) -> None:
        for _ in range(10):
            [mitra] = await house.add_mitras(1)
            session, search = await house.rerouting([mitra])
            works = [
                bind(house.pairings.give_up, search, LATER),
                bind(house.commit, session, ending(session, EndedBy.CUSTOMER)),
            ]
            gave_up, ended = await outcomes(works)
            assert isinstance(ended, Session)
            assert gave_up is None or isinstance(gave_up, StepOvertaken)
            assert len([row for row in await house.failures() if row[0] == search.pairing_id]) == 1
        await house.assert_sound()

    async def test_an_accept_and_an_end_in_one_instant_leave_one_of_them(self, house: House) -> None:
        for _ in range(10):
            [mitra] = await house.add_mitras(1)
            session, search = await house.rerouting([mitra])
            works = [
                bind(house.commit, session, winning(session, search, mitra)),
                bind(house.commit, session, ending(session, EndedBy.ADMIN)),
            ]
            won, ended = await outcomes(works)
            assert isinstance(won, Session) != isinstance(ended, Session)
            assert (await house.stored(session)).status is (
                SessionStatus.ACTIVE if isinstance(won, Session) else SessionStatus.ENDED
            )
        await house.assert_sound()

    async def test_an_end_that_was_overtaken_leaves_the_search_alone(self, house: House) -> None:
        [mitra] = await house.add_mitras(1)
        session, search = await house.rerouting([mitra])
        with pytest.raises(StepOvertaken):
            await Sessions(house.db, new_id()).commit(session, ending(session, EndedBy.ADMIN), new_id(), NOBODY)
        await house.assert_untouched(session, search)
        assert await house.failures() == []


class TestAgain:
    async def test_a_session_may_be_handed_on_twice_each_time_by_a_search_of_its_own(self, house: House) -> None:
        first, second, third, fourth = await house.add_mitras(4)
        session, search = await house.rerouting([second, third], first)
        session = await house.commit(session, winning(session, search, second))
        session, again = await house.lose(session, WON_AT + MINUTE)
        assert (again.without_mitra_ids, again.duration_minutes, again.amount) == ((first, second), 2, 2_000)
        again = await house.wave(again, [fourth, third], WON_AT + MINUTE)
        for mitra in (second, third):  # whatever the first search came to, its offers are over
            with pytest.raises(OfferResolved):
                await house.commit(session, winning(session, search, mitra))
        session = await house.commit(session, winning(session, again, fourth, WON_AT + 2 * MINUTE))
        assert (session.mitra_id, session.remaining_ms) == (fourth, 2 * MINUTE)
        assert await house.stored(session) == session
        assert session.former_mitra_ids == (first, second)
        assert await house.statuses(search) == {second: "accepted", third: "taken"}
        assert await house.statuses(again) == {fourth: "accepted", third: "taken"}
        with pytest.raises(OfferResolved):  # it was hers, and is no longer
            await house.accept(offer_of(search, second), second)
        held = [(await house.sessions.load_capacity(mitra)).count for mitra in (first, second, third, fourth)]
        assert held == [0, 0, 0, 1]
        assert await count(house.db, "pairings", "status = 'matched'") == 2
        await house.assert_sound()

    async def test_nobody_from_whom_the_session_was_taken_gets_an_offer_whoever_proposes_her(
        self, house: House
    ) -> None:
        first, second, third = await house.add_mitras(3)
        session, search = await house.rerouting([second], first)
        session = await house.commit(session, winning(session, search, second))
        session, again = await house.lose(session, WON_AT + MINUTE)
        proposed = [first, second, third]
        deadline_at = WON_AT + 2 * MINUTE
        assert await house.pairings.send_wave(again, proposed, absent=(), deadline_at=deadline_at, at=WON_AT) == 1
        assert await house.statuses(again) == {third: "open"}

    async def test_each_mitra_counts_her_own_messages(self, house: House) -> None:
        """The same id and the same words, from one after the other: both are there, and each is found as her own (C3)."""
        [second] = await house.add_mitras(1)
        session = await house.opened()
        async with open_journal(house.db) as journal:
            await journal.append(session.session_id, session.epoch, [a_row(1, session)])
            with pytest.raises(StepOvertaken):
                await journal.append(session.session_id, session.epoch, [a_row(2, session)])
            session, search = await house.lose(session)
            search = await house.wave(search, [second])
            session = await house.commit(session, winning(session, search, second))
            await journal.append(session.session_id, session.epoch, [a_row(2, session)])
        ids = await house.sessions.list_message_ids(session.session_id, 0, 10)
        assert ids == [(1, "mitra", "1"), (2, "mitra:2", "1")]
        for seq, sender, id_ in ids:
            found = await house.sessions.find_message(session.session_id, sender, id_)
            assert found is not None
            assert found.seq == seq
        await house.assert_sound()

    async def test_one_session_has_one_open_search_whoever_inserts(self, house: House) -> None:
        """The unique index has the last word, also over a step that some other way made possible."""
        session, search = await house.lose(await house.opened())
        await house.db.execute(
            "UPDATE chat_sessions SET status = 'active', running_since = now(), expires_at = now() WHERE session_id = %(id)s",
            {"id": session.session_id},
        )
        twice = replace(losing(replace(session, status=SessionStatus.ACTIVE)), session=replace(session, version=3))
        with pytest.raises(StepOvertaken):
            await house.commit(replace(session, status=SessionStatus.ACTIVE), twice)
        assert [row.pairing_id for row in await house.db.fetch_all("SELECT pairing_id FROM pairings")] == [
            search.pairing_id
        ]


class TestTakingUp:
    async def test_a_session_and_its_search_survive_their_node_with_all_they_have(self, house: House) -> None:
        winner, other, declined = await house.add_mitras(3)
        async with open_node(house.db) as dead:
            before = House(house.db, dead.node_id)
            session, search = await before.rerouting([winner, other, declined])
            await before.offers.decline(offer_of(search, declined), declined, LATER)
            search = await before.pairings.load(search.pairing_id)
        async with open_node(house.db) as lease:
            after = House(house.db, lease.node_id)
            back = LATER + 10_000
            assert await after.pairings.take_up(back) == [search.pairing_id]
            [taken] = await after.sessions.take_up(10)
            mine = taken.stored.session
            assert mine == replace(session, epoch=session.epoch + 1)
            moved = [replace(o, deadline_at=back) if o.status == "open" else o for o in search.offers]
            assert normal(await after.pairings.load(search.pairing_id)) == normal(
                replace(search, deadline_at=back, offers=tuple(moved))
            )
            with pytest.raises(StepOvertaken):  # the dead node comes to itself
                await before.commit(session, winning(session, search, winner))
            assert await after.statuses(search) == {winner: "open", other: "open", declined: "declined"}
            won = await after.commit(mine, winning(mine, search, winner))
            assert await after.stored(session) == won
            assert await after.statuses(search) == {winner: "accepted", other: "taken", declined: "declined"}
            assert await after.pairings.take_up(LATER) == []

    async def test_an_offer_that_waits_for_people_to_come_back_waits_no_longer_than_its_session(
        self, house: House
    ) -> None:
        """What is told is kept: the session ends at its deadline, whatever an offer says."""
        [mitra] = await house.add_mitras(1)
        async with open_node(house.db) as dead:
            session, search = await House(house.db, dead.node_id).rerouting([mitra])
        assert session.deadline_at is not None
        async with open_node(house.db) as lease:
            after = House(house.db, lease.node_id)
            back = session.deadline_at + 5_000
            assert await after.pairings.take_up(back) == [search.pairing_id]
            taken = await after.pairings.load(search.pairing_id)
            assert [offer.deadline_at for offer in taken.offers] == [session.deadline_at]

    async def test_a_search_whose_opening_nobody_heard_of_is_taken_up_by_its_own_node(self, house: House) -> None:
        async with open_node(house.db) as lease:
            mine = House(house.db, lease.node_id)
            _, search = await mine.lose(await mine.opened())
            assert await mine.pairings.take_up(LATER, kept=[search.pairing_id]) == []
            assert await mine.pairings.take_up(LATER, kept=[]) == [search.pairing_id]
            assert (await mine.pairings.load(search.pairing_id)).deadline_at == LATER
