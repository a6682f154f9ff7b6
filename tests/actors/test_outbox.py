"""The sender on a clock of its own: retries, lateness, acknowledgements, dead letters, death in the middle, a provider that is away."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from halo.actors import outbox
from halo.actors.outbox import (
    AT_ONCE,
    DELIVERY_SECONDS,
    LOOK_SECONDS,
    PACE_SECONDS,
    Lane,
    LanePorts,
    OutboxSender,
)
from halo.clock import Moment
from halo.errors import StoreUnavailable
from halo.outbox import GIVE_UP_MS, Claim, Delivery, OutboxKind, OutboxReport, OutboxStatus, Outcome
from tests.actors.fakes import START, TrioClock

LEASE_MS = 60_000
PUSH, REFUND = OutboxKind.PUSH, OutboxKind.REFUND
DUE, SENT, CANCELLED, EXPIRED, DEAD = OutboxStatus
CLOCK = TrioClock()


@dataclass
class Row:
    """A row as the table has it."""

    claim: Claim
    status: OutboxStatus = DUE
    due_at: Moment = START
    claimed_until: Moment = 0
    error: str | None = None
    finished_at: Moment | None = None


@dataclass
class FakeRows:
    """The table, with the guards of its SQL (`tests/store/test_outbox.py`), for as many senders as like."""

    rows: dict[str, Row] = field(default_factory=dict)
    away: bool = False
    looks: int = 0
    claims: int = 0
    busy: set[str] = field(default_factory=set)
    """Rows that a step holds just now."""

    def add(self, name: str, kind: OutboxKind = PUSH, *, due_in_ms: int = 0, **columns: Any) -> Row:
        claim = Claim(
            outbox_id=name,
            kind=kind,
            user_id="u-1",
            template="offer",
            collapse_key=name,
            attempts=0,
            tries=0,
            first_attempt_at=0,
            **columns,
        )
        self.rows[name] = Row(claim, due_at=CLOCK.now() + due_in_ms)
        return self.rows[name]

    def _ripe(self, kind: OutboxKind) -> list[Row]:
        now = CLOCK.now()
        ripe = [r for r in self.rows.values() if r.claim.kind is kind and r.status is DUE and r.claimed_until <= now]
        return sorted(ripe, key=lambda row: row.due_at)

    async def find_next_due(self, kind: OutboxKind) -> Moment | None:
        await self._arrive()
        self.looks += 1
        return next((row.due_at for row in self._ripe(kind)), None)

    async def claim(self, kind: OutboxKind, limit: int) -> Sequence[Claim]:
        await self._arrive()
        self.claims += 1
        now = CLOCK.now()
        claims = []
        for row in [row for row in self._ripe(kind) if row.due_at <= now][:limit]:
            is_expired = row.claim.expires_at is not None and row.claim.expires_at <= now
            if is_expired:
                row.status, row.finished_at = EXPIRED, now
            row.claimed_until = now + LEASE_MS
            row.claim = replace(
                row.claim,
                is_expired=is_expired,
                attempts=row.claim.attempts + 1,
                tries=row.claim.tries + 1,
                first_attempt_at=row.claim.first_attempt_at or now,
            )
            claims.append(row.claim)
        return claims

    async def record(self, outcomes: Sequence[Outcome]) -> Collection[str]:
        await self._arrive()
        for outcome in outcomes:
            row = self.rows[outcome.outbox_id]
            if outcome.outbox_id in self.busy or row.status is not DUE or row.claim.attempts != outcome.attempts:
                continue
            row.status, row.error, row.claimed_until = outcome.status, outcome.error, 0
            row.due_at = outcome.due_at or row.due_at
            row.finished_at = None if outcome.status is DUE else CLOCK.now()
            row.claim = replace(row.claim, reached=row.claim.reached | set(outcome.reached))
        return self.busy & {outcome.outbox_id for outcome in outcomes}

    async def count_waiting(self) -> Sequence[Any]:
        await self._arrive()
        return []

    def go_away(self, delivery: Delivery, *, when: bool) -> Delivery:
        """The store goes just when a courier is back."""
        self.away = when
        return delivery

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable


@dataclass
class FakeCourier:
    """Notes what it carried and when (s since the start of the test), and says what it is told to say."""

    says: Callable[[Claim], Delivery] = lambda _: Delivery()
    takes_seconds: float = 0.0
    carried: list[tuple[str, float]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def deliver(self, claim: Claim) -> Delivery:
        self.carried.append((claim.outbox_id, (CLOCK.now() - START) / 1000))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.takes_seconds)
        finally:
            self.under_way -= 1
        return self.says(claim)


@dataclass
class Office:
    """Rows, a courier, and senders."""

    nursery: trio.Nursery
    rows: FakeRows = field(default_factory=FakeRows)
    courier: FakeCourier = field(default_factory=FakeCourier)
    report: OutboxReport = field(default_factory=OutboxReport)
    heard: set[tuple[str, str]] = field(default_factory=set)

    def start(self, kind: OutboxKind = PUSH, courier: FakeCourier | None = None) -> trio.CancelScope:
        """One more sender; cancel what is returned to kill it, with all that it has in hand."""
        ports = LanePorts(
            rows=self.rows,
            clock=CLOCK,
            report=self.report,
            acknowledged=lambda user_id, receipt: (user_id, receipt) in self.heard,
            dice=lambda: 0.999_999,
        )
        lane = Lane(kind, courier or self.courier, ports)
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await lane.serve()

        self.nursery.start_soon(run)
        return scope


@pytest.fixture
async def office(nursery: trio.Nursery) -> Office:
    return Office(nursery)


async def test_a_row_that_is_due_goes_and_is_sent(autojump_clock: MockClock, office: Office) -> None:
    row = office.rows.add("a")
    office.start()
    await trio.sleep(1)
    assert (row.status, row.error, office.courier.carried) == (SENT, None, [("a", 0.0)])
    assert office.report.finished == {(PUSH, SENT): 1}
    assert office.report.in_hand[PUSH] == 0


async def test_a_row_that_comes_later_goes_when_it_is_due_and_not_before(
    autojump_clock: MockClock, office: Office
) -> None:
    office.start()
    await trio.sleep(5.1)
    office.rows.add("a", due_in_ms=5_000)
    await trio.sleep(10)
    [(_, at)] = office.courier.carried
    assert at == pytest.approx(10.1, abs=0.01)


async def test_an_idle_sender_asks_once_a_second(autojump_clock: MockClock, office: Office) -> None:
    office.start()
    await trio.sleep(100.5)
    assert office.rows.looks == 101


async def test_a_row_that_is_noticed_late_is_late_by_a_second_at_most(
    autojump_clock: MockClock, office: Office
) -> None:
    office.start()
    await trio.sleep(7.25)
    office.rows.add("a")
    await trio.sleep(2)
    [(_, at)] = office.courier.carried
    assert at - 7.25 <= LOOK_SECONDS


async def test_failures_are_tried_again_ever_more_slowly(autojump_clock: MockClock, office: Office) -> None:
    office.courier.says = lambda claim: Delivery(failure="FCM 503") if claim.tries < 6 else Delivery()
    row = office.rows.add("a")
    office.start()
    await trio.sleep(120)
    assert [round(at) for _, at in office.courier.carried] == [0, 1, 3, 7, 15, 31]
    assert (row.status, row.claim.attempts) == (SENT, 6)
    assert office.report.retried[PUSH] == 5


async def test_a_provider_that_says_when_is_left_alone_until_then(autojump_clock: MockClock, office: Office) -> None:
    office.courier.says = lambda claim: (
        Delivery(failure="FCM 429", retry_after_ms=90_000) if claim.tries == 1 else Delivery()
    )
    office.rows.add("a")
    office.start()
    await trio.sleep(200)
    assert [round(at) for _, at in office.courier.carried] == [0, 90]


async def test_what_is_claimed_too_late_expires_and_is_not_carried(autojump_clock: MockClock, office: Office) -> None:
    row = office.rows.add("a", expires_at=CLOCK.now() + 30_000)
    office.rows.away = True
    office.start()
    await trio.sleep(31)
    office.rows.away = False
    await trio.sleep(2)
    assert (row.status, office.courier.carried) == (EXPIRED, [])
    assert office.report.finished == {(PUSH, EXPIRED): 1}


async def test_what_fails_until_its_deadline_expires(autojump_clock: MockClock, office: Office) -> None:
    office.courier.says = lambda _: Delivery(failure="FCM 503")
    row = office.rows.add("a", expires_at=CLOCK.now() + 30_000)
    office.start()
    await trio.sleep(60)
    assert (row.status, row.error) == (EXPIRED, "FCM 503")
    assert max(at for _, at in office.courier.carried) < 30


async def test_what_a_socket_has_acknowledged_is_cancelled(autojump_clock: MockClock, office: Office) -> None:
    heard = office.rows.add("a", receipt="offer:1", due_in_ms=5_000)
    unheard = office.rows.add("b", receipt="offer:2", due_in_ms=5_000)
    office.start()
    office.heard.add(("u-1", "offer:1"))
    office.heard.add(("somebody else", "offer:2"))
    await trio.sleep(10)
    assert (heard.status, heard.error) == (CANCELLED, "acknowledged")
    assert unheard.status is SENT
    assert [name for name, _ in office.courier.carried] == ["b"]


async def test_what_was_cancelled_meanwhile_is_not_tried_again(autojump_clock: MockClock, office: Office) -> None:
    office.courier.says = lambda _: Delivery(failure="FCM 503")
    row = office.rows.add("a")
    office.start()
    await trio.sleep(0.5)
    row.status = CANCELLED
    await trio.sleep(60)
    assert (row.status, len(office.courier.carried)) == (CANCELLED, 1)


async def test_what_was_cancelled_while_it_was_under_way_stays_cancelled(
    autojump_clock: MockClock, office: Office
) -> None:
    office.courier.takes_seconds = 5
    row = office.rows.add("a")
    office.start()
    await trio.sleep(1)
    row.status = CANCELLED
    await trio.sleep(10)
    assert (row.status, office.report.in_hand[PUSH]) == (CANCELLED, 0)


async def test_a_refusal_is_a_dead_letter_with_its_reason(autojump_clock: MockClock, office: Office) -> None:
    office.courier.says = lambda _: Delivery(refusal="FCM 403 PERMISSION_DENIED")
    row = office.rows.add("a")
    office.start()
    await trio.sleep(100)
    assert (row.status, row.error, len(office.courier.carried)) == (DEAD, "FCM 403 PERMISSION_DENIED", 1)


async def test_what_is_tried_again_or_given_up_is_logged_with_its_session_and_why(
    autojump_clock: MockClock, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.courier.says = lambda claim: Delivery(failure="FCM 503") if claim.tries < 2 else Delivery(refusal="FCM 403")
    office.rows.add("a", session_id="s-1")
    with caplog.at_level(logging.INFO, logger="halo"):
        office.start()
        await trio.sleep(10)
    lines: list[Any] = [record.msg for record in caplog.records if "outbox_" in str(record.msg)]
    assert [(line["event"], line["session_id"], line["why"]) for line in lines] == [
        ("outbox_retry", "s-1", "FCM 503"),
        ("outbox_dead_letter", "s-1", "FCM 403"),
    ]


async def test_a_refund_that_nobody_takes_for_a_day_is_a_dead_letter(
    autojump_clock: MockClock, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOOK_SECONDS", 60.0)  # a day of looks each second takes its time even on this clock
    office.courier.says = lambda _: Delivery(failure="the provider answered 500")
    row = office.rows.add("r", REFUND)
    office.start(REFUND)
    await trio.sleep(GIVE_UP_MS / 1000 - 16 * 60)
    assert row.status is DUE
    await trio.sleep(32 * 60)
    assert (row.status, row.error) == (DEAD, "the provider answered 500")
    assert 80 < row.claim.attempts < 130


async def test_a_courier_that_hangs_is_given_up_and_the_row_tried_again(
    autojump_clock: MockClock, office: Office
) -> None:
    office.courier.takes_seconds = 3_600
    row = office.rows.add("a")
    office.start()
    await trio.sleep(DELIVERY_SECONDS + 0.5)
    assert (row.status, row.error) == (DUE, "no answer in time")
    assert DELIVERY_SECONDS * 1000 < LEASE_MS / 2


async def test_a_fault_of_the_courier_costs_its_own_row_alone(
    autojump_clock: MockClock, office: Office, claims_errors: list[Any]
) -> None:
    def says(claim: Claim) -> Delivery:
        if claim.outbox_id == "poison":
            raise ZeroDivisionError
        return Delivery()

    office.courier.says = says
    poison, good = office.rows.add("poison"), office.rows.add("good")
    office.start()
    await trio.sleep(1)
    later = office.rows.add("later")
    await trio.sleep(2)
    assert (poison.status, good.status, later.status) == (DEAD, SENT, SENT)
    assert len(claims_errors) == 1


async def test_no_more_than_so_many_are_under_way_and_none_is_claimed_to_wait(
    autojump_clock: MockClock, office: Office
) -> None:
    office.courier.takes_seconds = 1
    for number in range(5 * AT_ONCE):
        office.rows.add(f"a{number}")
    office.start()
    await trio.sleep(0.5)
    assert sum(row.claimed_until > 0 for row in office.rows.rows.values()) == AT_ONCE
    await trio.sleep(10)
    assert all(row.status is SENT for row in office.rows.rows.values())
    assert office.courier.most_under_way == AT_ONCE


async def test_two_senders_carry_each_row_once(autojump_clock: MockClock, office: Office) -> None:
    office.courier.takes_seconds = 0.1
    for number in range(300):
        office.rows.add(f"a{number}")
    office.start()
    office.start()
    await trio.sleep(30)
    carried = [name for name, _ in office.courier.carried]
    assert len(carried) == len(set(carried)) == 300


async def test_a_sender_that_dies_between_claim_and_sending_loses_nothing(
    autojump_clock: MockClock, office: Office
) -> None:
    office.courier.takes_seconds = 10
    row = office.rows.add("a")
    first = office.start()
    await trio.sleep(1)
    first.cancel()
    office.start()
    await trio.sleep(LEASE_MS / 1000 - 2)
    assert (row.status, len(office.courier.carried)) == (DUE, 1), "the lease is not over"
    await trio.sleep(15)
    assert row.status is SENT
    assert [round(at) for _, at in office.courier.carried] == [0, 60]


async def test_a_sender_that_dies_before_it_has_written_down_sends_once_more(
    autojump_clock: MockClock, office: Office
) -> None:
    """The consequence of never losing a row: at least once. Pushes collapse on the phone, refunds carry the same id."""
    row = office.rows.add("a")
    office.courier.says = lambda claim: office.rows.go_away(Delivery(), when=claim.tries == 1)
    first = office.start()
    await trio.sleep(5)
    assert row.status is DUE
    first.cancel()
    office.rows.away = False
    office.start()
    await trio.sleep(LEASE_MS / 1000 + 5)
    assert row.status is SENT
    assert [name for name, _ in office.courier.carried] == ["a", "a"]


async def test_an_outcome_waits_for_a_store_that_is_away(autojump_clock: MockClock, office: Office) -> None:
    row = office.rows.add("a")
    office.courier.says = lambda _: office.rows.go_away(Delivery(), when=True)
    office.start()
    await trio.sleep(20)
    office.rows.away = False
    await trio.sleep(2)
    assert (row.status, len(office.courier.carried)) == (SENT, 1)


async def test_a_row_that_a_step_holds_is_told_of_again_and_keeps_nobody_waiting(
    autojump_clock: MockClock, office: Office
) -> None:
    held, free = office.rows.add("held"), office.rows.add("free")
    office.rows.busy = {"held"}
    office.start()
    await trio.sleep(1)
    assert (held.status, free.status) == (DUE, SENT)
    assert office.report.in_hand[PUSH] == 1
    office.rows.busy = set()
    await trio.sleep(1)
    assert (held.status, len(office.courier.carried)) == (SENT, 2)
    assert office.report.in_hand[PUSH] == 0


async def test_a_provider_away_for_five_minutes_loses_nothing_and_holds_up_no_refund(
    autojump_clock: MockClock, office: Office
) -> None:
    """Outcomes arrive within the longest wait after it is back; only what nobody wants any more has expired."""
    away_until = CLOCK.now() + 300_000

    def says(claim: Claim) -> Delivery:
        return Delivery(failure="no answer in time") if CLOCK.now() < away_until else Delivery()

    office.courier.says, office.courier.takes_seconds = says, 10
    refunds = FakeCourier()
    office.start(PUSH)
    office.start(REFUND, refunds)
    news, offers = [], []
    for second in range(0, 300, 5):
        news.append(office.rows.add(f"ended {second}", expires_at=CLOCK.now() + 3_600_000))
        offers.append(office.rows.add(f"offer {second}", expires_at=CLOCK.now() + 30_000))
        office.rows.add(f"refund {second}", REFUND)
        await trio.sleep(5)
    assert len(refunds.carried) == 60
    assert all(at - float(name.split()[1]) <= LOOK_SECONDS for name, at in refunds.carried)
    await trio.sleep(45)
    assert all(row.status is SENT for row in news)
    assert all(row.status is EXPIRED for row in offers[:-6])


async def test_without_a_courier_rows_wait_and_are_counted(autojump_clock: MockClock, office: Office) -> None:
    waiting = [Waiting(REFUND, DUE, 3, START - 5_000), Waiting(REFUND, DEAD, 1, None)]
    counting = Counting(waiting)
    office.nursery.start_soon(OutboxSender([], counting, CLOCK, office.report).serve)
    await trio.sleep(1)
    assert office.report.waiting == {(REFUND, DUE): 3, (REFUND, DEAD): 1}
    assert office.report.oldest_due_age_ms(REFUND) == 5_000
    counting.away = True
    await trio.sleep(60)
    assert office.report.waiting == {(REFUND, DUE): 3, (REFUND, DEAD): 1}, "the last count stands"


@dataclass
class Waiting:
    kind: OutboxKind
    status: OutboxStatus
    count: int
    oldest_due_at: Moment | None


@dataclass
class Counting:
    waiting: list[Waiting]
    away: bool = False

    async def count_waiting(self) -> Sequence[Waiting]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return self.waiting


async def test_deliveries_begin_one_after_another_so_that_nobody_waits_for_many(
    autojump_clock: MockClock, office: Office
) -> None:
    for number in range(10):
        office.rows.add(f"a{number}")
    ports = LanePorts(rows=office.rows, clock=CLOCK, report=office.report, acknowledged=lambda *_: False)
    office.nursery.start_soon(Lane(PUSH, office.courier, ports, pace_seconds=0.01).serve)
    await trio.sleep(1)
    assert [round(at * 100) for _, at in office.courier.carried] == list(range(10))


def paced(office: Office, pace_seconds: float) -> Lane:
    ports = LanePorts(rows=office.rows, clock=CLOCK, report=office.report, acknowledged=lambda *_: False)
    return Lane(PUSH, office.courier, ports, pace_seconds=pace_seconds)


async def test_a_provider_that_takes_its_time_is_not_what_rows_wait_for(
    autojump_clock: MockClock, office: Office
) -> None:
    """The pace is: 0.3 s an answer would be a hundred rows a second with 32 at once, and one claim for each with no breath between."""
    office.courier.takes_seconds = 0.3
    for number in range(1_000):
        office.rows.add(f"a{number}")
    office.nursery.start_soon(paced(office, PACE_SECONDS).serve)
    await trio.sleep(1_000 * PACE_SECONDS + 1.5)
    assert office.report.finished == {(PUSH, SENT): 1_000}
    assert office.rows.claims < 1_000 / 10


async def test_the_time_that_a_delivery_took_us_is_not_added_to_the_pace_and_lateness_not_made_up_for(
    autojump_clock: MockClock, office: Office
) -> None:
    lane = paced(office, 0.01)
    began, moments = trio.current_time(), list[float]()
    for busy_seconds in (0.004, 0.004, 0.025, 0.0, 0.0):
        await trio.sleep(busy_seconds)
        await lane._keep_pace()
        moments.append(round(trio.current_time() - began, 6))
    assert moments == [0.01, 0.02, 0.045, 0.055, 0.065]
