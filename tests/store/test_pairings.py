"""Searches and offers on a real Postgres: one winner whatever the concurrency, capacity never exceeded, every cause on record."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import trio

from halo.clock import SystemClock
from halo.config import LiveConfig
from halo.effects import Step
from halo.errors import (
    CapacityExceeded,
    IdReused,
    InvalidState,
    MitraDeactivated,
    NotFound,
    OfferResolved,
    PaymentInUse,
    Refusal,
    StepOvertaken,
)
from halo.outbox import PUSH_PATIENCE_MS
from halo.pairing import Opening, PairingStatus, Search, open_match
from halo.payment import PaymentStatus
from halo.store.nodes import LOCK_CLASS
from halo.store.offers import Answered, Offers, OpenedBefore
from halo.store.pairings import Pairings
from halo.store.payments import Payments
from halo.store.postgres import Postgres, Transaction, open_postgres
from halo.store.sessions import Sessions
from tests.actors.pairing_rows import FakeMitra, FakeRows
from tests.store.ground import standing_still

NODE = str(uuid4())
CLOCK = SystemClock()
CONFIG = LiveConfig()


class House:
    """The rows under test, and what a test needs to people them."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.pairings = Pairings(db, NODE)
        self.offers = Offers(db, NODE)

    async def add_mitra(
        self, *, idle_ms: int = 0, heard_ms: int = 0, max_sessions: int = 3, online: bool = True
    ) -> str:
        mitra_id, now = str(uuid4()), CLOCK.now()
        await self.db.execute(
            "INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, max_sessions, idle_since)"
            " VALUES (%(mitra_id)s, %(online)s, at(%(heard)s), %(max_sessions)s, at(%(idle)s))",
            {
                "mitra_id": mitra_id,
                "online": online,
                "heard": now - heard_ms,
                "max_sessions": max_sessions,
                "idle": now - idle_ms,
            },
        )
        return mitra_id

    async def add_payment(
        self, status: str = "confirmed", *, customer_id: str | None = None, is_extension: bool = False
    ) -> tuple[str, str]:
        """`(customer_id, payment_request_id)`"""
        payment_request_id = str(uuid4())
        if customer_id is None:
            customer_id = str(uuid4())
            await self.db.execute("INSERT INTO customers (customer_id) VALUES (%(id)s)", {"id": customer_id})
        await self.db.execute(
            "INSERT INTO payment_requests (payment_request_id, customer_id, amount, currency, duration_minutes, status, is_extension,"
            " failure_cause, confirmed_at, failed_at, consumed_at)"
            " VALUES (%(id)s, %(customer_id)s, 10000, 'IDR', 10, %(status)s::text, %(is_extension)s,"
            " CASE WHEN %(status)s::text = 'failed' THEN 'payment_failed' END,"
            " CASE WHEN %(status)s::text IN ('confirmed', 'consumed') THEN now() END, CASE WHEN %(status)s::text = 'failed' THEN now() END,"
            " CASE WHEN %(status)s::text = 'consumed' THEN now() END)",
            {"id": payment_request_id, "customer_id": customer_id, "status": status, "is_extension": is_extension},
        )
        return customer_id, payment_request_id

    async def search(self, mitra_ids: list[str], status: str = "confirmed") -> Search:
        """A search whose first wave has asked these mitras."""
        customer_id, payment_request_id = await self.add_payment(status)
        view = await self.pairings.open(str(uuid4()), customer_id, payment_request_id, "regular", CLOCK.now())
        search = await self.pairings.load(view.pairing_id)
        if mitra_ids:
            assert await self.wave(search, mitra_ids) == len(mitra_ids)
        return await self.pairings.load(view.pairing_id)

    async def wave(self, search: Search, mitra_ids: list[str], absent: tuple[str, ...] = ()) -> int:
        now = CLOCK.now()
        return await self.pairings.send_wave(search, mitra_ids, absent=absent, deadline_at=now + 30_000, at=now)

    async def accept(self, offer_id: str, mitra_id: str) -> Answered:
        opening = Opening(session_id=str(uuid4()), at=CLOCK.now(), minute_ms=60_000, config=CONFIG)
        return await self.offers.accept(
            offer_id, mitra_id, lambda search: open_match(search, mitra_id, opening), opening.at
        )

    async def accept_offer(self, search: Search, mitra_id: str) -> Step:
        answered = await self.accept(offer_of(search, mitra_id), mitra_id)
        assert answered.opened is not None
        return answered.opened

    async def count(self, table: str, where: str = "true") -> int:
        row = await self.db.fetch_one(f"SELECT count(*) AS n FROM {table} WHERE {where}")
        assert row is not None
        return int(row.n)

    async def failures(self, pairing_id: str) -> list[Any]:
        return await self.db.fetch_all(
            "SELECT cause, evidence, customer_id FROM pairing_failures WHERE pairing_id = %(id)s", {"id": pairing_id}
        )

    async def statuses(self, search: Search) -> dict[str, str]:
        return {offer.mitra_id: offer.status.value for offer in (await self.pairings.load(search.pairing_id)).offers}


