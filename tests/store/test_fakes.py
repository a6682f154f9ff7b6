"""One contract for two stores: the rows that actors are tested with keep the same guards and write the same books as Postgres.

Each sentence is proved on both; and random histories are played on both at once, answer for answer and row for row.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import pytest
import trio

from halo import extension as asking
from halo.actors.ownership import Ownership
from halo.actors.ports import MessageLog, MessageRow, MessageRows, SessionRows
from halo.clock import Moment
from halo.config import LiveConfig, TimeoutAction
from halo.effects import Step
from halo.errors import CapacityExceeded, MitraDeactivated, OfferResolved, Refusal, StepOvertaken
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndedBy,
    EndRequested,
    Event,
    ExtensionAnswered,
    ExtensionCancelled,
    ExtensionRequested,
    LostBy,
    MitraAssigned,
    MitraLost,
    PaymentConfirmed,
    PaymentFailed,
    SearchFailed,
)
from halo.outbox import PUSH_PATIENCE_MS
from halo.payment import Payment, PaymentStatus
from halo.rules import open_session, step
from halo.session import Extension, FailureCause, Party, Session, SessionStatus
from halo.store.journal import Journal
from halo.store.payments import Payments
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from tests.actors.fakes import THERE, FakeDatabase, FakeNode, MitraRow, OfferRow
from tests.store.ground import CONFIG, a_held_session, lines, open_journal, open_session_row
from tests.store.rows import NOW, SetClock, add_mitra, add_offer, add_payment, new_id

SECOND = 1000
PRESENT = frozenset({Party.MITRA})


class Rows(SessionRows, MessageRows, Ownership, Protocol):
    """What `Sessions` and `FakeNode` both are."""


class Ground:
    """A database with two nodes on it, real or not."""

    mine: Rows
    theirs: Rows
    log: MessageLog

    async def open_chat(self, *, confirmed: bool = True, mitra_id: str | None = None) -> Session:
        raise NotImplementedError

    async def pay(
        self, session: Session, status: str = "confirmed", *, for_session: bool = False, amount: int = 5_000
    ) -> str:
        raise NotImplementedError

    async def hand_over(self, session_id: str) -> None:
        raise NotImplementedError

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        raise NotImplementedError

    async def add_mitra(self, *, is_active: bool = True, max_sessions: int = 3) -> str:
        raise NotImplementedError

    async def offer(self, pairing_id: str, mitra_id: str, offer_id: str | None = None) -> str:
        """An open offer of a search for another mitra."""
        raise NotImplementedError

    async def books(self) -> dict[str, Any]:
        raise NotImplementedError


class RealGround(Ground):
    def __init__(self, db: Postgres, journal: Journal) -> None:
        self.db = db
        self.mine_id, self.theirs_id = new_id(), new_id()
        self.mine, self.theirs = Sessions(db, self.mine_id), Sessions(db, self.theirs_id)
        self.log = journal

    async def open_chat(self, *, confirmed: bool = True, mitra_id: str | None = None) -> Session:
        people: dict[str, Any] = {} if mitra_id is None else {"mitra_id": mitra_id}
        return (await open_session_row(self.db, self.mine_id, confirmed=confirmed, **people)).session

    async def pay(
        self, session: Session, status: str = "confirmed", *, for_session: bool = False, amount: int = 5_000
    ) -> str:
        of_session = session.session_id if for_session else None
        return await add_payment(self.db, session.customer_id, status, session_id=of_session, amount=amount)

    async def hand_over(self, session_id: str) -> None:
        await self.db.execute(
            "UPDATE chat_sessions SET owner = %(owner)s, epoch = epoch + 1 WHERE session_id = %(id)s",
            {"owner": self.theirs_id, "id": session_id},
        )

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        return await Payments(self.db, SetClock()).find(payment_request_id)

    async def add_mitra(self, *, is_active: bool = True, max_sessions: int = 3) -> str:
        mitra_id = await add_mitra(self.db)
        await self.db.execute(
            "UPDATE mitras SET is_active = %(active)s, max_sessions = %(n)s WHERE mitra_id = %(id)s",
            {"active": is_active, "n": max_sessions, "id": mitra_id},
        )
        return mitra_id

    async def offer(self, pairing_id: str, mitra_id: str, offer_id: str | None = None) -> str:
        return await add_offer(self.db, pairing_id, mitra_id)

    async def books(self) -> dict[str, Any]:
        async def table(sql: str, key: int = 1) -> dict[Any, Any]:
            rows = [tuple(row) for row in await self.db.fetch_all(sql)]
            return {(row[0] if key == 1 else row[:key]): row[key:] for row in rows}

        failures = await self.db.fetch_all("SELECT cause, extension_id FROM pairing_failures")
        return {
            "searches": await table(
                "SELECT pairing_id, rerouted_session_id, status, session_id, cause FROM pairings WHERE rerouted_session_id IS NOT NULL"
            ),
            "offers": await table("SELECT pairing_id, mitra_id, status FROM offers", 2),
            "payments": await table(
                "SELECT payment_request_id, status, failure_cause, session_id FROM payment_requests"
            ),
            "extensions": await table("SELECT extension_id, status, decided_by, deadline_at FROM session_extensions"),
            "ledger": await table(
                "SELECT payment_request_id, session_id, type, amount, duration_minutes FROM customer_transactions"
            ),
            "refunds": await table(
                "SELECT payment_request_id, kind, session_id, cause, amount, refunded_ms FROM refunds", 2
            ),
            "failures": sorted((row.cause, row.extension_id or "") for row in failures),
            "pushes": await table(
                "SELECT collapse_key, user_id, template, due_at FROM outbox WHERE kind = 'push' AND status = 'due'"
            ),
            "timeline": await table(
                "SELECT session_id, version, epoch, at, event, from_status, to_status, cause FROM session_timeline", 2
            ),
            "messages": await table("SELECT session_id, seq, sender, id, body, at FROM messages", 2),
        }


class FakeGround(Ground):
    def __init__(self) -> None:
        self.database = FakeDatabase()
        mine, theirs = FakeNode(self.database), FakeNode(self.database)
        self.mine, self.theirs, self.log = mine, theirs, mine
        self.mine_id, self.theirs_id = mine.owner, theirs.owner

    async def open_chat(self, *, confirmed: bool = True, mitra_id: str | None = None) -> Session:
        customer_id, mitra_id = new_id(), mitra_id or new_id()
        payment_request_id = self.add_payment(customer_id, confirmed=confirmed)
        opened = open_session(
            a_held_session(customer_id, mitra_id, payment_request_id), NOW, CONFIG, confirmed=confirmed
        )
        self.database.insert(opened, self.mine_id)
        return opened.session

    def add_payment(self, customer_id: str, *, confirmed: bool, payment_request_id: str | None = None) -> str:
        status = PaymentStatus.CONFIRMED if confirmed else PaymentStatus.PENDING
        wanted = {} if payment_request_id is None else {"payment_request_id": payment_request_id}
        return self.database.add_payment(customer_id, status, is_extension=False, **wanted).payment_request_id

    async def pay(
        self, session: Session, status: str = "confirmed", *, for_session: bool = False, amount: int = 5_000
    ) -> str:
        of_session = session.session_id if for_session else None
        return self.database.add_payment(
            session.customer_id, PaymentStatus(status), session_id=of_session, amount=amount
        ).payment_request_id

    async def hand_over(self, session_id: str) -> None:
        row = self.database.tables.sessions[session_id]
        moved = replace(row.session, epoch=row.session.epoch + 1)
        self.database.tables.sessions[session_id] = replace(row, session=moved, owner=self.theirs_id)

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        return self.database.find_payment(payment_request_id)

    async def add_mitra(self, *, is_active: bool = True, max_sessions: int = 3) -> str:
        mitra_id = new_id()
        self.database.tables.mitras[mitra_id] = MitraRow(is_active, max_sessions)
        return mitra_id

    async def offer(self, pairing_id: str, mitra_id: str, offer_id: str | None = None) -> str:
        search, offer_id = self.database.tables.searches[pairing_id], offer_id or new_id()
        asked = replace(search, offers=(*search.offers, (offer_id, OfferRow(mitra_id))))
        self.database.tables.searches[pairing_id] = asked
        return offer_id

    async def books(self) -> dict[str, Any]:
        tables = self.database.tables
        return {
            "searches": {
                row.pairing_id: (row.rerouted_session_id, row.status, row.session_id, row.cause)
                for row in tables.searches.values()
            },
            "offers": {
                (row.pairing_id, offer.mitra_id): (offer.status,)
                for row in tables.searches.values()
                for _, offer in row.offers
            },
            "payments": {
                p.payment_request_id: (p.status, p.failure_cause, p.session_id) for p in tables.payments.values()
            },
            "extensions": {id_: (e.status, by, e.deadline_at) for id_, (e, by) in tables.extensions.items()},
            "ledger": {
                id_: (row.session_id, row.type, row.amount, row.duration_minutes) for id_, row in tables.ledger.items()
            },
            "refunds": {
                key: (row.session_id, row.cause, row.amount, row.refunded_ms) for key, row in tables.refunds.items()
            },
            "failures": sorted((cause, extension_id or "") for cause, extension_id in tables.failures),
            "pushes": tables.pushes,
            "timeline": {
                key: (e.epoch, e.at, e.event, e.from_status, e.to_status, e.cause) for key, e in tables.timeline.items()
            },
            "messages": {
                (id_, row.seq): (row.sender, row.id, row.body, row.at)
                for id_, rows in self.database.messages.items()
                for row in rows
            },
        }


@asynccontextmanager
async def open_ground(url: str | None) -> AsyncIterator[Ground]:
    if url is None:
        yield FakeGround()
        return
    async with open_postgres(url) as db, open_journal(db) as journal:
        yield RealGround(db, journal)


@pytest.fixture(params=["postgres", "fake"])
def where(request: pytest.FixtureRequest) -> str | None:
    """The URL of a real database, or None."""
    return str(request.getfixturevalue("database_url")) if request.param == "postgres" else None


async def take(ground: Ground, session: Session, event: Event, present: frozenset[Party] = PRESENT) -> Session:
    decided = step(session, event)
    await ground.mine.commit(session, decided, new_id(), present)
    return decided.session


def asks(
    session: Session,
    payment_request_id: str,
    at: Moment = NOW + 60 * SECOND,
    config: LiveConfig = CONFIG,
    price: int = 5_000,
) -> ExtensionRequested:
    payment = Payment(
        payment_request_id=payment_request_id, customer_id=session.customer_id, session_id=None, status=PaymentStatus.CONFIRMED,
        amount=price, currency="IDR", duration_minutes=5, is_extension=True, is_first_session_discount=False, failure_cause=None,
        created_at=NOW,
    )  # fmt: skip
    return ExtensionRequested(at=at, extension=asking.request(session, payment, new_id(), at, config))


def answers(session: Session, *, accepted: bool, at: Moment = NOW + 70 * SECOND) -> ExtensionAnswered:
    assert session.extension is not None
    return ExtensionAnswered(at=at, extension_id=session.extension.extension_id, accepted=accepted, config=CONFIG)


# ---- what a step leaves behind


async def test_what_was_committed_is_what_is_loaded(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        payment = await ground.pay(session)
        happenings: list[Callable[[Session], Event]] = [
            lambda s: asks(s, payment),
            lambda s: answers(s, accepted=True),
            lambda s: DeadlineReached(at=s.deadline_at or 0, config=CONFIG),
        ]
        for happening in happenings:
            session = await take(ground, session, happening(session))
            stored = await ground.mine.load(session.session_id)
            assert stored is not None
            assert (stored.session, stored.last_seq) == (session, 0)


async def test_an_accepted_extension_leaves_its_books(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        payment = await ground.pay(session)
        session = await take(ground, session, asks(session, payment))
        assert session.extension is not None
        extension_id, books = session.extension.extension_id, await ground.books()
        assert books["extensions"][extension_id] == ("pending", None, NOW + 120 * SECOND)
        assert books["payments"][payment] == ("confirmed", None, session.session_id)
        news, asked_at = f"session:{session.session_id}:customer", NOW + 60 * SECOND
        assert books["pushes"] == {
            news: (session.customer_id, "session_started", NOW + PUSH_PATIENCE_MS),
            f"extension:{extension_id}": (session.mitra_id, "extension_request", asked_at + PUSH_PATIENCE_MS),
        }
        found = await ground.find_payment(payment)
        assert found is not None
        assert found.in_use
        session = await take(ground, session, answers(session, accepted=True))
        books = await ground.books()
        assert books["extensions"][extension_id][:2] == ("accepted", "answered")
        assert books["payments"][payment] == ("consumed", None, session.session_id)
        assert books["ledger"][payment] == (session.session_id, "extension", 5_000, 5)
        assert books["ledger"][session.payment_request_id] == (session.session_id, "session", 5_000, 5)
        assert {key: push[:2] for key, push in books["pushes"].items()} == {
            news: (session.customer_id, "extension_accepted")
        }
        assert [books["timeline"][session.session_id, version][2] for version in (1, 2, 3)] == [
            "mitra_accepted", "extension_requested", "extension_answered"
        ]  # fmt: skip


async def test_a_refused_extension_is_failed_refunded_and_recorded(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        payment = await ground.pay(session)
        session = await take(ground, session, asks(session, payment), frozenset())
        assert (await ground.books())["pushes"].popitem()[1][2] == NOW + 60 * SECOND  # nobody there: at once
        extension_id = session.extension.extension_id if session.extension else ""
        await take(ground, session, answers(session, accepted=False))
        books = await ground.books()
        assert books["payments"][payment] == ("failed", "extension_rejected", session.session_id)
        assert books["refunds"] == {(payment, "payment_failed"): (session.session_id, "extension_rejected", 5_000, 0)}
        assert books["failures"] == [("extension_rejected", extension_id)]
        assert payment not in books["ledger"]


async def test_an_end_fails_what_nobody_used_and_refunds_the_time_left(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        pending = await ground.pay(session)
        confirmed = await ground.pay(session, for_session=True)
        unpaid = await ground.pay(session, "pending", for_session=True)
        elsewhere = await ground.pay(session)
        session = await take(ground, session, asks(session, pending))
        session = await take(ground, session, EndRequested(at=NOW + 90 * SECOND, by=EndedBy.ADMIN))
        books = await ground.books()
        assert {books["payments"][id_][0] for id_ in (pending, confirmed, unpaid)} == {"failed"}
        assert books["payments"][elsewhere][0] == "confirmed"
        assert set(books["refunds"]) == {
            (pending, "payment_failed"), (confirmed, "payment_failed"), (session.payment_request_id, "time_left")
        }  # fmt: skip
        refund = books["refunds"][session.payment_request_id, "time_left"]
        assert refund == (session.session_id, "ended_by_admin", 4_000, 240_000)


@pytest.mark.parametrize(
    ("prices", "served_seconds", "refunds"),
    [
        ((20_000, 0, 7_000), 60, {3: (7_000, 262_500), 1: (20_000, 750_000), 0: (3_400, 127_500)}),
        ((1_000,), 60, {1: (1_000, 100_000), 0: (4_400, 440_000)}),
        ((20_000,), 500, {1: (4_167, 100_000)}),
        ((), 60, {0: (4_000, 240_000)}),
    ],
)
async def test_time_left_is_given_back_on_the_last_payments_first_and_on_none_more_than_was_charged(
    where: str | None, prices: tuple[int, ...], served_seconds: int, refunds: dict[int, tuple[int, int]]
) -> None:
    """An extension that cost nothing has nothing to give back; every unit and every millisecond is given back once."""
    async with open_ground(where) as ground:
        session, at = await ground.open_chat(), NOW
        payments = [session.payment_request_id]
        for price in prices:
            at += SECOND
            payments.append(await ground.pay(session, amount=price))
            session = await take(ground, session, asks(session, payments[-1], at, price=price))
            session = await take(ground, session, answers(session, accepted=True, at=at))
        session = await take(ground, session, EndRequested(at=NOW + served_seconds * SECOND, by=EndedBy.MITRA))
        booked = (await ground.books())["refunds"]
        assert booked == {
            (payments[place], "time_left"): (session.session_id, "ended_by_mitra", *share)
            for place, share in refunds.items()
        }
        assert sum(row[3] for row in booked.values()) == session.refunded_ms


async def test_a_session_on_hold_is_charged_when_its_money_came_and_failed_when_it_will_not(where: str | None) -> None:
    async with open_ground(where) as ground:
        held = await ground.open_chat(confirmed=False)
        await take(ground, held, PaymentFailed(at=NOW + SECOND, config=CONFIG))
        books = await ground.books()
        assert books["payments"][held.payment_request_id][:2] == ("failed", "payment_failed")
        assert (books["ledger"], books["refunds"]) == ({}, {})
        unpaid = await ground.open_chat(confirmed=False)
        with pytest.raises(StepOvertaken):  # the guard of the money: it has not come
            await take(ground, unpaid, PaymentConfirmed(at=NOW + SECOND))
        assert (await ground.books())["payments"][unpaid.payment_request_id][0] == "pending"


async def test_a_credit_moves_the_pending_extensions_deadline_too(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        session = await take(ground, session, asks(session, await ground.pay(session)))
        credit = DowntimeCredited(at=NOW + 100 * SECOND, downtime_ms=30 * SECOND, not_before=NOW + 300 * SECOND)
        session = await take(ground, session, credit)
        stored = await ground.mine.load(session.session_id)
        assert stored is not None
        assert stored.session == session
        assert session.extension is not None
        assert (await ground.books())["extensions"][session.extension.extension_id][2] == NOW + 300 * SECOND


# ---- guards


async def assert_overtaken(ground: Ground, rows: Rows, before: Session, decided: Step) -> None:
    """Refused, and not a row was written."""
    books = await ground.books()
    stored = await ground.mine.load(before.session_id)
    with pytest.raises(StepOvertaken):
        await rows.commit(before, decided, new_id(), PRESENT)
    assert await ground.books() == books
    assert await ground.mine.load(before.session_id) == stored


async def test_a_stale_version_writes_nothing(where: str | None) -> None:
    async with open_ground(where) as ground:
        first = await ground.open_chat()
        await take(ground, first, asks(first, await ground.pay(first)))
        decided = step(first, asks(first, await ground.pay(first)))
        await assert_overtaken(ground, ground.mine, first, decided)


async def test_another_status_writes_nothing(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        closing = replace(session, status=SessionStatus.CLOSING, running_since=None, expires_at=None)
        decided = step(closing, EndRequested(at=NOW, by=EndedBy.ADMIN))
        await assert_overtaken(ground, ground.mine, closing, decided)


async def test_another_owner_writes_nothing(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        decided = step(session, EndRequested(at=NOW, by=EndedBy.ADMIN))
        await assert_overtaken(ground, ground.theirs, session, decided)


async def test_a_stale_epoch_writes_nothing(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        await ground.hand_over(session.session_id)
        decided = step(session, EndRequested(at=NOW, by=EndedBy.ADMIN))
        await assert_overtaken(ground, ground.theirs, session, decided)
        await assert_overtaken(ground, ground.mine, session, decided)
        moved = replace(session, epoch=2)
        await ground.theirs.commit(moved, step(moved, EndRequested(at=NOW, by=EndedBy.ADMIN)), new_id(), PRESENT)


async def test_a_session_that_does_not_exist_is_not_found(where: str | None) -> None:
    async with open_ground(where) as ground:
        await ground.open_chat()
        assert await ground.mine.load(new_id()) is None


@pytest.mark.parametrize("status", ["pending", "failed", "consumed"])
async def test_only_confirmed_money_is_bound(where: str | None, status: str) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        decided = step(session, asks(session, await ground.pay(session, status)))
        await assert_overtaken(ground, ground.mine, session, decided)


async def test_one_payment_is_bound_by_one_session_only(where: str | None) -> None:
    async with open_ground(where) as ground:
        first, second = await ground.open_chat(), await ground.open_chat()
        payment = await ground.pay(first)
        await take(ground, first, asks(first, payment))
        await assert_overtaken(ground, ground.mine, second, step(second, asks(second, payment)))


async def test_a_cancelled_request_frees_its_payment_for_the_same_session(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        payment = await ground.pay(session)
        session = await take(ground, session, asks(session, payment))
        assert session.extension is not None
        cancelled = ExtensionCancelled(at=NOW + 61 * SECOND, extension_id=session.extension.extension_id, config=CONFIG)
        session = await take(ground, session, cancelled)
        found = await ground.find_payment(payment)
        assert found is not None
        assert not found.in_use
        session = await take(ground, session, asks(session, payment, NOW + 62 * SECOND))
        assert session.status is SessionStatus.EXTENDING


# ---- another mitra


async def lose(ground: Ground, session: Session, at: Moment = NOW + 60 * SECOND) -> tuple[Session, str]:
    """The session without its mitra, and the search that was opened with that."""
    pairing_id = new_id()
    lost = MitraLost(at=at, deadline_at=at + 100 * SECOND, cause=LostBy.TRANSFER, pairing_id=pairing_id)
    return await take(ground, session, lost), pairing_id


def takes_over(session: Session, mitra_id: str, pairing_id: str, offer_id: str) -> Step:
    at = NOW + 80 * SECOND
    return step(session, MitraAssigned(at=at, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id))


async def test_a_takeover_leaves_its_books(where: str | None) -> None:
    async with open_ground(where) as ground:
        session, pairing_id = await lose(ground, await ground.open_chat())
        winner, loser = await ground.add_mitra(), await ground.add_mitra()
        offer_id = await ground.offer(pairing_id, winner)
        await ground.offer(pairing_id, loser)
        books = await ground.books()
        assert books["searches"] == {pairing_id: (session.session_id, "searching", None, None)}
        await ground.mine.commit(session, takes_over(session, winner, pairing_id, offer_id), new_id(), PRESENT)
        books = await ground.books()
        assert books["searches"] == {pairing_id: (session.session_id, "matched", session.session_id, None)}
        assert books["offers"] == {(pairing_id, winner): ("accepted",), (pairing_id, loser): ("taken",)}
        assert books["failures"] == []
        stored = await ground.mine.load(session.session_id)
        assert stored is not None
        assert (stored.session.mitra_id, stored.session.remaining_ms) == (winner, 240_000)


@pytest.mark.parametrize(
    ("case", "refusal"),
    [
        ("deactivated", MitraDeactivated),
        ("full", CapacityExceeded),
        ("another's offer", OfferResolved),
        ("no offer", OfferResolved),
        ("another session's search", OfferResolved),
    ],
)
async def test_a_takeover_that_the_rows_refuse_writes_nothing(
    where: str | None, case: str, refusal: type[Refusal]
) -> None:
    async with open_ground(where) as ground:
        session, pairing_id = await lose(ground, await ground.open_chat())
        _, other_pairing_id = await lose(ground, await ground.open_chat())
        mitra_id = await ground.add_mitra(is_active=case != "deactivated", max_sessions=1)
        if case == "full":
            await ground.open_chat(mitra_id=mitra_id)
        asked = await ground.add_mitra() if case == "another's offer" else mitra_id
        searching = other_pairing_id if case == "another session's search" else pairing_id
        offer_id = new_id() if case == "no offer" else await ground.offer(searching, asked)
        books = await ground.books()
        with pytest.raises(refusal):
            await ground.mine.commit(session, takes_over(session, mitra_id, searching, offer_id), new_id(), PRESENT)
        assert await ground.books() == books
        stored = await ground.mine.load(session.session_id)
        assert stored is not None
        assert stored.session == session


async def test_a_takeover_comes_too_late_for_a_second_mitra(where: str | None) -> None:
    async with open_ground(where) as ground:
        session, pairing_id = await lose(ground, await ground.open_chat())
        winner, loser = await ground.add_mitra(), await ground.add_mitra()
        first, second = await ground.offer(pairing_id, winner), await ground.offer(pairing_id, loser)
        await ground.mine.commit(session, takes_over(session, winner, pairing_id, first), new_id(), PRESENT)
        books = await ground.books()
        with pytest.raises(OfferResolved):
            await ground.mine.commit(session, takes_over(session, loser, pairing_id, second), new_id(), PRESENT)
        assert await ground.books() == books


@pytest.mark.parametrize(
    ("by", "status", "cause", "refund"),
    [
        (None, "failed", "timed_out", True),
        (EndedBy.CUSTOMER, "cancelled", "customer_cancelled", False),
        (EndedBy.ADMIN, "failed", "session_ended", True),
    ],
)
async def test_a_session_that_ends_while_it_waits_closes_its_search(
    where: str | None, by: EndedBy | None, status: str, cause: str, refund: bool
) -> None:
    async with open_ground(where) as ground:
        session, pairing_id = await lose(ground, await ground.open_chat())
        mitra_id = await ground.add_mitra()
        await ground.offer(pairing_id, mitra_id)
        at = session.deadline_at or 0
        await take(ground, session, DeadlineReached(at=at, config=CONFIG) if by is None else EndRequested(at=at, by=by))
        books = await ground.books()
        assert books["searches"] == {pairing_id: (session.session_id, status, None, cause)}
        assert books["offers"] == {(pairing_id, mitra_id): ("cancelled",)}
        assert books["failures"] == [(cause, "")]
        assert ((session.payment_request_id, "time_left") in books["refunds"]) is refund


async def test_a_session_that_waits_seeks_once(where: str | None) -> None:
    async with open_ground(where) as ground:
        active = await ground.open_chat()
        waiting, _ = await lose(ground, active)
        again = step(
            active,
            MitraLost(at=NOW + 61 * SECOND, deadline_at=NOW + 90 * SECOND, cause=LostBy.SILENT, pairing_id=new_id()),
        )
        await assert_overtaken(ground, ground.mine, active, again)
        await assert_overtaken(
            ground, ground.mine, waiting, replace(again, session=replace(again.session, version=waiting.version + 1))
        )


async def test_actors_and_rows_are_compared_by_session_and_epoch(where: str | None) -> None:
    async with open_ground(where) as ground:
        kept, stray, moved, ended, again = [await ground.open_chat() for _ in range(5)]
        for session_id in (moved.session_id, again.session_id, again.session_id):
            await ground.hand_over(session_id)
        await take(ground, ended, EndRequested(at=NOW, by=EndedBy.ADMIN))
        unknown = new_id()
        told = {one.session_id: 1 for one in (kept, moved, ended)} | {again.session_id: 3, unknown: 1}
        mine = await ground.mine.compare(told)
        assert [one.stored.session for one in mine.strays] == [stray]
        assert mine.lost == {moved.session_id: 1, ended.session_id: 1, again.session_id: 3, unknown: 1}
        theirs = await ground.theirs.compare({again.session_id: 1, moved.session_id: 2})
        assert [(one.stored.session.session_id, one.stored.session.epoch) for one in theirs.strays] == [
            (again.session_id, 3)
        ]
        assert theirs.lost == {again.session_id: 1}


# ---- extensions and messages, to read and to write


async def test_an_extension_is_found_by_its_own_session_only(where: str | None) -> None:
    async with open_ground(where) as ground:
        session, other = await ground.open_chat(), await ground.open_chat()
        session = await take(ground, session, asks(session, await ground.pay(session)))
        assert session.extension is not None
        extension_id = session.extension.extension_id
        assert await ground.mine.find_extension(session.session_id, extension_id) == session.extension
        assert await ground.mine.find_extension(other.session_id, extension_id) is None
        assert await ground.mine.find_extension(session.session_id, new_id()) is None
        await take(ground, session, answers(session, accepted=True))
        found = await ground.mine.find_extension(session.session_id, extension_id)
        assert isinstance(found, Extension)
        assert found.status == "accepted"


async def test_messages_are_read_back_in_order_and_in_pages(where: str | None) -> None:
    async with open_ground(where) as ground:
        session_id = (await ground.open_chat()).session_id
        await ground.log.append(session_id, 1, lines(1, 3))
        await ground.log.append(session_id, 1, lines(4, 7, "mitra"))
        assert await list_seqs(ground.mine.list_messages(session_id, 0, 100)) == [1, 2, 3, 4, 5, 6, 7]
        assert await list_seqs(ground.mine.list_messages(session_id, 2, 3)) == [3, 4, 5]
        assert await ground.mine.list_message_ids(session_id, 2, 2) == [
            (3, "customer", "customer-3"),
            (4, "mitra", "mitra-4"),
        ]
        found = await ground.mine.find_message(session_id, "mitra", "mitra-5")
        assert found is not None
        assert (found.seq, found.sender, found.id, found.body, found.at) == (5, "mitra", "mitra-5", "body 5", NOW)
        assert await ground.mine.find_message(session_id, "customer", "mitra-5") is None
        stored = await ground.mine.load(session_id)
        assert stored is not None
        assert stored.last_seq == 7


async def list_seqs(reading: Any) -> list[int]:
    rows: Sequence[MessageRow] = await reading
    return [row.seq for row in rows]


@pytest.mark.parametrize("clash", ["seq", "id", "epoch"])
async def test_an_append_that_clashes_writes_nothing(where: str | None, clash: str) -> None:
    async with open_ground(where) as ground:
        session_id = (await ground.open_chat()).session_id
        await ground.log.append(session_id, 1, lines(1, 2))
        rows = {"seq": lines(2, 3, "mitra"), "id": [replace(lines(1, 1)[0], seq=3)], "epoch": lines(3, 4)}[clash]
        with pytest.raises(StepOvertaken):
            await ground.log.append(session_id, 2 if clash == "epoch" else 1, rows)
        assert await list_seqs(ground.mine.list_messages(session_id, 0, 10)) == [1, 2]


async def test_a_session_that_stands_still_or_has_ended_takes_no_messages(where: str | None) -> None:
    async with open_ground(where) as ground:
        session = await ground.open_chat()
        session = await take(ground, session, asks(session, await ground.pay(session)))
        with pytest.raises(StepOvertaken):
            await ground.log.append(session.session_id, 1, lines(1, 1))
        session = await take(ground, session, EndRequested(at=NOW + 90 * SECOND, by=EndedBy.ADMIN))
        with pytest.raises(StepOvertaken):
            await ground.log.append(session.session_id, 1, lines(1, 1))
        assert await list_seqs(ground.mine.list_messages(session.session_id, 0, 10)) == []


# ---- histories


@pytest.mark.parametrize("seed", range(6))
async def test_random_histories_leave_the_same_books_in_both(database_url: str, seed: int) -> None:
    rng = random.Random(seed)
    async with open_postgres(database_url) as db, open_journal(db) as journal:
        real, fake = RealGround(db, journal), FakeGround()
        chats = [await open_both(real, fake, rng) for _ in range(3)]
        payments: list[str] = []
        for number in range(40):
            place = rng.randrange(len(chats))
            session, at = chats[place], NOW + number * rng.randint(1, 15) * SECOND
            if rng.random() < 0.4:
                payments.append(await pay_both(real, fake, rng.choice(chats), rng))
            if session.status is SessionStatus.REROUTING:
                event = await random_takeover(real, fake, rng, session, at)
            else:
                event = random_event(rng, session, payments, at)
            try:
                decided = step(session, event)
            except Refusal:
                continue
            if rng.random() < 0.1:
                session = replace(session, version=session.version + rng.choice([-1, 1]))
            told = [await outcome(ground, session, decided) for ground in (real, fake)]
            assert told[0] == told[1], (number, event)
            if told[0] == "done":
                chats[place] = decided.session
            if rng.random() < 0.3:
                first = rng.randint(1, 6)
                rows = lines(first, first + 1, rng.choice(["customer", "mitra"]))
                told = [await appended(ground, session.session_id, rows) for ground in (real, fake)]
                assert told[0] == told[1]
        assert await real.books() == await fake.books()
        for session in chats:
            one, two = await real.mine.load(session.session_id), await fake.mine.load(session.session_id)
            assert one is not None
            assert two is not None
            assert (one.session, one.last_seq) == (two.session, two.last_seq)


async def open_both(real: RealGround, fake: FakeGround, rng: random.Random) -> Session:
    confirmed = rng.random() < 0.7
    opened = await open_session_row(real.db, real.mine_id, confirmed=confirmed)
    session = opened.session
    fake.add_payment(session.customer_id, confirmed=confirmed, payment_request_id=session.payment_request_id)
    fake.database.insert(opened, fake.mine_id)
    return session


async def pay_both(real: RealGround, fake: FakeGround, session: Session, rng: random.Random) -> str:
    status = rng.choice(["confirmed", "confirmed", "confirmed", "pending"])
    for_session = rng.random() < 0.5 and session.status is not SessionStatus.ENDED
    payment = await real.pay(session, status, for_session=for_session)
    fake.database.add_payment(
        session.customer_id,
        PaymentStatus(status),
        payment_request_id=payment,
        session_id=session.session_id if for_session else None,
    )
    return payment


def random_event(rng: random.Random, session: Session, payments: list[str], at: Moment) -> Event:
    at = max(at, session.running_since or 0)
    due = max(at, session.deadline_at or 0)
    config = LiveConfig(extension_default_action_on_timeout=rng.choice(list(TimeoutAction)))
    extension_id = session.extension.extension_id if session.extension else new_id()
    return rng.choice(
        [
            PaymentConfirmed(at=at),
            PaymentFailed(at=at, config=config),
            asks(session, rng.choice(payments or [new_id()]), at, config),
            asks(session, rng.choice(payments or [new_id()]), at, config),
            ExtensionAnswered(at=at, extension_id=extension_id, accepted=rng.random() < 0.5, config=config),
            ExtensionCancelled(at=at, extension_id=extension_id, config=config),
            DeadlineReached(at=due, config=config, reachability=rng.choice([THERE, None])),
            DowntimeCredited(at=at, downtime_ms=rng.randint(0, 9_000), not_before=at + 10_000),
            EndRequested(at=at, by=rng.choice(list(EndedBy))) if rng.random() < 0.3 else PaymentConfirmed(at=at),
            MitraLost(at=at, deadline_at=at + 100 * SECOND, cause=rng.choice(list(LostBy)), pairing_id=new_id()),
        ]
    )


async def random_takeover(
    real: RealGround, fake: FakeGround, rng: random.Random, session: Session, at: Moment
) -> Event:
    """Somebody is asked and says yes, or else it ends, whoever is asked."""
    search = fake.database.search(session.session_id)
    mitras = fake.database.tables.mitras
    if rng.random() < 0.4:
        mitras[await real.add_mitra(max_sessions=1)] = MitraRow(max_sessions=1)
    asked = {offer.mitra_id for _, offer in search.offers}
    unasked = [mitra_id for mitra_id in mitras if mitra_id not in asked]
    if unasked and rng.random() < 0.6:
        mitra_id = rng.choice(unasked)
        await fake.offer(search.pairing_id, mitra_id, await real.offer(search.pairing_id, mitra_id))
    offers = fake.database.search(session.session_id).offers
    offer_id, offer = rng.choice(offers) if offers else (new_id(), OfferRow(session.customer_id))
    assigned = MitraAssigned(at=at, mitra_id=offer.mitra_id, pairing_id=search.pairing_id, offer_id=offer_id)
    due = max(at, session.deadline_at or 0)
    endings: list[Event] = [
        DeadlineReached(at=due, config=CONFIG),
        EndRequested(at=at, by=rng.choice(list(EndedBy))),
        SearchFailed(at=at, pairing_id=search.pairing_id, cause=FailureCause.ALL_DECLINED),
    ]
    return rng.choice(
        [
            assigned if offers else DowntimeCredited(at=at, downtime_ms=1_000, not_before=at),
            assigned if offers else DowntimeCredited(at=at, downtime_ms=1_000, not_before=at),
            DowntimeCredited(at=at, downtime_ms=rng.randint(0, 9_000), not_before=at + 10_000),
            rng.choice(endings),
        ]
    )


async def outcome(ground: Ground, session: Session, decided: Step) -> str:
    try:
        await ground.mine.commit(session, decided, new_id(), PRESENT)
    except StepOvertaken:
        return "overtaken"
    except Refusal as refusal:
        return refusal.code
    return "done"


async def appended(ground: Ground, session_id: str, rows: Sequence[MessageRow]) -> str:
    with trio.fail_after(10):
        try:
            await ground.log.append(session_id, 1, rows)
        except StepOvertaken:
            return "overtaken"
    return "done"
