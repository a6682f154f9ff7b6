"""The rows of the outbox on a real Postgres: who gets which, for how long, and what is left of it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from halo.errors import InvalidState, NotFound
from halo.outbox import PUSH_PATIENCE_MS, Claim, OutboxKind, OutboxStatus, Outcome
from halo.session import Party
from halo.store.auth_sessions import AuthSessions, RevokedBecause
from halo.store.outbox import LEASE_MS, OTHERS_GRACE_MS, Outbox
from halo.store.payments import fail_payment
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import NOW, SetClock, add_customer, add_payment, new_id

PUSH, REFUND = OutboxKind.PUSH, OutboxKind.REFUND
DUE, SENT, CANCELLED, EXPIRED, DEAD = OutboxStatus
NODE, OTHER_NODE = new_id(), new_id()


class House:
    """The rows, two nodes that look at them, and one clock."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.clock = SetClock()
        self.outbox = Outbox(db, NODE, self.clock)
        self.other = Outbox(db, OTHER_NODE, self.clock)
        self.auth_sessions = AuthSessions(db, self.clock)

    async def add(self, user_id: str | None = None, *, due_in_ms: int = 0, **columns: Any) -> str:
        row: dict[str, Any] = {
            "outbox_id": new_id(),
            "user_id": user_id or new_id(),
            "due_at": NOW + due_in_ms,
            "expires_at": None,
            "receipt": None,
            "told_by": None,
            "key": "offer:1",
            "session_id": None,
        }
        await self.db.execute(
            """INSERT INTO outbox (outbox_id, kind, user_id, template, payload, collapse_key, due_at, expires_at, receipt, told_by,
                                   session_id)
               VALUES (%(outbox_id)s, 'push', %(user_id)s, 'offer', '{"offer_id": "1"}', %(key)s, at(%(due_at)s), at(%(expires_at)s),
                       %(receipt)s, %(told_by)s, %(session_id)s)""",
            row | columns,
        )
        return str(row["outbox_id"])

    async def add_refund(self) -> tuple[str, str]:
        """A refund that is due, as the failure of a paid payment leaves it: `(refund_id, outbox_id)`."""
        customer_id = await add_customer(self.db)
        payment = await add_payment(self.db, customer_id, "confirmed")
        await self.db.transact(lambda tx: fail_payment(tx, payment, "payment_failed", NOW), new_id())
        row = await self.db.fetch_one(
            """SELECT r.refund_id, o.outbox_id FROM refunds r JOIN outbox o ON o.collapse_key = 'refund:' || r.refund_id
               WHERE r.payment_request_id = %(id)s""",
            {"id": payment},
        )
        assert row is not None
        return row.refund_id, row.outbox_id

    async def row(self, outbox_id: str) -> Any:
        return await self.db.fetch_one("SELECT * FROM outbox WHERE outbox_id = %(id)s", {"id": outbox_id})

    async def refund(self, refund_id: str) -> Any:
        return await self.db.fetch_one("SELECT * FROM refunds WHERE refund_id = %(id)s", {"id": refund_id})

    async def claim(self, kind: OutboxKind = PUSH) -> Claim:
        [claim] = await self.outbox.claim(kind, 10)
        return claim


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    async with open_postgres(database_url) as db:
        yield House(db)


def became(claim: Claim, status: OutboxStatus, **facts: Any) -> Outcome:
    return Outcome(outbox_id=claim.outbox_id, kind=claim.kind, attempts=claim.attempts, status=status, **facts)