def offer_of(search: Search, mitra_id: str) -> str:
    [offer_id] = [offer.offer_id for offer in search.offers if offer.mitra_id == mitra_id]
    return offer_id


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


class TestOpening:
    async def test_a_search_begins_before_its_first_wave_and_is_due_at_once(self, house: House) -> None:
        customer_id, payment_request_id = await house.add_payment("pending")
        view = await house.pairings.open(str(uuid4()), customer_id, payment_request_id, "sensitive", 1_700_000_000_123)
        search = await house.pairings.load(view.pairing_id)
        assert (search.status, search.wave, search.deadline_at, search.offers) == (
            "searching",
            0,
            1_700_000_000_123,
            (),
        )
        assert (search.topic_sensitivity, search.payment_status, search.amount) == ("sensitive", "pending", 10_000)
        assert view == await house.pairings.load_view(view.pairing_id, customer_id) == search.view()

    async def test_payments_that_cannot_pay_for_a_session_are_refused_by_name(self, house: House) -> None:
        now = CLOCK.now()
        customer_id, _ = await house.add_payment()
        _, someone_elses = await house.add_payment()
        cases = [
            (str(uuid4()), NotFound),
            (someone_elses, NotFound),
            ((await house.add_payment("failed", customer_id=customer_id))[1], InvalidState),
            ((await house.add_payment("consumed", customer_id=customer_id))[1], InvalidState),
            ((await house.add_payment(customer_id=customer_id, is_extension=True))[1], InvalidState),
        ]
        for payment_request_id, refusal in cases:
            with pytest.raises(refusal):
                await house.pairings.open(str(uuid4()), customer_id, payment_request_id, "regular", now)
        assert await house.count("pairings") == 0

    async def test_fifty_searches_with_one_payment_at_once_open_one(self, house: House) -> None:
        customer_id, payment_request_id = await house.add_payment()
        opens = [
            bind(house.pairings.open, str(uuid4()), customer_id, payment_request_id, "regular", CLOCK.now())
            for _ in range(50)
        ]
        results = await outcomes(opens)
        assert Counter(isinstance(result, PaymentInUse) for result in results) == {True: 49, False: 1}
        assert await house.count("pairings") == 1

    async def test_the_same_call_again_gives_the_same_search_and_another_payment_is_refused(self, house: House) -> None:
        customer_id, payment_request_id = await house.add_payment()
        pairing_id = str(uuid4())
        opens = [bind(house.pairings.open, pairing_id, customer_id, payment_request_id, "regular", CLOCK.now())] * 10
        assert {result.pairing_id for result in await outcomes(opens)} == {pairing_id}
        _, other = await house.add_payment(customer_id=customer_id)
        with pytest.raises(IdReused):
            await house.pairings.open(pairing_id, customer_id, other, "regular", CLOCK.now())
        assert await house.count("pairings") == 1

    async def test_a_payment_is_free_again_after_its_search_was_cancelled_and_never_after_a_match(
        self, house: House
    ) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([])
        await house.pairings.cancel(search.pairing_id, search.customer_id, CLOCK.now())
        again = await house.pairings.open(
            str(uuid4()), search.customer_id, search.payment_request_id, "regular", CLOCK.now()
        )
        assert await house.wave(await house.pairings.load(again.pairing_id), [mitra_id]) == 1
        await house.accept_offer(await house.pairings.load(again.pairing_id), mitra_id)
        with pytest.raises(InvalidState, match="consumed"):
            await house.pairings.open(
                str(uuid4()), search.customer_id, search.payment_request_id, "regular", CLOCK.now()
            )

    async def test_a_pairing_is_shown_to_its_own_customer_only(self, house: House) -> None:
        search = await house.search([])
        for customer_id in (str(uuid4()), (await house.add_payment())[0]):
            with pytest.raises(NotFound):
                await house.pairings.load_view(search.pairing_id, customer_id)
            with pytest.raises(NotFound):
                await house.pairings.cancel(search.pairing_id, customer_id, CLOCK.now())


