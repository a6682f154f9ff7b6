"""What happens next to a search, why it failed, and who may search at all."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo import protocol
from halo.config import LiveConfig
from halo.effects import ConsumePayment, PushIfAbsent, Send
from halo.errors import InvalidState, NotFound, PaymentInUse, Refusal
from halo.pairing import (
    SESSION_PATIENCE_MS,
    AskWave,
    GiveUp,
    Offer,
    OfferStatus,
    Opening,
    PairingStatus,
    Search,
    Wait,
    cause_of,
    check_payment,
    evidence_of,
    next_move,
    open_match,
)
from halo.payment import Payment, PaymentStatus
from halo.session import FailureCause, SessionStatus

NOW = 1_700_000_000_000
OPEN, ACCEPTED, DECLINED = OfferStatus.OPEN, OfferStatus.ACCEPTED, OfferStatus.DECLINED
TAKEN, CANCELLED, TIMED_OUT = OfferStatus.TAKEN, OfferStatus.CANCELLED, OfferStatus.TIMED_OUT


def a_search(*statuses: OfferStatus, wave: int = 1, **fields: Any) -> Search:
    """A search whose offers have these statuses, all of its present wave."""
    search = Search(
        pairing_id="pairing",
        customer_id="customer",
        payment_request_id="payment",
        topic_sensitivity="sensitive",
        status=PairingStatus.SEARCHING,
        wave=wave,
        deadline_at=NOW + 30_000,
        session_id=None,
        cause=None,
        payment_status=PaymentStatus.CONFIRMED,
        duration_minutes=10,
        amount=10_000,
        currency="IDR",
        offers=tuple(
            Offer(offer_id=f"offer-{n}", mitra_id=f"mitra-{n}", wave=wave, status=status, deadline_at=NOW + 30_000)
            for n, status in enumerate(statuses)
        ),
    )
    return replace(search, **fields)


def a_payment(**fields: Any) -> Payment:
    payment = Payment(
        payment_request_id="payment",
        customer_id="customer",
        session_id=None,
        status=PaymentStatus.PENDING,
        amount=10_000,
        currency="IDR",
        duration_minutes=10,
        is_extension=False,
        is_first_session_discount=False,
        failure_cause=None,
        created_at=NOW,
    )
    return replace(payment, **fields)


class TestNextMove:
    def test_a_new_search_asks_its_first_wave_at_once(self) -> None:
        assert next_move(a_search(wave=0, deadline_at=NOW), NOW, waves=3) == AskWave(1, frozenset())

    def test_a_new_search_that_was_taken_up_after_a_restart_waits_for_people_to_return(self) -> None:
        assert next_move(a_search(wave=0, deadline_at=NOW + 10_000), NOW, waves=3) == Wait(NOW + 10_000)

    def test_an_open_offer_is_waited_for_until_its_deadline(self) -> None:
        assert next_move(a_search(OPEN, DECLINED), NOW, waves=3) == Wait(NOW + 30_000)
        assert next_move(a_search(OPEN, DECLINED), NOW + 29_999, waves=3) == Wait(NOW + 30_000)

    def test_at_the_deadline_the_next_wave_asks_others(self) -> None:
        assert next_move(a_search(OPEN, DECLINED), NOW + 30_000, waves=3) == AskWave(
            2, frozenset({"mitra-0", "mitra-1"})
        )

    def test_when_all_who_were_asked_have_declined_the_next_wave_starts_at_once(self) -> None:
        assert next_move(a_search(DECLINED, DECLINED), NOW, waves=3) == AskWave(2, frozenset({"mitra-0", "mitra-1"}))

    def test_a_withdrawn_offer_is_not_waited_for(self) -> None:
        assert next_move(a_search(DECLINED, CANCELLED), NOW, waves=3) == AskWave(2, frozenset({"mitra-0", "mitra-1"}))

    def test_after_the_last_wave_the_search_is_given_up(self) -> None:
        assert next_move(a_search(OPEN, wave=3), NOW + 30_000, waves=3) == GiveUp()
        assert next_move(a_search(DECLINED, wave=3), NOW, waves=3) == GiveUp()

    def test_fewer_waves_configured_meanwhile_let_the_present_one_run_out(self) -> None:
        assert next_move(a_search(OPEN, wave=3), NOW, waves=1) == Wait(NOW + 30_000)
        assert next_move(a_search(OPEN, wave=3), NOW + 30_000, waves=1) == GiveUp()

    def test_offers_do_not_run_out_before_people_could_come_back(self) -> None:
        assert next_move(a_search(OPEN), NOW + 60_000, waves=3, not_before=NOW + 65_000) == Wait(NOW + 65_000)
        assert next_move(a_search(DECLINED), NOW + 60_000, waves=3, not_before=NOW + 65_000) == AskWave(
            2, frozenset({"mitra-0"})
        )

    @pytest.mark.parametrize("status", [PaymentStatus.FAILED, PaymentStatus.CONSUMED])
    def test_a_payment_that_can_no_longer_pay_ends_the_search_at_once(self, status: PaymentStatus) -> None:
        assert next_move(a_search(OPEN, payment_status=status), NOW, waves=3) == GiveUp()

    def test_the_mitra_that_a_session_has_lost_is_not_asked_in_any_wave(self) -> None:
        lost: dict[str, Any] = {"rerouted_session_id": "session", "without_mitra_ids": ("gone",)}
        assert next_move(a_search(wave=0, deadline_at=NOW, **lost), NOW, waves=3) == AskWave(1, frozenset({"gone"}))
        assert next_move(a_search(DECLINED, **lost), NOW, waves=3) == AskWave(2, frozenset({"gone", "mitra-0"}))
        assert next_move(a_search(DECLINED, wave=3, **lost), NOW, waves=3) == GiveUp()

    def test_none_of_the_mitras_that_a_session_had_is_asked(self) -> None:
        search = a_search(wave=0, deadline_at=NOW, rerouted_session_id="session", without_mitra_ids=("first", "second"))
        assert next_move(search, NOW, waves=3) == AskWave(1, frozenset({"first", "second"}))

    def test_no_offer_outlives_the_session_that_waits(self) -> None:
        search = a_search(DECLINED, rerouted_session_id="session", session_deadline_at=NOW + 20_000)
        assert search.offers_end_at(NOW + 60_000) == NOW + 20_000
        assert search.offers_end_at(NOW + 10_000) == NOW + 10_000
        assert a_search().offers_end_at(NOW + 60_000) == NOW + 60_000

    def test_nobody_is_asked_once_the_sessions_time_is_up_unless_it_turns_out_to_have_more(self) -> None:
        lost: dict[str, Any] = {"rerouted_session_id": "session", "session_deadline_at": NOW}
        assert next_move(a_search(DECLINED, **lost), NOW - 1, waves=3) == AskWave(2, frozenset({"mitra-0"}))
        assert next_move(a_search(DECLINED, **lost), NOW, waves=3) == Wait(NOW + SESSION_PATIENCE_MS)
        assert next_move(a_search(DECLINED, wave=3, **lost), NOW, waves=3) == GiveUp()

    @pytest.mark.parametrize("status", PaymentStatus)
    def test_a_session_that_was_paid_for_long_ago_seeks_on_whatever_its_payment_is_by_now(
        self, status: PaymentStatus
    ) -> None:
        search = a_search(OPEN, payment_status=status, rerouted_session_id="session", without_mitra_ids=("gone",))
        assert search.payable
        assert next_move(search, NOW, waves=3) == Wait(NOW + 30_000)

    @given(
        statuses=st.lists(st.sampled_from([OPEN, DECLINED, CANCELLED, TIMED_OUT]), max_size=6),
        wave=st.integers(1, 5),
        waves=st.integers(1, 5),
        after_ms=st.integers(-60_000, 60_000),
    )
    def test_a_search_always_comes_to_an_end(
        self, statuses: list[OfferStatus], wave: int, waves: int, after_ms: int
    ) -> None:
        """Every wait ends at a moment at which the move is another one, and every wave is later than the last."""
        search, now = a_search(*statuses, wave=wave), NOW + after_ms
        move = next_move(search, now, waves=waves)
        if isinstance(move, Wait):
            assert move.until > now
            move = next_move(search, move.until, waves=waves)
        assert not isinstance(move, Wait)
        if isinstance(move, AskWave):
            assert wave < move.wave <= waves
            assert move.exclude == {offer.mitra_id for offer in search.offers}
        else:
            assert wave >= waves


class TestCause:
    @pytest.mark.parametrize(
        ("statuses", "cause"),
        [
            ((), FailureCause.NO_MITRA_AVAILABLE),
            ((DECLINED,), FailureCause.ALL_DECLINED),
            ((DECLINED, DECLINED, DECLINED), FailureCause.ALL_DECLINED),
            ((DECLINED, TIMED_OUT), FailureCause.TIMED_OUT),
            ((DECLINED, CANCELLED), FailureCause.TIMED_OUT),
            ((TIMED_OUT, TIMED_OUT), FailureCause.TIMED_OUT),
        ],
    )
    def test_is_nobody_asked_or_all_declined_or_else_timed_out(
        self, statuses: tuple[OfferStatus, ...], cause: FailureCause
    ) -> None:
        assert cause_of(a_search(*statuses)) is cause

    def test_a_failed_payment_is_the_cause_whatever_the_mitras_said(self) -> None:
        for statuses in ((), (DECLINED,), (TIMED_OUT,)):
            assert cause_of(a_search(*statuses, payment_status=PaymentStatus.FAILED)) is FailureCause.PAYMENT_FAILED

    def test_a_search_for_another_mitra_never_fails_of_its_payment(self) -> None:
        lost: dict[str, Any] = {"rerouted_session_id": "session", "payment_status": PaymentStatus.CONSUMED}
        assert cause_of(a_search(**lost)) is FailureCause.NO_MITRA_AVAILABLE
        assert cause_of(a_search(DECLINED, **lost)) is FailureCause.ALL_DECLINED
        assert cause_of(a_search(TIMED_OUT, **lost)) is FailureCause.TIMED_OUT

    def test_the_evidence_counts_waves_and_answers(self) -> None:
        assert evidence_of(a_search(DECLINED, TIMED_OUT, DECLINED, wave=2)) == {
            "waves": 2,
            "declined": 2,
            "timed_out": 1,
        }


class TestPayment:
    @pytest.mark.parametrize("status", [PaymentStatus.PENDING, PaymentStatus.CONFIRMED])
    def test_pending_and_confirmed_may_search(self, status: PaymentStatus) -> None:
        payment = a_payment(status=status)
        assert check_payment(payment, "customer") is payment

    @pytest.mark.parametrize(
        ("payment", "refusal"),
        [
            (None, NotFound),
            (a_payment(customer_id="somebody else", is_extension=True), NotFound),
            (a_payment(is_extension=True), InvalidState),
            (a_payment(status=PaymentStatus.FAILED, failure_cause="payment_failed"), InvalidState),
            (a_payment(status=PaymentStatus.CONSUMED, in_use=True), InvalidState),
            (a_payment(in_use=True), PaymentInUse),
        ],
    )
    def test_others_are_refused_by_name(self, payment: Payment | None, refusal: type[Refusal]) -> None:
        with pytest.raises(refusal):
            check_payment(payment, "customer")


class TestMatch:
    opening = Opening(session_id="session", at=NOW, minute_ms=1_000, config=LiveConfig(payment_hold_seconds=60))

    def test_a_confirmed_payment_opens_the_session_active_and_is_consumed(self) -> None:
        opened = open_match(a_search(OPEN), "mitra-0", self.opening)
        session = opened.session
        assert session.status is SessionStatus.ACTIVE
        assert (session.mitra_id, session.customer_id, session.payment_request_id) == ("mitra-0", "customer", "payment")
        assert (session.price, session.paid_amount, session.topic_sensitivity) == (10_000, 10_000, "sensitive")
        assert (session.remaining_ms, session.expires_at) == (10_000, NOW + 10_000)
        assert any(isinstance(effect, ConsumePayment) for effect in opened.effects)

    def test_a_pending_payment_holds_the_session_and_is_not_consumed(self) -> None:
        opened = open_match(a_search(OPEN, payment_status=PaymentStatus.PENDING), "mitra-0", self.opening)
        assert opened.session.status is SessionStatus.PENDING_PAYMENT
        assert opened.session.deadline_at == NOW + 60_000
        assert [type(effect) for effect in opened.effects] == [Send, PushIfAbsent]


def test_a_mitra_is_asked_in_terms_of_what_was_paid_for() -> None:
    search = a_search(OPEN)
    assert search.frame(search.offers[0]) == protocol.Offer(
        offer_id="offer-0",
        pairing_id="pairing",
        topic_sensitivity="sensitive",
        duration_minutes=10,
        price=10_000,
        currency="IDR",
        deadline_at="2023-11-14T22:13:50.000Z",
    )