class TestClaiming:
    async def test_two_senders_at_once_get_each_row_once(self, house: House) -> None:
        ids = {await house.add() for _ in range(100)}
        taken: list[str] = []

        async def take(outbox: Outbox) -> None:
            while claims := await outbox.claim(PUSH, 7):
                taken.extend(claim.outbox_id for claim in claims)

        async with trio.open_nursery() as nursery:
            for outbox in (house.outbox, house.other) * 2:
                nursery.start_soon(take, outbox)
        # Somebody may have found the last rows locked and left; nobody has found one twice.
        await take(house.outbox)
        assert len(taken) == 100
        assert set(taken) == ids

    async def test_the_oldest_go_first_and_what_is_not_due_stays(self, house: House) -> None:
        second, first = await house.add(due_in_ms=-10), await house.add(due_in_ms=-20)
        await house.add(due_in_ms=1)
        assert [claim.outbox_id for claim in await house.outbox.claim(PUSH, 10)] == [first, second]
        assert await house.outbox.find_next_due(PUSH) == NOW + 1

    async def test_a_claim_is_a_lease_and_its_end_gives_the_row_to_the_next(self, house: House) -> None:
        outbox_id = await house.add()
        lost = await house.claim()
        assert (lost.attempts, await house.other.claim(PUSH, 10), await house.other.find_next_due(PUSH)) == (
            1,
            [],
            None,
        )
        house.clock.moment += LEASE_MS
        [found] = await house.other.claim(PUSH, 10)
        assert (found.outbox_id, found.attempts, found.first_attempt_at) == (outbox_id, 2, NOW)
        assert await house.outbox.record([became(lost, SENT)]) == set()
        assert (await house.row(outbox_id)).status == DUE, "whoever lost its claim changes nothing any more"
        await house.other.record([became(found, SENT)])
        assert (await house.row(outbox_id)).status == SENT

    async def test_a_claim_says_which_session_it_is_about(self, house: House) -> None:
        session_id = new_id()
        await house.add(session_id=session_id)
        assert (await house.claim()).session_id == session_id
        await house.add()
        assert (await house.claim()).session_id is None

    async def test_each_kind_has_its_own_line(self, house: House) -> None:
        await house.add_refund()
        push = await house.add()
        assert (await house.claim(PUSH)).outbox_id == push
        assert (await house.claim(REFUND)).template == "refund_due"

    async def test_what_nobody_wants_any_more_is_expired_by_the_claim(self, house: House) -> None:
        outbox_id = await house.add(expires_at=NOW)
        assert (await house.claim()).is_expired
        assert (await house.row(outbox_id)).status == EXPIRED
        assert await house.outbox.find_next_due(PUSH) is None

    async def test_what_a_node_has_told_a_socket_is_its_own_for_a_while(self, house: House) -> None:
        await house.add(receipt="offer:1", told_by=OTHER_NODE)
        assert await house.outbox.find_next_due(PUSH) is None
        assert await house.outbox.claim(PUSH, 10) == []
        [claim] = await house.other.claim(PUSH, 10)
        assert claim.receipt == "offer:1"
        await house.other.record([became(claim, DUE, due_at=NOW)])
        house.clock.moment += OTHERS_GRACE_MS
        claim = await house.claim()
        assert claim.receipt is None, "who did not tell it cannot know whether it was heard"