class TestWaves:
    async def test_a_wave_asks_each_mitra_once_with_one_deadline(self, house: House) -> None:
        mitras = [await house.add_mitra() for _ in range(3)]
        search = await house.search(mitras)
        assert {offer.mitra_id for offer in search.offers} == set(mitras)
        assert {(offer.wave, offer.status.value, offer.deadline_at) for offer in search.offers} == {
            (1, "open", search.deadline_at)
        }
        assert search.wave == 1

    async def test_the_next_wave_times_out_the_last_and_never_asks_anybody_twice(self, house: House) -> None:
        first, second = await house.add_mitra(), await house.add_mitra()
        search = await house.search([first])
        assert await house.wave(search, [first, second]) == 1
        assert await house.statuses(search) == {first: "timed_out", second: "open"}

    async def test_who_went_offline_or_filled_up_or_was_deactivated_meanwhile_is_not_asked(self, house: House) -> None:
        good, offline, deactivated, full = [await house.add_mitra(max_sessions=1) for _ in range(4)]
        await house.accept_offer(await house.search([full]), full)
        await house.db.execute("UPDATE mitras SET is_online = false WHERE mitra_id = %(id)s", {"id": offline})
        await house.db.execute("UPDATE mitras SET is_active = false WHERE mitra_id = %(id)s", {"id": deactivated})
        search = await house.search([])
        assert await house.wave(search, [offline, deactivated, full]) == 0
        assert (await house.pairings.load(search.pairing_id)).wave == 0
        assert await house.wave(search, [offline, deactivated, full, good]) == 1

    async def test_a_wave_decided_on_older_rows_is_overtaken_and_writes_nothing(self, house: House) -> None:
        first, second, third = [await house.add_mitra() for _ in range(3)]
        search = await house.search([])
        results = await outcomes([bind(house.wave, search, [mitra_id]) for mitra_id in (first, second, third)])
        assert Counter(isinstance(result, StepOvertaken) for result in results) == {True: 2, False: 1}
        assert await house.count("offers") == 1
        with pytest.raises(StepOvertaken):
            await house.pairings.give_up(search, CLOCK.now())

    async def test_a_mitra_without_a_socket_is_asked_by_push_until_the_offer_is_resolved(self, house: House) -> None:
        present, absent = await house.add_mitra(), await house.add_mitra()
        search = await house.search([])
        await house.wave(search, [present, absent], absent=(absent,))
        search = await house.pairings.load(search.pairing_id)
        push, told = await house.db.fetch_all("SELECT * FROM outbox ORDER BY due_at")
        assert (push.receipt, push.told_by) == (None, None)
        assert (told.user_id, told.due_at) == (present, push.due_at + PUSH_PATIENCE_MS)
        assert (told.receipt, told.told_by) == (f"offer:{offer_of(search, present)}", NODE)
        assert (push.kind, push.template, push.user_id, push.status) == ("push", "offer", absent, "due")
        assert push.collapse_key == f"offer:{offer_of(search, absent)}"
        assert push.expires_at == search.deadline_at
        assert push.payload == {"offer_id": offer_of(search, absent), "pairing_id": search.pairing_id}
        await house.accept_offer(search, present)
        assert await house.count("outbox", "status = 'cancelled'") == 2


