"""Any history whatever: random events at random moments, held to an account that is kept without the machine (`tests/pure/books.py`)."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from halo import extension as asking
from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.errors import Refusal
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
    Reachability,
    SearchFailed,
)
from halo.payment import PaymentStatus
from halo.rules import RULES, DeadlineNotReached, open_session, step
from halo.session import FailureCause, SessionStatus
from tests.pure.books import Books, WallClock
from tests.pure.story import (
    CUSTOMER,
    ENDED,
    EXTENDING,
    MINUTE,
    MITRA,
    NOON,
    OFFER,
    OTHER_MITRA,
    PAYMENT,
    SECOND,
    THERE,
    a_session,
    an_extension_payment,
)

CONFIGS = st.builds(
    LiveConfig,
    extension_timeout_seconds=st.integers(5, 90),
    extension_default_action_on_timeout=st.sampled_from(TimeoutAction),
    extension_refusal=st.sampled_from(RefusalOutcome),
    max_extensions_per_session=st.sampled_from([0, 1, 2, 20]),
    closure_grace_seconds=st.integers(1, 180),
    payment_hold_seconds=st.integers(5, 120),
)
SEEN = st.builds(
    Reachability,
    online=st.booleans(),
    heartbeat_age_ms=st.none() | st.integers(0, 200_000),
    heartbeat_fresh=st.booleans(),
    connected=st.booleans(),
    socket_answered_age_ms=st.none() | st.integers(0, 60_000),
    source=st.sampled_from(["mirror", "postgres"]),
) | st.sampled_from([None, THERE, replace(THERE, connected=False)])
A_WHILE_MS = st.integers(0, MINUTE) | st.sampled_from([0, 1, SECOND, 5 * MINUTE])

Move = tuple[str, Any, Any]
MOVES: dict[str, st.SearchStrategy[Move]] = {
    "deadline": st.tuples(st.just("deadline"), st.sampled_from([0, 0, 1, 7_000]), SEEN),
    "early": st.tuples(st.just("early"), st.sampled_from([1, SECOND, MINUTE]), SEEN),
    "ask": st.tuples(st.just("ask"), st.integers(1, 30), st.integers(0, 30_000)),
    "ask again": st.tuples(st.just("ask again"), st.integers(0, 40), st.just(0)),
    "answer": st.tuples(st.just("answer"), st.booleans(), st.integers(0, 3)),
    "cancel": st.tuples(st.just("cancel"), st.just(None), st.integers(0, 3)),
    "confirm": st.tuples(st.just("confirm"), st.just(None), st.just(None)),
    "fail": st.tuples(st.just("fail"), st.just(None), st.just(None)),
    "end": st.tuples(st.just("end"), st.sampled_from(EndedBy), st.just(None)),
    "lose": st.tuples(st.just("lose"), st.integers(0, 3 * MINUTE), st.sampled_from(LostBy)),
    "find": st.tuples(st.just("find"), st.just(None), st.just(None)),
    "find nobody": st.tuples(
        st.just("find nobody"),
        st.sampled_from([FailureCause.NO_MITRA_AVAILABLE, FailureCause.ALL_DECLINED]),
        st.just(None),
    ),
    "down": st.tuples(st.just("down"), st.integers(0, 10 * MINUTE), st.integers(0, 30)),
    "reconfigure": st.tuples(st.just("reconfigure"), CONFIGS, st.just(None)),
}
SENSE: dict[SessionStatus, list[str]] = {
    SessionStatus.PENDING_PAYMENT: ["confirm"] * 5 + ["fail", "deadline", "down"],
    SessionStatus.ACTIVE: ["ask"] * 4 + ["ask again", "lose", "lose", "deadline", "down"],
    SessionStatus.EXTENDING: ["answer", "answer", "deadline", "deadline", "deadline", "cancel", "down"],
    SessionStatus.CLOSING: ["ask", "ask", "ask", "ask again", "deadline", "down"],
    SessionStatus.REROUTING: ["find"] * 5 + ["find nobody", "deadline", "down"],
    SessionStatus.ENDED: ["ask", "answer", "deadline"],
}
"""What is likely in each status; dice over all moves alone hardly ever come to an extension."""


def moves_in(status: SessionStatus) -> st.SearchStrategy[Move]:
    """Mostly what makes sense, one time in six anything."""
    return st.sampled_from([*SENSE[status] * 5, *MOVES, *MOVES]).flatmap(MOVES.__getitem__)


class History:
    """One session, its books and its wall clock, driven by moves that need not make sense."""

    def __init__(self, *, confirmed: bool, minutes: int, price: int, config: LiveConfig) -> None:
        self.config = config
        self.now = NOON
        opened = open_session(a_session(minutes=minutes, price=price), NOON, config, confirmed=confirmed)
        self.session = opened.session
        own = an_extension_payment(
            payment_request_id=PAYMENT,
            is_extension=False,
            minutes=minutes,
            amount=price,
            status=PaymentStatus.CONFIRMED if confirmed else PaymentStatus.PENDING,
        )
        self.books = Books({PAYMENT: own})
        self.books.commit(opened)
        self.wall = WallClock(NOON, left_ms=opened.session.paid_ms)
        self.asked = 0

    def move(self, wait_ms: int, move: Move) -> None:
        self.now += wait_ms
        if move[0] == "reconfigure":
            self.config = move[1]
            return
        event = self._event(*move)
        if event is None:
            return
        before, known = self.session, repr(self.session)
        try:
            taken = step(before, event)
        except Refusal:
            legal = type(event) in RULES[before.status]
            late = isinstance(event, MitraLost) and before.remaining_ms_at(event.at) == 0
            assert not legal or late or before.status is EXTENDING, (
                "what the table allows is refused to the wrong request, or when no time is left to take over"
            )
            assert repr(before) == known
            return
        except DeadlineNotReached:
            assert before.deadline_at is not None
            assert isinstance(event, DeadlineReached)
            assert event.at < before.deadline_at
            return
        self.books.commit(taken)
        self.wall.passes(before, taken, event)
        self.session = taken.session

    def _event(self, what: str, one: Any, other: Any) -> Event | None:
        now, deadline_at = self.now, self.session.deadline_at
        match what:
            case "deadline":
                self.now = max(now, (deadline_at or now) + one)
                return DeadlineReached(at=self.now, config=self.config, reachability=other)
            case "early":
                at = max((deadline_at or now) - one, self.wall.at)
                return DeadlineReached(at=at, config=self.config, reachability=other)
            case "ask":
                payment = self.books.new_extension_payment(minutes=one, amount=other, status=PaymentStatus.CONFIRMED)
                return self._ask(payment.payment_request_id)
            case "ask again":
                known = sorted(self.books.payments)
                return self._ask(known[one % len(known)])
            case "answer":
                return ExtensionAnswered(at=now, extension_id=self._meant(other), accepted=one, config=self.config)
            case "cancel":
                return ExtensionCancelled(at=now, extension_id=self._meant(other), config=self.config)
            case "confirm":
                return self._confirm()
            case "fail":
                return self._fail()
            case "end":
                return EndRequested(at=now, by=one)
            case "lose" | "find" | "find nobody":
                return self._reroute(what, one, other)
            case _:  # down
                self.now = now + one
                return DowntimeCredited(at=self.now, downtime_ms=one, not_before=self.now + other * SECOND)

    def _ask(self, payment_request_id: str) -> Event | None:
        payment = self.books.find(payment_request_id)
        asked = asking.Asked(
            customer_id=CUSTOMER,
            duration_minutes=payment.duration_minutes,
            price=payment.amount,
            payment_request_id=payment_request_id,
        )
        try:
            asking.check(self.session, asked, payment, self.config)
        except Refusal:
            return None
        self.asked += 1
        extension_id = str(UUID(int=5000 + self.asked))
        extension = asking.request(self.session, payment, extension_id, self.now, self.config)
        return ExtensionRequested(at=self.now, extension=extension)

    def _reroute(self, what: str, one: Any, other: Any) -> Event:
        if what == "lose":
            pairing_id = str(UUID(int=7000 + len(self.books.searched)))
            return MitraLost(at=self.now, deadline_at=self.now + one, cause=other, pairing_id=pairing_id)
        if what == "find":
            other_mitra = OTHER_MITRA if self.session.mitra_id == MITRA else MITRA
            return MitraAssigned(at=self.now, mitra_id=other_mitra, pairing_id=self._search(), offer_id=OFFER)
        self.books.fail_search()
        return SearchFailed(at=self.now, pairing_id=self._search(), cause=one)

    def _search(self) -> str:
        """The last search there was; only one that is open can be won."""
        return str(UUID(int=7000 + max(0, len(self.books.searched) - 1)))

    def _meant(self, dice: int) -> str:
        """The request that waits, three times out of four."""
        if self.session.extension is not None and dice:
            return self.session.extension.extension_id
        return str(UUID(int=5000 + max(1, self.asked - 1)))

    def _fail(self) -> Event:
        """The provider takes back the money that something waits for; of an extension it has failed before the session hears of it."""
        if self.session.extension is not None:
            taken_back = self.books.payments[self.session.extension.payment_request_id]
            self.books.payments[taken_back.payment_request_id] = replace(
                taken_back, status=PaymentStatus.FAILED, failure_cause=FailureCause.PAYMENT_FAILED
            )
        return PaymentFailed(at=self.now, config=self.config)

    def _confirm(self) -> Event | None:
        """The provider's word arrives: first the payment's row, then the session hears of it."""
        payment = self.books.payments[PAYMENT]
        if payment.status is not PaymentStatus.PENDING:
            return None
        self.books.payments[PAYMENT] = an_extension_payment(
            payment_request_id=PAYMENT, is_extension=False, minutes=payment.duration_minutes, amount=payment.amount
        )
        return PaymentConfirmed(at=self.now)


def play(data: st.DataObject, history: History) -> None:
    for _ in range(data.draw(st.integers(5, 30), label="moves")):
        history.move(data.draw(A_WHILE_MS, label="wait"), data.draw(moves_in(history.session.status), label="move"))


@settings(max_examples=max(250, settings().max_examples))
@given(
    data=st.data(),
    confirmed=st.booleans(),
    minutes=st.integers(1, 20),
    price=st.sampled_from([0, 1, 100, 9_999, 10_000]),
    config=CONFIGS,
)
def test_whatever_happens_no_minute_and_no_unit_of_money_is_lost_or_made(
    data: st.DataObject, confirmed: bool, minutes: int, price: int, config: LiveConfig
) -> None:
    history = History(confirmed=confirmed, minutes=minutes, price=price, config=config)
    play(data, history)
    ends = [status for status in history.wall.path if status is ENDED]
    assert len(ends) <= 1, "one terminal transition (S1)"
    assert not ends or history.wall.path[-1] is ENDED, "and nothing after it (S1)"


@given(data=st.data(), config=CONFIGS, late_ms=st.integers(0, 30_000))
def test_a_session_that_is_left_alone_comes_to_its_end_by_its_deadlines(
    data: st.DataObject, config: LiveConfig, late_ms: int
) -> None:
    """From wherever a history has led, deadlines alone lead to `ended` in a few steps: nothing is stuck (M7)."""
    history = History(confirmed=True, minutes=5, price=5_000, config=config)
    play(data, history)
    for _ in range(4):
        if history.session.status is not SessionStatus.ENDED:
            history.move(0, ("deadline", late_ms, None))
    assert history.session.status is SessionStatus.ENDED
    assert not history.books.pending