class TestDevices:
    async def test_a_push_goes_to_every_phone_on_which_its_user_is_signed_in(self, house: House) -> None:
        first = await house.auth_sessions.open(Party.CUSTOMER, push_token="phone")
        user_id = first.user_id
        house.clock.moment += 1
        again = await house.auth_sessions.open(Party.CUSTOMER, user_id, push_token="phone", locale="en")
        await house.auth_sessions.open(Party.CUSTOMER, user_id, push_token="tablet")
        await house.auth_sessions.open(Party.CUSTOMER, user_id)
        gone = await house.auth_sessions.open(Party.CUSTOMER, user_id, push_token="lost")
        await house.auth_sessions.revoke(gone.auth_session_id, RevokedBecause.SIGNED_OUT)
        await house.add(user_id)
        devices = (await house.claim()).devices
        assert {(device.token, device.locale) for device in devices} == {("phone", "en"), ("tablet", "id")}
        assert again.auth_session_id in {device.auth_session_id for device in devices}

    async def test_a_phone_belongs_to_whoever_signed_in_on_it_last(self, house: House) -> None:
        first = await house.auth_sessions.open(Party.CUSTOMER, push_token="phone")
        second = await house.auth_sessions.open(Party.CUSTOMER, push_token="phone")
        await house.add(first.user_id, key="a")
        assert (await house.claim()).devices == ()
        await house.add(second.user_id, key="b")
        assert [device.token for device in (await house.claim()).devices] == ["phone"]

    async def test_a_token_that_is_dropped_is_gone_and_a_newer_one_stays(self, house: House) -> None:
        user = await house.auth_sessions.open(Party.CUSTOMER, push_token="old")
        await house.auth_sessions.open(Party.CUSTOMER, user.user_id, push_token="new")
        await house.add(user.user_id)
        claim = await house.claim()
        await house.outbox.record([became(claim, SENT, dropped=("old",))])
        rows = await house.db.fetch_all("SELECT push_token FROM auth_sessions ORDER BY push_token")
        assert [row.push_token for row in rows] == ["new", None]

    async def test_what_a_phone_has_received_is_remembered_for_the_next_attempt(self, house: House) -> None:
        user = await house.auth_sessions.open(Party.CUSTOMER, push_token="phone")
        outbox_id = await house.add(user.user_id)
        claim = await house.claim()
        await house.outbox.record(
            [became(claim, DUE, due_at=NOW + 5_000, error="FCM 503", reached=(user.auth_session_id,))]
        )
        row = await house.row(outbox_id)
        assert (row.status, row.due_at, row.last_error, row.finished_at) == (DUE, NOW + 5_000, "FCM 503", None)
        assert await house.outbox.find_next_due(PUSH) == NOW + 5_000
        house.clock.moment += 5_000
        assert (await house.claim()).reached == {user.auth_session_id}


class TestRecording:
    async def test_many_outcomes_are_one_statement(self, house: House) -> None:
        for _ in range(3):
            await house.add()
        first, second, third = await house.outbox.claim(PUSH, 10)
        statements = house.db.statements
        await house.outbox.record([became(first, SENT), became(second, CANCELLED), became(third, DEAD, error="no")])
        assert house.db.statements == statements + 1
        found = {outbox.outbox_id: (await house.row(outbox.outbox_id)).status for outbox in (first, second, third)}
        assert found == {first.outbox_id: SENT, second.outbox_id: CANCELLED, third.outbox_id: DEAD}

    async def test_what_a_step_has_cancelled_stays_so(self, house: House) -> None:
        outbox_id = await house.add()
        claim = await house.claim()
        await house.db.execute("UPDATE outbox SET status = 'cancelled'")
        assert await house.outbox.record([became(claim, DUE, due_at=NOW + 1)]) == set()
        assert (await house.row(outbox_id)).status == CANCELLED

    async def test_a_row_that_a_step_holds_is_passed_over_and_named(self, house: House) -> None:
        """So that neither ever waits for the other: two that do cost a session a second."""
        held_id, free_id = await house.add(), await house.add()
        claims = await house.outbox.claim(PUSH, 10)
        outcomes = [became(claim, SENT) for claim in claims]
        holds, lets_go = trio.Event(), trio.Event()

        async def step(tx: Any) -> None:
            await tx.execute("UPDATE outbox SET status = 'cancelled' WHERE outbox_id = %(id)s::uuid", {"id": held_id})
            holds.set()
            await lets_go.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.db.transact, step, new_id())
            await holds.wait()
            assert await house.outbox.record(outcomes) == {held_id}
            assert (await house.row(free_id)).status == SENT
            lets_go.set()
        assert await house.outbox.record(outcomes) == set()
        assert (await house.row(held_id)).status == CANCELLED