class TestAccept:
    async def test_the_whole_match_is_one_transaction(self, house: House) -> None:
        winner, loser = await house.add_mitra(idle_ms=60_000), await house.add_mitra()
        search = await house.search([winner, loser])
        opened = await house.accept_offer(search, winner)
        session_id = opened.session.session_id
        matched = await house.pairings.load(search.pairing_id)
        assert (matched.status, matched.session_id) == (PairingStatus.MATCHED, session_id)
        assert await house.statuses(search) == {winner: "accepted", loser: "taken"}
        stored = await Sessions(house.db, NODE).load(session_id)
        assert stored is not None
        assert stored.session == opened.session
        [payment] = await house.db.fetch_all("SELECT status, session_id FROM payment_requests")
        assert (payment.status, payment.session_id) == ("consumed", session_id)
        [entry] = await house.db.fetch_all(
            "SELECT type, amount, duration_minutes, session_id FROM customer_transactions"
        )
        assert (entry.type, entry.amount, entry.duration_minutes, entry.session_id) == (
            "session",
            10_000,
            10,
            session_id,
        )
        [mitra] = await house.db.fetch_all("SELECT * FROM mitras WHERE mitra_id = %(id)s", {"id": winner})
        assert (mitra.capacity_version, mitra.idle_since) == (1, opened.at)

    async def test_a_pending_payment_holds_the_session_and_remembers_it(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        opened = await house.accept_offer(await house.search([mitra_id], "pending"), mitra_id)
        [payment] = await house.db.fetch_all("SELECT status, session_id FROM payment_requests")
        assert (payment.status, payment.session_id) == (PaymentStatus.PENDING, opened.session.session_id)
        assert await house.count("chat_sessions", "status = 'pending_payment'") == 1
        assert await house.count("customer_transactions") == 0

    async def test_200_concurrent_accepts_of_one_pairing_open_one_session(self, house: House) -> None:
        mitras = [await house.add_mitra() for _ in range(200)]
        search = await house.search(mitras)
        results = await outcomes([bind(house.accept, offer.offer_id, offer.mitra_id) for offer in search.offers])
        kinds = Counter(type(result) for result in results)
        assert kinds == {Answered: 1, OfferResolved: 199}
        assert await house.count("chat_sessions") == 1
        assert await house.count("customer_transactions") == 1
        assert Counter((await house.statuses(search)).values()) == {"accepted": 1, "taken": 199}
        assert await house.count("mitras", "capacity_version > 0") == 1

    async def test_a_mitra_with_one_slot_accepting_twenty_pairings_at_once_gets_one(self, house: House) -> None:
        mitra_id = await house.add_mitra(max_sessions=1)
        searches = [await house.search([mitra_id]) for _ in range(20)]
        results = await outcomes([bind(house.accept_offer, search, mitra_id) for search in searches])
        assert Counter(type(result) for result in results) == {Step: 1, CapacityExceeded: 19}
        assert await house.count("chat_sessions", "status <> 'ended'") == 1
        assert await house.count("pairings", "status = 'searching'") == 19
        assert await house.count("offers", "status = 'open'") == 19

    async def test_the_same_yes_many_times_at_once_is_taken_once_and_all_are_told_of_that_session(
        self, house: House
    ) -> None:
        mitra_id = await house.add_mitra(max_sessions=1)  # so that a repeat must not be told that there is no room
        search = await house.search([mitra_id])
        answers = await outcomes([bind(house.accept, offer_of(search, mitra_id), mitra_id)] * 20)
        [opened] = [answered.opened for answered in answers if answered.opened is not None]
        repeats = [answered.before for answered in answers if answered.opened is None]
        assert repeats == [OpenedBefore(opened.session.session_id, "active")] * 19
        assert await house.count("chat_sessions") == 1

    async def test_the_winner_is_told_of_its_session_as_it_is_by_now_and_nobody_else_is(self, house: House) -> None:
        winner, loser = await house.add_mitra(), await house.add_mitra()
        search = await house.search([winner, loser], "pending")
        opened = await house.accept_offer(search, winner)
        await house.db.execute("UPDATE mitras SET is_online = false")  # who is gone may ask all the same
        again = await house.accept(offer_of(search, winner), winner)
        assert (again.opened, again.before) == (None, OpenedBefore(opened.session.session_id, "pending_payment"))
        with pytest.raises(OfferResolved):
            await house.accept(offer_of(search, loser), loser)

    async def test_others_offers_and_unknown_ones_do_not_exist_for_a_mitra(self, house: House) -> None:
        asked, other = await house.add_mitra(), await house.add_mitra()
        search = await house.search([asked])
        for offer_id in (offer_of(search, asked), str(uuid4())):
            with pytest.raises(NotFound):
                await house.accept(offer_id, other)
            with pytest.raises(NotFound):
                await house.offers.decline(offer_id, other, CLOCK.now())

    async def test_a_deactivated_mitra_gets_nothing(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])
        await house.db.execute("UPDATE mitras SET is_active = false WHERE mitra_id = %(id)s", {"id": mitra_id})
        with pytest.raises(MitraDeactivated):
            await house.accept_offer(search, mitra_id)
        assert await house.count("chat_sessions") == 0

    async def test_a_payment_that_failed_meanwhile_fails_the_pairing(self, house: House) -> None:
        mitra_id, other = await house.add_mitra(), await house.add_mitra()
        search = await house.search([mitra_id, other])
        await house.db.execute(
            "UPDATE payment_requests SET status = 'failed', failure_cause = 'payment_failed', failed_at = now()"
        )
        assert await house.accept(offer_of(search, mitra_id), mitra_id) == Answered(search.pairing_id, None)
        failed = await house.pairings.load(search.pairing_id)
        assert (failed.status, failed.cause) == (PairingStatus.FAILED, "payment_failed")
        assert await house.statuses(search) == {mitra_id: "cancelled", other: "cancelled"}
        [failure] = await house.failures(search.pairing_id)
        assert (failure.cause, failure.customer_id) == ("payment_failed", search.customer_id)
        assert await house.count("chat_sessions") == 0

    async def test_an_offer_declined_between_the_first_look_and_the_statement_opens_nothing(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])

        async def decline_under_the_lock(tx: Transaction) -> None:
            await tx.fetch_one("SELECT FROM mitras WHERE mitra_id = %(id)s FOR UPDATE", {"id": mitra_id})
            nursery.start_soon(accept)
            with trio.fail_after(10):
                while await house.count("pg_locks", "NOT granted") == 0:  # until the accept waits for this lock
                    await trio.sleep(0.01)
            await house.offers.decline(offer_of(search, mitra_id), mitra_id, CLOCK.now())

        async def accept() -> None:
            with pytest.raises(OfferResolved):
                await house.accept_offer(search, mitra_id)

        async with trio.open_nursery() as nursery:
            await house.db.transact(decline_under_the_lock)
        assert await house.count("chat_sessions") == await house.count("session_timeline") == 0
        assert await house.count("payment_requests", "status = 'confirmed' AND session_id IS NULL") == 1