class TestRefunds:
    async def test_a_refund_is_claimed_with_all_that_its_provider_needs(self, house: House) -> None:
        refund_id, _ = await house.add_refund()
        refund = (await house.claim(REFUND)).refund
        assert refund is not None
        assert (refund.refund_id, refund.amount, refund.currency) == (refund_id, 5_000, "IDR")
        assert (refund.kind, refund.cause, refund.created_at) == ("payment_failed", "payment_failed", NOW)
        assert refund.payment_request_id == (await house.refund(refund_id)).payment_request_id

    async def test_a_refund_and_its_row_are_delivered_together(self, house: House) -> None:
        refund_id, outbox_id = await house.add_refund()
        claim = await house.claim(REFUND)
        await house.outbox.record([became(claim, DUE, due_at=NOW)])
        assert (await house.refund(refund_id)).status == "due"
        claim = await house.claim(REFUND)
        house.clock.moment += 1_000
        await house.outbox.record([became(claim, SENT)])
        assert ((await house.refund(refund_id)).status, (await house.row(outbox_id)).status) == ("delivered", SENT)
        assert (await house.refund(refund_id)).delivered_at == NOW + 1_000

    async def test_a_refund_whose_row_is_dead_is_dead_until_it_is_replayed(self, house: House) -> None:
        refund_id, outbox_id = await house.add_refund()
        claim = await house.claim(REFUND)
        await house.outbox.record([became(claim, DEAD, error="the provider answered 410")])
        assert (await house.refund(refund_id)).status == "dead"
        [letter] = await house.outbox.list_dead()
        assert (letter.outbox_id, letter.last_error, letter.attempts) == (outbox_id, "the provider answered 410", 1)
        await house.outbox.replay(outbox_id, "Ani")
        assert (await house.refund(refund_id)).status == "due"
        again = await house.claim(REFUND)
        assert (again.attempts, again.tries) == (2, 1)
        await house.outbox.record([became(again, SENT)])
        assert (await house.refund(refund_id)).status == "delivered"


class TestReplay:
    async def test_a_replay_is_written_down_with_who_wanted_it(self, house: House) -> None:
        outbox_id = await house.add()
        await house.outbox.record([became(await house.claim(), DEAD, error="FCM 403")])
        house.clock.moment += 48 * 3_600_000
        await house.outbox.replay(outbox_id, "Ani")
        [action] = await house.db.fetch_all("SELECT * FROM operator_actions")
        assert (action.operator, action.action, action.subject) == ("Ani", "replay_outbox", outbox_id)
        assert action.details == {"kind": "push", "template": "offer", "attempts": 1, "last_error": "FCM 403"}
        claim = await house.claim()
        assert (claim.first_attempt_at, claim.tries) == (house.clock.moment, 1), "its day begins anew"

    async def test_only_a_dead_letter_whose_time_is_not_over_is_replayed(self, house: House) -> None:
        with pytest.raises(NotFound):
            await house.outbox.replay(new_id(), "Ani")
        with pytest.raises(InvalidState, match="It is due"):
            await house.outbox.replay(await house.add(due_in_ms=1), "Ani")
        outbox_id = await house.add(expires_at=NOW + 1_000)
        await house.outbox.record([became(await house.claim(), DEAD)])
        house.clock.moment += 1_000
        with pytest.raises(InvalidState, match="time is over"):
            await house.outbox.replay(outbox_id, "Ani")
        assert await house.db.fetch_all("SELECT FROM operator_actions") == []

    async def test_dead_letters_are_listed_page_by_page(self, house: House) -> None:
        for _ in range(5):
            await house.add()
        await house.outbox.record([became(claim, DEAD) for claim in await house.outbox.claim(PUSH, 10)])
        pages, cursor = list[str](), None
        while page := await house.outbox.list_dead(2, cursor):
            pages += [letter.outbox_id for letter in page]
            cursor = page[-1].outbox_id
        assert len(pages) == len(set(pages)) == 5

    async def test_dead_refunds_stand_before_every_dead_push_however_many_there_are(self, house: House) -> None:
        """A wrong key kills every push of an hour; the money that is owed must not be on the hundredth page."""
        refunds = []
        for _ in range(3):
            refunds.append((await house.add_refund())[1])
            house.clock.moment += 1
        await house.outbox.record([became(claim, DEAD) for claim in await house.outbox.claim(REFUND, 10)])
        for _ in range(5):
            await house.add()
        await house.outbox.record([became(claim, DEAD) for claim in await house.outbox.claim(PUSH, 10)])
        await house.db.execute("UPDATE outbox SET created_at = now() - interval '1 day' WHERE kind = 'refund'")
        pages, cursor = list[OutboxKind](), None
        while page := await house.outbox.list_dead(2, cursor):
            pages += [letter.kind for letter in page]
            cursor = page[-1].outbox_id
        assert pages == [REFUND] * 3 + [PUSH] * 5
        only = await house.outbox.list_dead(50, kind=REFUND)
        assert sorted(letter.outbox_id for letter in only) == sorted(refunds)
        first, *rest = [letter.outbox_id for letter in await house.outbox.list_dead(50, kind=PUSH)]
        assert [letter.outbox_id for letter in await house.outbox.list_dead(50, first, PUSH)] == rest