class TestRandomly:
    @pytest.mark.parametrize("seed", range(6))
    async def test_capacity_is_never_exceeded_and_every_search_has_one_outcome(self, house: House, seed: int) -> None:
        """Accepts, declines, cancels, waves, deadlines and withdrawals of many pairings, all at once."""
        dice = random.Random(seed)
        mitras = [await house.add_mitra(max_sessions=dice.randint(1, 3)) for _ in range(6)]
        searches = [await house.search(dice.sample(mitras, dice.randint(1, 4))) for _ in range(12)]
        works: list[Callable[[], Awaitable[Any]]] = []
        for search in searches:
            for offer in search.offers:
                accept = bind(house.accept, offer.offer_id, offer.mitra_id)
                decline = bind(house.offers.decline, offer.offer_id, offer.mitra_id, CLOCK.now())
                works.append(dice.choice([accept, accept, decline]))
            cancel = bind(house.pairings.cancel, search.pairing_id, search.customer_id, CLOCK.now())
            give_up = bind(house.pairings.give_up, search, CLOCK.now())
            works += dice.choice([[cancel], [give_up], [bind(house.wave, search, mitras)], []])
        works.append(bind(house.offers.rescind, dice.choice(mitras), CLOCK.now()))
        dice.shuffle(works)
        results = await outcomes(works)
        unexpected = [
            result
            for result in results
            if isinstance(result, Exception)
            and not isinstance(result, OfferResolved | CapacityExceeded | InvalidState | StepOvertaken)
        ]
        assert not unexpected
        overfull = await house.db.fetch_all(
            "SELECT m.mitra_id FROM mitras m JOIN chat_sessions s ON s.mitra_id = m.mitra_id AND s.status <> 'ended'"
            " GROUP BY m.mitra_id HAVING count(*) > m.max_sessions"
        )
        assert not overfull
        matched = await house.count("pairings", "status = 'matched'")
        assert matched == await house.count("chat_sessions") == await house.count("offers", "status = 'accepted'")
        assert matched == await house.count("customer_transactions")
        assert matched == sum(isinstance(result, Answered) for result in results)
        assert await house.count("pairings", "status IN ('failed', 'cancelled')") == await house.count(
            "pairing_failures"
        )
        assert (
            await house.count(
                "offers o JOIN pairings p USING (pairing_id)", "o.status = 'open' AND p.status <> 'searching'"
            )
            == 0
        )


class TestOneWinner:
    @pytest.mark.parametrize("turn", range(8))
    async def test_accept_cancel_and_deadline_at_the_same_instant(self, house: House, turn: int) -> None:
        mitras = [await house.add_mitra() for _ in range(3)]
        search = await house.search(mitras)
        works = [bind(house.accept_offer, search, mitra_id) for mitra_id in mitras]
        works.append(bind(house.pairings.cancel, search.pairing_id, search.customer_id, CLOCK.now()))
        works.append(bind(house.pairings.give_up, search, CLOCK.now()))
        random.Random(turn).shuffle(works)
        results = await outcomes(works)
        outcome = await house.pairings.load(search.pairing_id)
        steps = [result for result in results if isinstance(result, Step)]
        if outcome.status is PairingStatus.MATCHED:
            assert [step.session.session_id for step in steps] == [outcome.session_id]
            assert await house.failures(search.pairing_id) == []
        else:
            assert not steps
            [failure] = await house.failures(search.pairing_id)
            assert failure.cause == outcome.cause in {"customer_cancelled", "timed_out"}
        assert "open" not in (await house.statuses(search)).values()
        assert sum(isinstance(result, OfferResolved) for result in results) == 3 - len(steps)


class TestCauses:
    @pytest.mark.parametrize(
        ("answers", "cause"),
        [
            ("", "no_mitra_available"),
            ("dd", "all_declined"),
            ("do", "timed_out"),
            ("oo", "timed_out"),
            ("dr", "timed_out"),
        ],
    )
    async def test_giving_up_records_the_one_cause(self, house: House, answers: str, cause: str) -> None:
        """d: the mitra declines; o: the offer stays open; r: it is rescinded."""
        mitras = [await house.add_mitra() for _ in answers]
        search = await house.search(mitras)
        for answer, mitra_id in zip(answers, mitras, strict=True):
            if answer == "d":
                assert (
                    await house.offers.decline(offer_of(search, mitra_id), mitra_id, CLOCK.now()) == search.pairing_id
                )
            elif answer == "r":
                assert await house.offers.rescind(mitra_id, CLOCK.now()) == [search.pairing_id]
        await house.pairings.give_up(search, CLOCK.now())
        failed = await house.pairings.load_view(search.pairing_id, search.customer_id)
        assert (failed.status, failed.cause, failed.session_id) == (PairingStatus.FAILED, cause, None)
        [failure] = await house.failures(search.pairing_id)
        assert (failure.cause, failure.evidence["waves"]) == (cause, 1 if answers else 0)

    async def test_cancelling_records_it_and_withdraws_the_offers(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])
        view = await house.pairings.cancel(search.pairing_id, search.customer_id, CLOCK.now())
        assert (view.status, view.cause) == (PairingStatus.CANCELLED, "customer_cancelled")
        assert await house.pairings.cancel(search.pairing_id, search.customer_id, CLOCK.now()) == view
        assert await house.statuses(search) == {mitra_id: "cancelled"}
        assert [failure.cause for failure in await house.failures(search.pairing_id)] == ["customer_cancelled"]
        with pytest.raises(OfferResolved):
            await house.accept_offer(search, mitra_id)

    async def test_a_match_cannot_be_cancelled(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])
        await house.accept_offer(search, mitra_id)
        with pytest.raises(InvalidState):
            await house.pairings.cancel(search.pairing_id, search.customer_id, CLOCK.now())


class TestOffers:
    async def test_a_mitra_sees_open_offers_only(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        searches = [await house.search([mitra_id]) for _ in range(3)]
        listed = await house.offers.list_open(mitra_id)
        assert listed == [search.frame(search.offers[0]) for search in searches]
        await house.offers.decline(listed[0].offer_id, mitra_id, CLOCK.now())
        await house.pairings.cancel(searches[1].pairing_id, searches[1].customer_id, CLOCK.now())
        assert [offer.offer_id for offer in await house.offers.list_open(mitra_id)] == [listed[2].offer_id]

    async def test_a_no_may_be_repeated_and_comes_too_late_for_what_was_resolved(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])
        offer_id = offer_of(search, mitra_id)
        for _ in range(2):
            assert await house.offers.decline(offer_id, mitra_id, CLOCK.now()) == search.pairing_id
        with pytest.raises(OfferResolved):
            await house.accept(offer_id, mitra_id)
        late = await house.search([mitra_id])
        await house.pairings.cancel(late.pairing_id, late.customer_id, CLOCK.now())
        with pytest.raises(OfferResolved):
            await house.offers.decline(offer_of(late, mitra_id), mitra_id, CLOCK.now())

    async def test_rescinding_withdraws_all_of_one_mitra_and_nothing_else(self, house: House) -> None:
        gone, stays = await house.add_mitra(), await house.add_mitra()
        searches = [await house.search([gone, stays]) for _ in range(3)]
        assert set(await house.offers.rescind(gone, CLOCK.now())) == {search.pairing_id for search in searches}
        assert await house.offers.rescind(gone, CLOCK.now()) == []
        for search in searches:
            assert await house.statuses(search) == {gone: "cancelled", stays: "open"}