async def test_what_waits_is_counted_by_kind_and_status(house: House) -> None:
    await house.add(due_in_ms=-7_000)
    await house.add()
    await house.add_refund()
    dead = await house.add(due_in_ms=-9_000)
    [claim] = await house.outbox.claim(PUSH, 1)
    assert claim.outbox_id == dead
    await house.outbox.record([became(claim, DEAD)])
    counted = {(row.kind, row.status): (row.count, row.oldest_due_at) for row in await house.outbox.count_waiting()}
    assert counted == {(PUSH, DUE): (2, NOW - 7_000), (PUSH, DEAD): (1, None), (REFUND, DUE): (1, NOW)}


async def test_what_is_put_off_again_and_again_is_as_late_as_when_it_was_due_first(house: House) -> None:
    """Or a provider that is away for hours looks as if everything had come due a moment ago."""
    await house.add()
    for _ in range(3):
        claim = await house.claim()
        await house.outbox.record([became(claim, DUE, due_at=house.clock.moment + 30_000, error="FCM 503")])
        house.clock.moment += 30_000
    [row] = await house.outbox.count_waiting()
    assert (row.kind, row.status, row.count, row.oldest_due_at) == (PUSH, DUE, 1, NOW)


async def test_the_day_of_a_replayed_letter_begins_with_its_replay(house: House) -> None:
    outbox_id = await house.add()
    await house.outbox.record([became(await house.claim(), DEAD, error="FCM 403")])
    house.clock.moment += 3_600_000
    await house.outbox.replay(outbox_id, "Ani")
    [row] = await house.outbox.count_waiting()
    assert (row.status, row.oldest_due_at) == (DUE, NOW + 3_600_000)


async def test_a_claim_reads_only_what_is_due_however_much_was_sent(house: House) -> None:
    """The look of each second must stay cheap: rows that are done, and refunds that wait for an address, are not in its way."""
    await house.db.execute(
        """INSERT INTO outbox (kind, user_id, template, collapse_key, due_at, status)
           SELECT CASE WHEN n % 2 = 0 THEN 'push' ELSE 'refund' END, gen_random_uuid(), 'offer', n::text, at(0),
                  CASE WHEN n % 2 = 0 THEN 'sent' ELSE 'due' END
           FROM generate_series(1, 5000) AS n"""
    )
    await house.db.execute("ANALYZE outbox")
    plan = await house.db.fetch_all(
        "EXPLAIN SELECT due_at FROM outbox WHERE status = 'due' AND kind = 'push' ORDER BY due_at LIMIT 1"
    )
    assert "outbox_due" in str(plan)
    assert PUSH_PATIENCE_MS < 10_000