class TestTakingUp:
    async def test_a_new_node_takes_up_the_searches_of_a_dead_one_and_deadlines_wait(self, house: House) -> None:
        mitra_id = await house.add_mitra()
        search = await house.search([mitra_id])
        not_before = search.deadline_at + 10_000
        successor = Pairings(house.db, str(uuid4()))
        assert await successor.take_up(not_before) == [search.pairing_id]
        taken = await successor.load(search.pairing_id)
        assert (taken.wave, taken.deadline_at, taken.offers[0].deadline_at) == (1, not_before, not_before)

    async def test_a_deadline_that_lies_further_ahead_is_kept(self, house: House) -> None:
        search = await house.search([await house.add_mitra()])
        await Pairings(house.db, str(uuid4())).take_up(search.deadline_at - 10_000)
        assert (await house.pairings.load(search.pairing_id)).deadline_at == search.deadline_at

    async def test_a_living_node_keeps_its_searches(self, house: House) -> None:
        search = await house.search([])
        node = await house.db.fetch_one("INSERT INTO nodes (node_id) VALUES (%(id)s) RETURNING lock_key", {"id": NODE})
        assert node is not None
        successor = Pairings(house.db, str(uuid4()))
        async with house.db.dedicated() as connection:
            await connection.fetch_one(
                "SELECT pg_advisory_lock(%(class)s::integer, %(key)s::integer)",
                {"class": LOCK_CLASS, "key": node.lock_key},
            )
            assert await successor.take_up(CLOCK.now()) == []
            assert await house.pairings.take_up(CLOCK.now(), {search.pairing_id}) == []
        with trio.fail_after(10):
            while (
                taken := await successor.take_up(CLOCK.now())
            ) == []:  # until the server has noticed that the connection is gone
                await trio.sleep(0.01)
        assert taken == [search.pairing_id]

    async def test_a_search_of_our_own_that_nobody_keeps_is_taken_up_again(self, house: House) -> None:
        """It was parked, or the answer to the commit that made it ours was lost."""
        kept, left = await house.search([]), await house.search([])
        await house.db.execute("INSERT INTO nodes (node_id) VALUES (%(id)s)", {"id": NODE})
        assert await house.pairings.take_up(CLOCK.now(), {kept.pairing_id, left.pairing_id}) == []
        assert await house.pairings.take_up(CLOCK.now(), {kept.pairing_id}) == [left.pairing_id]

    async def test_a_search_that_another_node_took_up_meanwhile_stays_there(self, house: House) -> None:
        """Both saw its owner dead; the other one committed between our look and our lock."""
        search, theirs, mine = (
            await house.search([await house.add_mitra()]),
            str(uuid4()),
            Pairings(house.db, str(uuid4())),
        )
        await house.db.execute("INSERT INTO nodes (node_id) VALUES (%(id)s)", {"id": NODE})
        async with standing_still(house.db, lambda: mine.take_up(search.deadline_at + 10_000)) as held:
            await house.db.execute("UPDATE pairings SET owner = %(owner)s", {"owner": theirs})
        assert held.taken == []
        assert await house.count("pairings", f"owner = '{theirs}'") == 1
        untouched = await house.pairings.load(search.pairing_id)
        assert {untouched.deadline_at, untouched.offers[0].deadline_at} == {search.deadline_at}

    async def test_what_is_resolved_is_not_taken_up(self, house: House) -> None:
        search = await house.search([])
        await house.pairings.give_up(search, CLOCK.now())
        assert await Pairings(house.db, str(uuid4())).take_up(CLOCK.now()) == []


DEEDS = [
    "open",
    "send_wave",
    "send_wave",
    "send_wave",
    "accept",
    "accept",
    "accept",
    "decline",
    "decline",
    "rescind",
    "stale",
    "cancel",
    "give_up",
]
"""What may happen, as often as makes matches as likely as other ends."""


class TestTheFake:
    @pytest.mark.parametrize("seed", range(8))
    async def test_plays_every_history_as_the_rows_do(self, house: House, seed: int) -> None:
        """The stand-in that the actors' tests trust is held to the real thing: same answers, same refusals, same rows."""
        dice, fake = random.Random(seed), FakeRows()
        mitras = [await house.add_mitra(max_sessions=dice.randint(1, 2)) for _ in range(4)]
        for row in await house.db.fetch_all("SELECT * FROM mitras"):
            fake.mitras[row.mitra_id] = FakeMitra(row.mitra_id, max_sessions=row.max_sessions)
        payments = Payments(house.db, CLOCK)
        paid = [await house.add_payment(dice.choice(["pending", "confirmed", "confirmed", "failed"])) for _ in range(4)]
        for _, payment_request_id in paid:
            fake.add_payment(await payments.load(payment_request_id))
        pairing_ids: list[str] = []
        for turn in range(100):
            at = 1_700_000_000_000 + turn
            real, stand_in = await self.play(dice, at, house, fake, mitras, paid, pairing_ids)
            assert real == stand_in, f"turn {turn}"
            for pairing_id in pairing_ids:
                if pairing_id in fake.searches:
                    assert normal(await house.pairings.load(pairing_id)) == normal(fake.searches[pairing_id]), (
                        f"turn {turn}"
                    )
        recorded = await house.db.fetch_all("SELECT pairing_id, cause FROM pairing_failures")
        assert sorted((row.pairing_id, row.cause) for row in recorded) == sorted(fake.failures)

    async def play(
        self,
        dice: random.Random,
        at: int,
        house: House,
        fake: FakeRows,
        mitras: list[str],
        paid: list[tuple[str, str]],
        pairing_ids: list[str],
    ) -> tuple[object, object]:
        mitra_id, (customer_id, payment_request_id) = dice.choice(mitras), dice.choice(paid)
        deed = dice.choice(DEEDS)
        if deed == "open" or not pairing_ids:
            pairing_id = dice.choice([*pairing_ids, str(uuid4()), str(uuid4())])
            if pairing_id not in pairing_ids:
                pairing_ids.append(pairing_id)
            given = (pairing_id, customer_id, payment_request_id, "regular", at)
            return await both(house.pairings.open, fake.open, given, given)
        pairing_id = dice.choice(pairing_ids)
        if deed == "cancel":
            owner = (
                dice.choice([customer_id, fake.searches[pairing_id].customer_id])
                if pairing_id in fake.searches
                else customer_id
            )
            return await both(house.pairings.cancel, fake.cancel, (pairing_id, owner, at), (pairing_id, owner, at))
        if deed == "rescind":
            real, stand_in = await both(house.offers.rescind, fake.rescind, (mitra_id, at), (mitra_id, at))
            return sorted(real), sorted(stand_in)
        if pairing_id not in fake.searches:
            return await both(house.pairings.load, fake.load, (pairing_id,), (pairing_id,))
        search, twin = await house.pairings.load(pairing_id), fake.searches[pairing_id]
        if deed in {"send_wave", "stale"}:
            if deed == "stale":
                search, twin = replace(search, wave=search.wave + 1), replace(twin, wave=twin.wave + 1)
            asked = dice.sample(mitras, dice.randint(1, 3))

            def send(rows: Pairings | FakeRows, of: Search) -> Callable[[], Awaitable[Any]]:
                return lambda: rows.send_wave(of, asked, absent=(), deadline_at=at + 30_000, at=at)

            return await both(send(house.pairings, search), send(fake, twin), (), ())
        if deed == "give_up":
            return await both(house.pairings.give_up, fake.give_up, (search, at), (twin, at))
        mitra_id = dice.choice([mitra_id, *sorted(offer.mitra_id for offer in search.offers)])
        offers = [offer.offer_id for offer in search.offers if offer.mitra_id == mitra_id] or [str(uuid4())]
        twins = [offer.offer_id for offer in twin.offers if offer.mitra_id == mitra_id] or [str(uuid4())]
        if deed == "decline":
            return await both(house.offers.decline, fake.decline, (offers[0], mitra_id, at), (twins[0], mitra_id, at))
        opening = Opening(session_id=str(uuid4()), at=at, minute_ms=60_000, config=CONFIG)

        def open_(locked: Search) -> Step:
            return open_match(locked, mitra_id, opening)

        real, stand_in = await both(
            house.offers.accept, fake.accept, (offers[0], mitra_id, open_, at), (twins[0], mitra_id, open_, at)
        )
        return getattr(real, "opened", real), getattr(stand_in, "opened", stand_in)


async def both(
    real: Callable[..., Awaitable[Any]],
    fake: Callable[..., Awaitable[Any]],
    given: tuple[Any, ...],
    to_fake: tuple[Any, ...],
) -> tuple[Any, Any]:
    """What each gave; a refusal as its type."""
    results = [*await outcomes([bind(real, *given)]), *await outcomes([bind(fake, *to_fake)])]
    first, second = (type(result) if isinstance(result, Exception) else result for result in results)
    return first, second


def normal(search: Search) -> tuple[Search, list[tuple[str, int, str, int]]]:
    """Without the ids of offers, which each side makes up, and without their order."""
    offers = sorted((offer.mitra_id, offer.wave, offer.status.value, offer.deadline_at) for offer in search.offers)
    return replace(search, offers=()), offers
